"""Where Celery's Redis transport would stop taking tasks, and not say so, after the broker was away."""

from kombu.transport import redis, virtual


class QoS(redis.QoS):
    """Counts the tasks that a worker holds; one whose end the broker could not be told is held no more.

    kombu goes on counting it. A worker that was busy to its limit when the broker went away then never asks for
    another task, so it does not notice either that its connection is gone.
    """

    def ack(self, delivery_tag: str) -> None:
        """Take a task off the broker's books; what it cannot be told, it delivers again in time."""
        try:
            super().ack(delivery_tag)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a task back."""
        try:
            super().reject(delivery_tag, requeue=requeue)
        finally:
            virtual.QoS.ack(self, delivery_tag)


def install() -> None:
    """Have every connection of this process count in this way."""
    redis.Channel.QoS = QoS
