"""Partitions of the big tables: made ahead, and dropped when retention or a window says so.

A partition is attached, not created in place: attaching takes a lock that lets inserts go on.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import psycopg
from psycopg import sql

EVENTS = "event_stream"
DUPLICATES = "event_duplicate"
KEYS = {EVENTS: "ingested_at", DUPLICATES: "received_at"}
LOCK_TIMEOUT = "2s"
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
    """
    made = []
    for offset in range(ahead + 1):
        day = today + timedelta(days=offset)
        held = existing(connection, table)
        if not any(partition.start <= day < partition.end for partition in held):
            made.append(_make(connection, table, _fitted(partition_for(table, day, days=days), day, held)))
    return made


def _fitted(wanted: Partition, day: date, held: list[Partition]) -> Partition:
    """Cut the wanted partition so that it overlaps none of those there are."""
    start = max([wanted.start, *(partition.end for partition in held if partition.end <= day)])
    end = min([wanted.end, *(partition.start for partition in held if partition.start > day)])
    return Partition(f"{wanted.name[:-8]}{start:%Y%m%d}", start, end)


def _make(connection: psycopg.Connection, table: str, partition: Partition) -> str:
    child, parent = sql.Identifier(partition.name), sql.Identifier(table)
    low, high = (sql.Literal(f"{day:%Y-%m-%d} 00:00:00+00") for day in (partition.start, partition.end))
    with connection.transaction():
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT)))
        # One maker at a time: a second one finds the partition there.
        connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [table])
        if any(there.name == partition.name for there in existing(connection, table)):
            return partition.name
        connection.execute(
            sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)").format(
                child, parent
            )
        )
        connection.execute(
            sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(parent, child, low, high)
        )
    return partition.name


def drop_before(connection: psycopg.Connection, table: str, day: date) -> list[str]:
    """Drop the partitions of `table` that end on or before `day`; return their names.

    Detached concurrently first, so that no reader or writer waits; needs autocommit.
    """
    dropped = []
    for partition in existing(connection, table):
        if partition.end <= day:
            child = sql.Identifier(partition.name)
            connection.execute(
                sql.SQL("ALTER TABLE {} DETACH PARTITION {} CONCURRENTLY").format(sql.Identifier(table), child)
            )
            connection.execute(sql.SQL("DROP TABLE {}").format(child))
            dropped.append(partition.name)
    return dropped
