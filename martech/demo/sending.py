"""Sends calls with the stock Segment SDK, and counts what the platform acknowledged."""

import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import msgspec
import requests
from segment.analytics import Client
from segment.analytics import request as sdk

from martech.demo.story import Call
from martech.lib.errors import PermanentError

# Each has its own queue, thread and connection; all of a person's calls go by one, in order.
CLIENTS = 4
# The SDK drops what does not fit into its queue: we wait at half, so that batches it takes back fit as well.
QUEUE_SIZE = 4_000
BATCH_SIZE = 100
PAUSE_SECONDS = 0.02


class _Batch(msgspec.Struct):
    batch: list[msgspec.Raw]


_batch = msgspec.json.Decoder(_Batch).decode


@dataclass(slots=True)
class Counts:
    """How many events were given to the SDK, answered with 200, and given up by the SDK (with the first cause)."""

    sent: int = 0
    acknowledged: int = 0
    given_up: int = 0
    cause: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Sender:
    """Stock SDK clients for a platform at `url`; a context manager."""

    def __init__(self, url: str, write_key: str, *, clients: int = CLIENTS) -> None:
        self.counts = Counts()
        self._stopped = threading.Event()
        self._clients = [
            Client(write_key, host=url, max_queue_size=QUEUE_SIZE, upload_size=BATCH_SIZE, on_error=self._given_up)
            for _ in range(clients)
        ]

    def __enter__(self) -> "Sender":
        # The SDK says nothing of its successes; its HTTP session has a hook for answers.
        sdk._session.hooks["response"].append(self._answered)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for client in self._clients:
            for consumer in client.consumers:
                consumer.pause()
        with suppress(ValueError):
            sdk._session.hooks["response"].remove(self._answered)

    def start(self, calls: Iterable[Call]) -> None:
        """Begin to give calls to the SDK, as fast as it takes them."""
        self._feeder = threading.Thread(target=self._feed, args=(calls,), name="feeder", daemon=True)
        self._feeder.start()

    def _feed(self, calls: Iterable[Call]) -> None:
        for call in calls:
            client = self._clients[int(call.customer) % len(self._clients)]
            while client.queue.qsize() >= QUEUE_SIZE // 2:
                if self._stopped.wait(PAUSE_SECONDS):
                    return
            taken, _ = getattr(client, call.method)(timestamp=call.at, **call.arguments)
            if taken:
                self.counts.sent += 1
            else:
                self._given_up(RuntimeError("its queue is full"), [call])

    @property
    def finished(self) -> bool:
        """Whether everything was sent and acknowledged; PermanentError when the SDK gave up events."""
        counts = self.counts
        if counts.given_up:
            raise PermanentError(
                f"The SDK gave up {counts.given_up} events ({counts.cause}): see what the web process says above, "
                "then start again."
            )
        return not self._feeder.is_alive() and counts.acknowledged >= counts.sent

    def _answered(self, response: requests.Response, *args: Any, **kwargs: Any) -> None:
        body = response.request.body
        if response.status_code == 200 and isinstance(body, (bytes, str)):
            count = len(_batch(body).batch)
            with self.counts.lock:
                self.counts.acknowledged += count

    def _given_up(self, error: Exception, batch: list[Any]) -> None:
        with self.counts.lock:
            self.counts.given_up += len(batch)
            self.counts.cause = self.counts.cause or str(error)
