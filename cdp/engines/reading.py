"""Reading ahead: the next batch is read and decoded while PostgreSQL works on this one."""

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass, field

from cdp.log.base import Log, Stored, decode_entry
from cdp.processing.decode import MAX_EVENT_BYTES, Rejection
from cdp.processing.pipeline import Arrival, arrive
from martech.lib import clock

# What one read asks of each partition at the most; entries of a busy log hold tens of events each.
READ_ENTRIES = 200
QUEUE_BYTES = 64 * 2**20
# Entries are taken for at least this large: after small ones larger ones may come, of 256 KiB mostly.
SMALLEST = 64 * 2**10


@dataclass(slots=True)
class Batch:
    """What was taken in one go: events, where they were read from, and where that leads."""

    arrivals: list[Arrival] = field(default_factory=list)
    read_from: dict[int, str] = field(default_factory=dict)
    positions: dict[int, str] = field(default_factory=dict)
    events: dict[int, int] = field(default_factory=dict)


class Ahead:
    """Takes batches from the log, after the positions it starts at.

    An entry is never split, so that a position always lies between entries. A batch has about `queue_bytes` at the
    most, with the batch contexts that decoding repeats in each event, and so has what was read ahead of it.
    """

    def __init__(
        self,
        log: Log,
        positions: dict[int, str],
        *,
        event_bytes: int = MAX_EVENT_BYTES,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._log, self._event_bytes, self._queue_bytes = log, event_bytes, queue_bytes
        # The largest entry of late: how many are read depends on it, since nothing else tells their size before.
        self._largest = queue_bytes // max(1, len(positions))
        self._taken = dict(positions)
        self._read = dict(positions)
        self._pending: dict[int, deque[Stored]] = {partition: deque() for partition in positions}

    def take(self, *, max_events: int, wait: float) -> Batch:
        """Return the next events, about `max_events` at the most; an empty batch when none came in `wait` seconds."""
        if not any(self._pending.values()):
            self._fill(wait)
        batch = Batch()
        waiting = [partition for partition, entries in self._pending.items() if entries]
        for partition in waiting:
            self._take_from(partition, batch, max_events // len(waiting), self._queue_bytes // len(waiting))
        return batch

    def _fill(self, wait: float) -> None:
        limit = self._queue_bytes // (max(SMALLEST, self._largest) * max(1, len(self._read)))
        found = self._log.read(self._read, limit=max(1, min(READ_ENTRIES, limit)), wait=wait)
        for partition, entries in found.items():
            self._pending[partition].extend(entries)
            self._read[partition] = entries[-1].position
        if found:
            seen = max(len(stored.payload) for entries in found.values() for stored in entries)
            self._largest = max(seen, self._largest // 2)

    def _take_from(self, partition: int, batch: Batch, room: int, bytes_left: int) -> None:
        entries, before = self._pending[partition], len(batch.arrivals)
        batch.read_from[partition] = self._taken[partition]
        # At least one entry, however large.
        while entries and len(batch.arrivals) - before <= room and bytes_left > 0:
            stored = entries.popleft()
            bytes_left -= len(stored.payload)
            self._taken[partition] = stored.position
            for delivery in decode_entry(stored.payload).deliveries:
                arrived = [
                    arrive(event, delivery, partition, stored.position, max_bytes=self._event_bytes)
                    for event in delivery.events
                ]
                batch.arrivals += arrived
                if delivery.context:
                    bytes_left -= sum(
                        len(one.decoded.context) for one in arrived if not isinstance(one.decoded, Rejection)
                    )
        batch.positions[partition] = self._taken[partition]
        batch.events[partition] = len(batch.arrivals) - before


class Reader(threading.Thread):
    """Reads ahead by one batch; what goes wrong is handed to whoever takes the next batch."""

    def __init__(self, ahead: Ahead, *, max_events: int, wait: float) -> None:
        super().__init__(name="reader", daemon=True)
        self._ahead = ahead
        self._max_events, self._wait = max_events, wait
        # When a read began that found nothing, in µs since 1970: what was appended before has been handed over.
        self.caught_up_us = 0
        self._batches: queue.Queue[Batch | Exception] = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        """Read until stopped; called by the thread."""
        try:
            while not self._stopped.is_set():
                now_us = clock.now_us()
                batch = self._ahead.take(max_events=self._max_events, wait=self._wait)
                if batch.positions:
                    self._hand_over(batch)
                else:
                    self.caught_up_us = now_us
        except Exception as error:
            self._hand_over(error)

    def _hand_over(self, item: Batch | Exception) -> None:
        while not self._stopped.is_set():
            try:
                self._batches.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def take(self, timeout: float) -> Batch | None:
        """Return the next batch, None when none came within `timeout` seconds; raises what the thread met."""
        try:
            item = self._batches.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(item, Exception):
            raise item
        return item

    def stop(self) -> None:
        """Stop reading and wait for the thread."""
        self._stopped.set()
        self.join(10)
