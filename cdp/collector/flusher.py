"""Group commit: requests that come within a few milliseconds share one append to the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable

from cdp.collector import metrics
from cdp.collector.entries import payloads
from cdp.log.base import Delivery, Log, LogUnavailable
from martech.lib.errors import RetryableError

# A round that has gathered this much is appended at once, and takes no more.
ROUND_BYTES = 2 * 2**20
# SDKs give up a request after 10 or 15 s.
APPEND_SECONDS = 8.0

log = logging.getLogger(__name__)

Parcel = tuple[int, Delivery]
Positions = dict[int, str]


class _Round:
    """What is appended together, and who waits for it."""

    __slots__ = ("deliveries", "opened", "size", "waiting")

    def __init__(self, opened: float) -> None:
        self.opened = opened
        self.size = 0
        self.deliveries: dict[int, list[Delivery]] = {}
        self.waiting: list[asyncio.Future[Positions | RetryableError]] = []


class Flusher:
    """Appends what requests submit. One append is under way at a time; what comes meanwhile makes the next."""

    def __init__(self, log: Log, *, seconds: float) -> None:
        self._log = log
        self._seconds = seconds
        self._rounds: deque[_Round] = deque()
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to flush."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Flush what was accepted, then end."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task

    async def submit(self, parcels: Iterable[Parcel], size: int) -> Positions:
        """Wait until the deliveries, of `size` bytes together, are durable; return each partition's position.

        LogFull or LogUnavailable where they are not: then some may have been written all the same.
        """
        if self._stopping:
            raise LogUnavailable("This server is stopping. Send again.", code="stopping")
        now = self._round()
        for partition, delivery in parcels:
            now.deliveries.setdefault(partition, []).append(delivery)
        now.size += size
        waiting = asyncio.get_running_loop().create_future()
        now.waiting.append(waiting)
        outcome: Positions | RetryableError = await waiting
        if isinstance(outcome, RetryableError):
            raise outcome
        return outcome

    def _round(self) -> _Round:
        if not self._rounds or self._rounds[-1].size >= ROUND_BYTES:
            self._rounds.append(_Round(time.monotonic()))
            self._wake.set()
        return self._rounds[-1]

    async def _run(self) -> None:
        while self._rounds or not self._stopping:
            if not self._rounds:
                self._wake.clear()
                await self._wake.wait()
                continue
            left = self._rounds[0].opened + self._seconds - time.monotonic()
            if left > 0 and self._rounds[0].size < ROUND_BYTES:
                await asyncio.sleep(left)
            await self._flush(self._rounds.popleft())

    async def _flush(self, now: _Round) -> None:
        entries = [(partition, payload) for partition, found in now.deliveries.items() for payload in payloads(found)]
        outcome = await self._append(entries)
        for waiting in now.waiting:
            if not waiting.done():  # Its request was cancelled.
                waiting.set_result(outcome)

    async def _append(self, entries: list[tuple[int, bytes]]) -> Positions | RetryableError:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(APPEND_SECONDS):
                positions = await self._log.append(entries)
        except TimeoutError:
            return LogUnavailable(f"The log did not answer within {APPEND_SECONDS:.0f} s. Send again.", retry_after=5)
        except RetryableError as error:
            return error
        except Exception as error:
            # Whatever it is, those who wait must get an answer and the next round its chance.
            log.exception("An append to the log failed in an unforeseen way.")
            return LogUnavailable(f"The log cannot be written ({type(error).__name__}). Send again.", retry_after=5)
        metrics.FLUSH_SECONDS.observe(time.perf_counter() - started)
        metrics.FLUSH_BYTES.observe(sum(len(payload) for _, payload in entries))
        # The last entry of a partition wins: whoever waits for its position has all events before it, too.
        return {partition: position for (partition, _), position in zip(entries, positions, strict=True)}
