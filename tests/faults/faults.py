"""The faults of the random mix. Each one's docstring begins with its number in the list, or the law that covers it.

A fault is a function of the bed and of chance. It names the programs that it disturbs, which must be well before;
where it lasts, it returns for how long, and what ends it.
"""

import signal
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from tests.faults.bed import Bed

# What is left of the log's memory while it is said to be full.
FULL_BYTES = 2**20


class Lasting(NamedTuple):
    """A fault that goes on for some seconds, until `end` is called."""

    seconds: float
    end: Callable[[], None]


class Fault(NamedTuple):
    """One fault: its number, what it does in words, what it disturbs, and how to bring it about."""

    number: str
    words: str
    victims: tuple[str, ...]
    inject: Callable[[Bed, Random], Lasting | None]

    def __str__(self) -> str:
        return f"{self.number}: {self.words}"


FAULTS: list[Fault] = []


class Missed(Exception):
    """There was nothing to hit just now."""


def disturbs(*victims: str) -> Callable[[Callable], Callable]:
    """Enter a function into the list of faults."""

    def enter(inject: Callable) -> Callable:
        number, _, words = (inject.__doc__ or "").partition(": ")
        FAULTS.append(Fault(number, words.rstrip("."), victims, inject))
        return inject

    return enter


@disturbs("web")
def kill_web(bed, chance):
    """F1: kill the web process."""
    bed.signal("web", signal.SIGKILL)


@disturbs("web")
def kill_web_worker(bed, chance):
    """F1: kill one worker of the web process."""
    _kill_one(bed.children("web", "granian"), chance)


@disturbs("processor")
def kill_processor(bed, chance):
    """F2: kill the processor."""
    bed.signal("processor", signal.SIGKILL)


@disturbs("processor-2")
def kill_second_processor(bed, chance):
    """F2: kill the second processor."""
    bed.signal("processor-2", signal.SIGKILL)


@disturbs("processor")
def freeze_processor(bed, chance):
    """F2: freeze the processor for so long that the other one takes over, then let it go on."""
    return _stand_still(bed, "processor", chance.uniform(11, 14))


@disturbs("processor-2")
def freeze_second_processor(bed, chance):
    """F2: freeze the second processor likewise."""
    return _stand_still(bed, "processor-2", chance.uniform(11, 14))


@disturbs("worker")
def kill_worker(bed, chance):
    """F3: kill the Celery worker with its pool."""
    for process in bed.children("worker"):
        process.kill()
    bed.signal("worker", signal.SIGKILL)


@disturbs("worker")
def kill_pool_process(bed, chance):
    """F3: kill one process of the Celery worker's pool."""
    _kill_one(bed.children("worker"), chance)


@disturbs("log")
def kill_log(bed, chance):
    """F4: kill the log."""
    bed.signal("log", signal.SIGKILL)


@disturbs("log")
def fill_log(bed, chance):
    """F7: let the log run out of memory."""
    bed.servers["log"].config_set("maxmemory", FULL_BYTES)
    return Lasting(chance.uniform(0.5, 2), lambda: bed.servers["log"].config_set("maxmemory", bed.log_memory))


@disturbs("postgres")
def kill_backend(bed, chance):
    """F10: kill one backend of PostgreSQL, so that all begin anew."""
    _kill_one(bed.children("postgres", "martech martech"), chance)


@disturbs("postgres")
def stop_postgres_at_once(bed, chance):
    """F10: stop PostgreSQL without a checkpoint (SIGQUIT)."""
    bed.signal("postgres", signal.SIGQUIT)


@disturbs("postgres")
def kill_postgres(bed, chance):
    """F10: kill PostgreSQL's first process."""
    bed.signal("postgres", signal.SIGKILL)


@disturbs("processor")
def pause_processor(bed, chance):
    """F11: let the processor stand still for a moment."""
    return _stand_still(bed, "processor", chance.uniform(1, 4))


@disturbs("processor-2")
def pause_second_processor(bed, chance):
    """F11: let the second processor stand still for a moment."""
    return _stand_still(bed, "processor-2", chance.uniform(1, 4))


@disturbs("web")
def pause_web_worker(bed, chance):
    """F11: let one worker of the web process stand still for a moment."""
    process = _one(bed.children("web", "granian"), chance)
    process.send_signal(signal.SIGSTOP)
    return Lasting(chance.uniform(0.5, 3), lambda: process.send_signal(signal.SIGCONT))


@disturbs("postgres")
def cut_database(bed, chance):
    """F16: end all connections to PostgreSQL."""
    bed.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )


@disturbs("log")
def cut_log(bed, chance):
    """F16: end all connections to the log."""
    bed.servers["log"].client_kill_filter(_type="normal", skipme=True)


@disturbs("broker")
def kill_broker(bed, chance):
    """F17: kill the broker, which forgets everything."""
    bed.signal("broker", signal.SIGKILL)


@disturbs("broker")
def empty_broker(bed, chance):
    """F17: empty the broker."""
    bed.servers["broker"].flushall()


@disturbs("beat")
def kill_beat(bed, chance):
    """F18: kill one of the two beats."""
    bed.signal("beat", signal.SIGKILL)


@disturbs("beat-2")
def kill_second_beat(bed, chance):
    """F18: kill the other of the two beats."""
    bed.signal("beat-2", signal.SIGKILL)


@disturbs("cache")
def kill_cache(bed, chance):
    """Law 1: kill the cache, which forgets everything."""
    bed.signal("cache", signal.SIGKILL)


@disturbs("cache")
def empty_cache(bed, chance):
    """Law 1: empty the cache."""
    bed.servers["cache"].flushall()


def _stand_still(bed, name, seconds):
    process = bed.process(name)
    if process is None:
        raise Missed
    process.send_signal(signal.SIGSTOP)
    return Lasting(seconds, lambda: process.send_signal(signal.SIGCONT))


def _one(processes, chance):
    if not processes:
        raise Missed
    return chance.choice(processes)


def _kill_one(processes, chance):
    _one(processes, chance).kill()
