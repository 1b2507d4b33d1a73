"""A log in this process's memory: for tests, and for trying things out. It is gone with the process."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from cdp.log.base import Load, Log, LogTruncated, Stored, Waits
from martech.lib import clock


class MemoryLog(Log):
    """Positions are counted from 1 in each partition."""

    def __init__(self, url: str = "memory:", *, partitions: int) -> None:
        super().__init__(url, partitions=partitions)
        self._entries: list[list[bytes]] = [[] for _ in range(partitions)]
        self._trimmed = [0] * partitions
        self._arrived = threading.Condition()
        self._done: dict[int, int] = {}
        self._waits = Waits()

    @property
    def name(self) -> str:
        return f"memory:{id(self)}"

    async def append(self, entries: Sequence[tuple[int, bytes]]) -> list[str]:
        with self._arrived:
            positions = [self._append(partition, payload) for partition, payload in entries]
            self._arrived.notify_all()
        return positions

    def _append(self, partition: int, payload: bytes) -> str:
        self._entries[partition].append(payload)
        return self.newest(partition)

    def read(self, after: dict[int, str], *, limit: int, wait: float) -> dict[int, list[Stored]]:
        with self._arrived:
            self._arrived.wait_for(lambda: any(self.lag(partition, at) for partition, at in after.items()), wait)
            found = {partition: self._after(partition, at, limit) for partition, at in after.items()}
        return {partition: entries for partition, entries in found.items() if entries}

    def _after(self, partition: int, position: str, limit: int) -> list[Stored]:
        trimmed = self._trimmed[partition]
        start = max(int(position or 0), trimmed) - trimmed
        batch = self._entries[partition][start : start + limit]
        return [Stored(str(trimmed + start + offset + 1), payload) for offset, payload in enumerate(batch)]

    def verify(self, partition: int, position: str) -> None:
        trimmed = self._trimmed[partition]
        if position and not trimmed < int(position) <= int(self.newest(partition) or 0):
            raise LogTruncated(f"Partition {partition} of the log starts after {trimmed}, beyond {position}.")

    def trim(self, partition: int, below: str) -> None:
        count = int(below) - 1 - self._trimmed[partition]
        if count > 0:
            del self._entries[partition][:count]
            self._trimmed[partition] += count

    def newest(self, partition: int) -> str:
        newest = self._trimmed[partition] + len(self._entries[partition])
        return str(newest) if newest else ""

    def order(self, position: str) -> tuple[int, ...]:
        return (int(position),) if position else ()

    def lag(self, partition: int, position: str) -> int:
        return int(self.newest(partition) or 0) - int(position or 0)

    def done(self, times: dict[int, int]) -> None:
        self._done |= times

    async def load(self, *, disk_reserve: int) -> Load:
        lengths = {partition: len(entries) for partition, entries in enumerate(self._entries)}
        return Load(waiting=self._waits.oldest(lengths, self._done, clock.now_us()))

    def compact(self, *, seconds: float) -> bool:
        return True

    def check(self) -> None:
        """Memory is always there."""

    def close(self) -> None:
        """Nothing to let go of."""

    async def aclose(self) -> None:
        """Nothing to let go of."""
