"""Event rows found by message id: by what duplicates are known by, or by reading everything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection
from psycopg import sql

from cdp import partitions
from cdp.processing.decode import id_hash
from cdp.processing.pipeline import REUSED

_KEYS = sql.SQL("SELECT id_hash, payload_hash, ingested_at FROM event_duplicate WHERE id_hash = ANY(%s::uuid[])")
_SELECT = sql.SQL(
    "SELECT event_id, ingested_at, profile_id, anchor_id, identifiers::text, event_type, name, properties::text,"
    " context::text, source_id, message_id, occurred_at, original_timestamp, received_at, flags, log_partition,"
    " log_position, trace_parent FROM {table} WHERE "
)
# All rows of one batch have one time, which an index finds.
_OF_BATCH = _SELECT.format(table=sql.Identifier("event_stream")) + sql.SQL(
    "ingested_at = %s AND source_id = %s AND message_id = ANY(%s)"
)
# No index: each partition is read to its end.
_OF_ANY = sql.SQL("source_id = ANY(%s) AND (message_id = %s OR (message_id LIKE %s AND %s = ANY(flags)))")
# What the core makes of an id that was used again: its beginning, and a hash of the payload.
_AGAIN = re.compile(r"(.*)#[0-9a-f]{16}", re.DOTALL)
KEPT_OF_REUSED = 200


class Row(NamedTuple):
    """A row of the event stream; JSON is text."""

    event_id: int
    ingested_at: datetime
    profile_id: UUID | None
    anchor_id: int
    identifiers: str
    event_type: str
    name: str
    properties: str
    context: str
    source_id: int
    message_id: str
    occurred_at: datetime
    original_timestamp: str | None
    received_at: datetime
    flags: list[str]
    log_partition: int | None
    log_position: str | None
    trace_parent: str | None


def remembered(message_id: str, sources: Iterable[int]) -> list[Row]:
    """Find the events by the keys of duplicates, which know when their batch was written."""
    rows = _by_keys(message_id, sources)
    original = _AGAIN.fullmatch(message_id)
    if not rows and original:
        rows = [row for row in _by_keys(original[1], sources) if row.message_id == message_id]
    return rows


def _by_keys(message_id: str, sources: Iterable[int]) -> list[Row]:
    owners = {UUID(bytes=id_hash(source_id, message_id)): source_id for source_id in sources}
    keys = _rows(_KEYS, [list(owners)])
    names: dict[int, set[str]] = {}
    for hashed, payload_hash, _ in keys:
        names.setdefault(owners[hashed], {message_id}).add(_name_of_reused(message_id, payload_hash))
    batches = sorted({(at, owners[hashed]) for hashed, _, at in keys})
    found = [Row(*row) for at, owner in batches for row in _rows(_OF_BATCH, [at, owner, sorted(names[owner])])]
    return sorted(found, key=lambda row: (row.ingested_at, row.event_id))


def _name_of_reused(message_id: str, payload_hash: int) -> str:
    return f"{message_id[:KEPT_OF_REUSED]}#{payload_hash & (2**64 - 1):016x}"


def searched(message_id: str, sources: Iterable[int]) -> tuple[list[Row], date | None]:
    """Read the event stream, newest partition first, until the id is found; return the first day looked into."""
    connection.ensure_connection()
    again = re.sub(r"([\\%_])", r"\\\1", message_id[:KEPT_OF_REUSED]) + "#%"
    values = [list(sources), message_id, again, REUSED]
    back_to = None
    for partition in reversed(partitions.existing(connection.connection, partitions.EVENTS)):
        back_to = partition.start
        if found := _rows(_SELECT.format(table=sql.Identifier(partition.name)) + _OF_ANY, values):
            return sorted((Row(*row) for row in found), key=lambda row: row.event_id), back_to
    return [], back_to


def _rows(query: sql.SQL | sql.Composed, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return cursor.fetchall()
