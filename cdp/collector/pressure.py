"""Back-pressure: sends senders away before the log is full, and lets them in again by itself.

How full the log is, is one number: the largest of what its memory, its disk and the wait of its oldest event
come to. From `SOFT` on each source keeps to its quota, from `HARD` on nothing is taken; profiles are still read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from cdp.collector import metrics
from cdp.collector.answers import later
from cdp.config import Config
from cdp.log.base import Load, Log
from martech.lib.errors import RetryableError
from martech.lib.metrics import count_cpu

SOFT, HARD = 0.7, 0.9
REFRESH_SECONDS = 0.5
# A level that wavers about a mark is not worth a line each time.
QUIET_SECONDS = 60.0
# A sender that is sent away comes back after 1 to 10 s, and up to twice that by chance.
FIRST_RETRY_SECONDS, MORE_RETRY_SECONDS = 1.0, 30.0

NEXT_STEPS = {
    "memory": "Let the processor catch up, or give the log's server more memory (LOG_MEMORY_MB).",
    "disk": "Free space on the log's disk, or let less be free (LOG_DISK_RESERVE_MB).",
    "waiting": "See why the processor does not catch up, or let events wait for longer (COLLECTOR_WAIT_SECONDS).",
}
CAUSES = {
    "memory": "its server's memory is {} full",
    "disk": "its disk is at {} of what may be used",
    "waiting": "its oldest event has waited for {} of COLLECTOR_WAIT_SECONDS",
}

log = logging.getLogger(__name__)


class SourceQuota(RetryableError):
    """The log fills up, and the source sends more than its share."""

    code = "source_quota"


class LogFilling(RetryableError):
    """The log is almost full: nobody may send."""

    code = "log_filling"


def ratios(load: Load, wait_seconds: float) -> dict[str, float]:
    """Return by cause how full the log is, from 0 to 1; `wait_seconds` is a wait that counts as full."""
    waiting = min(1.0, load.waiting / wait_seconds) if wait_seconds else 0.0
    return {"memory": load.memory, "disk": load.disk, "waiting": waiting}


def explain(found: Mapping[str, float]) -> str:
    """Say what is done to senders, why, and what helps; "" below `SOFT`."""
    level, cause = fullest(found)
    if level < SOFT:
        return ""
    done = "All tracking calls get 429" if level >= HARD else "Sources that send more than their quota get 429"
    return f"{done}: {CAUSES[cause].format(f'{level:.0%}')}. {NEXT_STEPS[cause]} It opens again by itself."


def fullest(found: Mapping[str, float]) -> tuple[float, str]:
    """Return the largest ratio and its cause."""
    return max((ratio, cause) for cause, ratio in found.items())


def retry_after(level: float) -> float:
    """Return the seconds after which a sender may try again: the fuller the log, the later."""
    return FIRST_RETRY_SECONDS + MORE_RETRY_SECONDS * (level - SOFT)


class Bucket:
    """What a source may send: `rate` events a second, and as many at once after a quiet second."""

    __slots__ = ("left", "rate", "seen")

    def __init__(self, rate: float, now: float) -> None:
        self.rate, self.left, self.seen = rate, rate, now

    def wait(self, count: int, now: float) -> float:
        """Return the seconds until `count` events may come; a batch beyond the rate waits for a full bucket."""
        self.left = min(self.rate, self.left + (now - self.seen) * self.rate)
        self.seen = now
        if not self.rate:
            return float("inf")
        return max(0.0, (min(count, self.rate) - self.left) / self.rate)

    def take(self, count: int) -> None:
        """Count events that come; those beyond what is left are paid off before the next ones."""
        self.left -= count


class Pressure:
    """Keeps an eye on the log's load, and says who may send."""

    def __init__(self, config: Config, log: Log) -> None:
        self.level = 0.0
        self.found = ratios(Load(), 0.0)
        self._log = log
        self._wait_seconds = config.collector_wait_seconds
        self._disk_reserve = config.log_disk_reserve_bytes
        self._quota = config.source_quota
        self._buckets: dict[int, Bucket] = {}
        self._told, self._told_at = 0.0, 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Look no more."""
        # Once is not enough: the driver swallows a cancellation that meets a connection being made.
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.1)

    async def look(self) -> None:
        """Take over the log's load; where it does not answer nobody is sent away, since appends then get 503."""
        try:
            found = ratios(await self._log.load(disk_reserve=self._disk_reserve), self._wait_seconds)
        except RetryableError:
            self.found, self.level = ratios(Load(), 0.0), 0.0
            return
        for cause, ratio in found.items():
            metrics.load(cause).set(ratio)
        self.found, self.level = found, fullest(found)[0]
        self._tell(found)

    def _tell(self, found: dict[str, float]) -> None:
        """Log a rise at once, and a fall once the last line is old."""
        level, now = fullest(found)[0], time.monotonic()
        mark = HARD if level >= HARD else SOFT if level >= SOFT else 0.0
        if mark > self._told or (mark < self._told and now - self._told_at > QUIET_SECONDS):
            log.warning("%s", explain(found) or "The log has room again: every source may send.")
            self._told, self._told_at = mark, now

    async def _watch(self) -> None:
        while True:
            try:
                count_cpu("web")
                await self.look()
            except Exception:
                log.exception("The log's load cannot be seen, for an unforeseen reason.")
            await asyncio.sleep(REFRESH_SECONDS)

    def refuse_all(self) -> None:
        """Answer 429: called for every request while the level is at `HARD` or above."""
        metrics.SHED_REQUESTS.inc()
        raise later(
            429,
            LogFilling(
                "The event log is almost full, so nothing is taken now. Send again later.",
                retry_after=retry_after(self.level),
            ),
        )

    def spend(self, counts: Mapping[int, int], quota_of: Callable[[int], int | None]) -> None:
        """Count a request's events against their sources' quotas: called while the level is at `SOFT` or above.

        `counts` are events by source id. 429 where a source has sent its share; then none is counted.
        """
        now = time.monotonic()
        for source_id, count in counts.items():
            wait = self._bucket(source_id, quota_of(source_id), now).wait(count, now)
            if wait:
                self._refuse(counts, wait)
        for source_id, count in counts.items():
            self._buckets[source_id].take(count)

    def _bucket(self, source_id: int, quota: int | None, now: float) -> Bucket:
        rate = self._quota if quota is None else quota
        found = self._buckets.get(source_id)
        if found is None or found.rate != rate:
            found = self._buckets[source_id] = Bucket(rate, now)
        return found

    def _refuse(self, counts: Mapping[int, int], wait: float) -> None:
        for source_id, count in counts.items():
            metrics.shed(source_id).inc(count)
        raise later(
            429,
            SourceQuota(
                "The event log is filling up, and this source has sent its quota of events. Send again later.",
                retry_after=min(300.0, max(wait, retry_after(self.level))),
            ),
        )
