"""Appends to the log on a thread of its own, so that the next rows are made ready meanwhile; leaves room for others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from cdp.collector.pressure import CAUSES, SOFT, fullest, ratios
from cdp.config import Config
from cdp.log import open_log
from cdp.log.base import Log
from martech.lib.errors import RetryableError

T = TypeVar("T")

# From here on sources are held to their quotas: an import has time, and waits.
FULL = SOFT
LOOK_SECONDS = 0.5
WAIT_SECONDS = 1.0

Entries = Sequence[tuple[int, bytes]]


class Stopped(Exception):
    """Whoever waits was asked to stop."""


class Appender:
    """The way into the log. `stop` is asked while it waits, `tell` is told why it does, "" when it goes on."""

    def __init__(self, log: Log, config: Config, *, stop: Callable[[], bool], tell: Callable[[str], None]) -> None:
        self._log, self._config, self._stop, self._tell = log, config, stop, tell
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="import-append")
        self._thread.start()
        self._looked = 0.0

    def append(self, entries: Entries) -> Future[Any]:
        """Begin to append."""
        return self._begin(self._log.append(entries))

    def settle(self, begun: Future[Any], entries: Entries) -> None:
        """Return when what was begun is durable; a log that is full or away is waited for. Stopped: asked to."""
        while True:
            try:
                begun.result()
            except RetryableError as error:
                self._wait(error.message, error.retry_after)
                begun = self.append(entries)
                continue
            self._tell("")
            return

    def await_room(self) -> None:
        """Return once the log has room for an import; Stopped when asked to stop meanwhile."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        while why := self._why_not():
            self._wait(why, WAIT_SECONDS)
        self._looked = time.monotonic()
        self._tell("")

    def _why_not(self) -> str:
        try:
            load = self._begin(self._log.load(disk_reserve=self._config.log_disk_reserve_bytes)).result()
        except RetryableError as error:
            return error.message
        level, cause = fullest(ratios(load, self._config.collector_wait_seconds))
        return (
            f"Waiting for the processor: of the log, {CAUSES[cause].format(f'{level:.0%}')}." if level >= FULL else ""
        )

    def _wait(self, why: str, seconds: float) -> None:
        self._tell(why)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._stop():
                raise Stopped
            time.sleep(0.05)

    def _begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Let go of the connections and of the thread."""
        self._begin(self._log.aclose()).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._log.close()


@contextmanager
def appending(config: Config, *, stop: Callable[[], bool], tell: Callable[[str], None]) -> Iterator[Appender]:
    """Open the log for appending."""
    appender = Appender(open_log(config.log_url, partitions=config.log_partitions), config, stop=stop, tell=tell)
    try:
        yield appender
    finally:
        appender.close()
