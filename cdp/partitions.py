"""Partitions of the big tables: made ahead, and dropped when retention or a window says so.

A partition is attached, not created in place: attaching takes a lock that lets inserts go on. Its foreign key
still needs one that profiles' writers hold, and whoever waits for such a lock holds up all that come after:
so each try waits a little only, and gives way between.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import psycopg
from psycopg import sql

EVENTS = "event_stream"
# How long each try may wait for its locks, in seconds: long batches let a short one never through.
TRIES = (0.1, 0.2, 0.5, 1.0, 2.0)
PAUSE = 0.2
# A process that stands still within a change gives way, too.
IDLE_SECONDS = 10
EPOCH = date(2000, 1, 3)


@dataclass(frozen=True, slots=True)
class Partition:
    """A child table and the days it holds, from `start` up to but not including `end`."""

    name: str
    start: date
    end: date


def partition_for(table: str, day: date, *, days: int) -> Partition:
    """Return the partition of `table` that holds `day`, where each holds `days` days."""
    start = EPOCH + timedelta(days=(day - EPOCH).days // days * days)
    return Partition(f"{table}_{start:%Y%m%d}", start, start + timedelta(days=days))


def existing(connection: psycopg.Connection, table: str) -> list[Partition]:
    """Return the partitions of `table`, oldest first."""
    rows = connection.execute(
        """
        SELECT child.relname, pg_get_expr(child.relpartbound, child.oid)
        FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
        WHERE inhparent = %s::regclass ORDER BY child.relname
        """,
        [table],
    ).fetchall()
    return [_parse(name, bound) for name, bound in rows]


def _parse(name: str, bound: str) -> Partition:
    # FOR VALUES FROM ('2026-11-23 00:00:00+00') TO ('2026-11-24 00:00:00+00')
    parts = bound.split("'")
    return Partition(name, _day(parts[1]), _day(parts[3]))


def _day(text: str) -> date:
    return datetime.fromisoformat(text).astimezone(UTC).date()


def ensure(connection: psycopg.Connection, table: str, *, days: int, today: date, ahead: int = 7) -> list[str]:
    """Make the partitions of `table` that are missing from `today` to `ahead` days on; return their names.

    Each is made in a transaction of its own, so it may be called at any time by any process.
    Existing partitions of another size are respected: only days that no partition holds are covered.
    Raises LockNotAvailable, which is an OperationalError, when others kept the locks.
    """
    made = []
    for offset in range(ahead + 1):
        day = today + timedelta(days=offset)
        if not _held(existing(connection, table), day):
            made += _gently(connection, lambda day=day: _make(connection, table, day, days))  # type: ignore[misc]
    return made


def _held(partitions: list[Partition], day: date) -> bool:
    return any(partition.start <= day < partition.end for partition in partitions)


def _gently(connection: psycopg.Connection, change: Callable[[], list[str]]) -> list[str]:
    """Make a change of tables in a transaction, waiting for locks only briefly, several times."""
    for attempt, seconds in enumerate(TRIES, 1):
        try:
            with connection.transaction():
                connection.execute(
                    sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{seconds * 1000:.0f}ms"))
                )
                connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
                return change()
        except psycopg.errors.LockNotAvailable:
            if attempt == len(TRIES):
                raise
            time.sleep(PAUSE)
    raise AssertionError("the last try returns or raises")


def _make(connection: psycopg.Connection, table: str, day: date, days: int) -> list[str]:
    # One maker at a time: a second one finds the day held.
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [table])
    there = existing(connection, table)
    if _held(there, day):
        return []
    partition = _fitted(partition_for(table, day, days=days), day, there)
    child, parent = sql.Identifier(partition.name), sql.Identifier(table)
    low, high = (sql.Literal(f"{bound:%Y-%m-%d} 00:00:00+00") for bound in (partition.start, partition.end))
    connection.execute(
        sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)").format(
            child, parent
        )
    )
    connection.execute(
        sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(parent, child, low, high)
    )
    return [partition.name]


def _fitted(wanted: Partition, day: date, held: list[Partition]) -> Partition:
    """Cut the wanted partition so that it overlaps none of those there are."""
    start = max([wanted.start, *(partition.end for partition in held if partition.end <= day)])
    end = min([wanted.end, *(partition.start for partition in held if partition.start > day)])
    return Partition(f"{wanted.name[:-8]}{start:%Y%m%d}", start, end)


def drop_before(
    connection: psycopg.Connection, table: str, day: date, *, may_drop: Callable[[Partition], bool] = lambda one: True
) -> list[str]:
    """Drop the partitions of `table` that end on or before `day` and that `may_drop` lets go; return their names.

    Raises LockNotAvailable when others kept the locks; what is left then goes with the next call.
    """
    dropped = []
    for partition in existing(connection, table):
        if partition.end <= day and may_drop(partition):
            dropped += _gently(connection, lambda name=partition.name: _drop(connection, table, name))  # type: ignore[misc]
    return dropped


def _drop(connection: psycopg.Connection, table: str, name: str) -> list[str]:
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [table])
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(name)))
    return [name]


def make_ahead(connection: psycopg.Connection, *, event_days: int, today: date) -> list[str]:
    """Make the coming week's partitions of events, `event_days` days long; return their names."""
    return ensure(connection, EVENTS, days=event_days, today=today)


def drop_old(
    connection: psycopg.Connection,
    *,
    event_days: int,
    today: date,
    may_drop: Callable[[Partition], bool] = lambda one: True,
) -> list[str]:
    """Drop the events that are older than `event_days` days (0: keep them for ever); return the partitions' names."""
    if not event_days:
        return []
    return drop_before(connection, EVENTS, today - timedelta(days=event_days), may_drop=may_drop)
