"""Commits that PostgreSQL has not flushed yet: until it has, neither the cache nor the log may count on them.

The processor commits with `synchronous_commit=off`, so that the next batch need not wait for the disk. A crash of
PostgreSQL may then forget the last commits, whose events are still in the log. What must never run ahead of the disk
waits here: the cache's entries (readers would see what is forgotten again) and the trimming of the log.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from cdp.engines.reading import Batch
from cdp.processing.pipeline import Applied
from cdp.processing.store import Connection
from cdp.profiles import ProfileCache

# Batches that may wait for the disk before we do.
MOST = 4

_NOW = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn, pg_current_wal_flush_lsn() - '0/0'::pg_lsn"
# A transaction that says next to nothing, and waits until it and all before it is on the disk.
_FLUSH = "BEGIN; SET LOCAL synchronous_commit = on; SELECT pg_logical_emit_message(true, 'martech', ''); COMMIT"


class _Committed(NamedTuple):
    """A batch, and where the write-ahead log stood after its commit."""

    lsn: int
    batch: Batch
    applied: Applied


class Flushing:
    """The batches of one connection that are committed and may not be on the disk yet, oldest first."""

    def __init__(self, cache: ProfileCache) -> None:
        self.positions: dict[int, str] = {}
        self._cache = cache
        self._waiting: deque[_Committed] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, connection: Connection, batch: Batch, applied: Applied) -> None:
        """Take a batch that was just committed; waits for the disk when it is too far behind."""
        written, flushed = self._lsns(connection)
        self._waiting.append(_Committed(written, batch, applied))
        self._settle(flushed)
        if len(self._waiting) >= MOST:
            self.flush(connection)

    def flush(self, connection: Connection) -> None:
        """Wait until everything is on the disk, and let the cache show it."""
        if self._waiting:
            connection.execute(_FLUSH)
            self._settle(self._waiting[-1].lsn)

    def show(self, connection: Connection, positions: dict[int, str]) -> None:
        """Let the cache say where partitions stand that were just taken: who held them may not have come to it."""
        connection.execute(_FLUSH)
        self._cache.set_positions(positions)

    def forget(self) -> None:
        """Drop what waits: the connection is lost, and the database says what is true."""
        self._waiting.clear()
        self.positions.clear()

    def _lsns(self, connection: Connection) -> tuple[int, int]:
        row = connection.execute(_NOW).fetchone()
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def _settle(self, flushed: int) -> None:
        while self._waiting and self._waiting[0].lsn <= flushed:
            _, batch, applied = self._waiting.popleft()
            self._cache.write(
                applied.documents,
                [*((one, known.profile) for one, known in applied.identifiers.items()), *applied.moved],
                applied.merged,
                batch.positions,
            )
            self.positions |= batch.positions
