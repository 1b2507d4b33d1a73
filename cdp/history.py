"""The whole history of events, from tables and archive, as of one snapshot.

Processors that run meanwhile do no harm. Each event is read once: from its table where that still stands, else from
the archive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import msgspec
import psycopg
from django.db import connection
from psycopg import sql
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus

from cdp import archive, parquet, partitions
from cdp.models import ArchiveFile
from cdp.processing import store
from cdp.processing.decode import Message
from cdp.processing.identity import NOBODY, Identifier
from cdp.processing.rules import Rules
from cdp.processing.shadow import Row
from martech.lib import clock

# Reading may take long, and PostgreSQL waits for it.
OPTIONS = "-c idle_in_transaction_session_timeout=0 -c default_transaction_read_only=on -c timezone=UTC"
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which events are replayed: `since` is included, `until` is not; "" and None mean any; `anchors` by row id."""

    source_id: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    event: str = ""
    anchors: frozenset[int] | None = None


@dataclass(slots=True)
class Reading:
    """A snapshot: one connection, and which tables and files hold the events of it."""

    session: psycopg.Connection[Any]
    rules: Rules
    tables: list[partitions.Partition]
    files: list[ArchiveFile]
    # The database's clock (µs).
    now_us: int


@contextmanager
def snapshot() -> Iterator[Reading]:
    """Hold a snapshot of everything, on a connection of its own."""
    parameters = connection.get_connection_params()
    for ours in ("context", "cursor_factory"):
        parameters.pop(ours, None)
    parameters["options"] = f"{parameters.get('options', '')} {OPTIONS}".strip()
    with psycopg.connect(**parameters) as session:
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        # Before the snapshot is taken: no table that it sees can be dropped then.
        session.execute("LOCK TABLE event_stream IN ACCESS SHARE MODE")
        tables = partitions.existing(session, partitions.EVENTS)
        files = _archived(session, {one.name for one in tables})
        rules = Rules.load(session, store.definition_version(session))
        yield Reading(session, rules, tables, files, store.database_now_us(session))


def _archived(session: psycopg.Connection[Any], standing: set[str]) -> list[ArchiveFile]:
    fields = [one.attname for one in ArchiveFile._meta.concrete_fields]
    columns = sql.SQL(", ").join(map(sql.Identifier, fields))
    held = session.execute(sql.SQL("SELECT {} FROM cdp_archivefile ORDER BY start, bucket").format(columns)).fetchall()
    files = [ArchiveFile(**dict(zip(fields, row, strict=True))) for row in held]
    return [one for one in files if one.table not in standing]


def starts(reading: Reading) -> datetime | None:
    """Return from when on every event is there; None where nothing is."""
    spans = {(archive.start_of(one), archive.end_of(one)) for one in reading.tables}
    spans |= {(one.start, one.end) for one in reading.files}
    start = None
    for begin, end in sorted(spans, reverse=True):
        if start is not None and end < start:
            break
        start = begin
    return start


def last_erasure(reading: Reading) -> datetime | None:
    """Return when a person's erasure was last asked for, None where it never was."""
    row = reading.session.execute("SELECT max(requested_at) FROM cdp_erasure").fetchone()
    return row[0] if row else None


def ranges(session: psycopg.Connection[Any], per_pass: int) -> list[tuple[int, int]]:
    """Return the passes: row ids of identifiers after the first up to the second number."""
    found = session.execute(
        "SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS number FROM cdp_identifier) AS numbered"
        " WHERE number %% %s = 0 ORDER BY id",
        [per_pass],
    ).fetchall()
    ends = [row[0] for row in found]
    return list(zip([-1, *ends], [*ends, 2**63 - 1], strict=True))


def stream(
    session: psycopg.Connection[Any], select: str, values: Sequence[Any] | Mapping[str, Any]
) -> Iterator[tuple[Any, ...]]:
    """Return the rows of a query, some thousands at a time."""
    with session.cursor(name="replay") as cursor:
        cursor.execute(select.encode(), values)
        # Taking them one by one costs psycopg 2 µs a row.
        while some := cursor.fetchmany(ROWS):
            yield from some


def names(
    session: psycopg.Connection[Any], low: int, high: int, members: frozenset[int] | None = None
) -> dict[int, Identifier]:
    """Return the identifiers of a range of row ids, or those of the row ids `members`."""
    select = "SELECT id, namespace, value FROM cdp_identifier WHERE "
    if members is None:
        found = session.execute(f"{select} id > %s AND id <= %s".encode(), [low, high])
    else:
        found = session.execute(f"{select} id = ANY(%s)".encode(), [sorted(members)])
    return {row_id: Identifier(namespace, value) for row_id, namespace, value in found}


# Of an event, in the order of `Row`; what is seldom asked for is read where it is.
_COLUMNS = """
anchor_id, event_type, name, CASE WHEN {} THEN properties END, source_id, message_id,
(extract(epoch FROM occurred_at) * 1000000)::bigint, (extract(epoch FROM received_at) * 1000000)::bigint,
CASE WHEN jsonb_array_length(identifiers) > 1 THEN identifiers END,
CASE WHEN event_type = 'group' THEN extra END, CASE WHEN event_type = 'group' THEN context END
"""
# Rows that are given at a time.
ROWS = 5000


def rows(reading: Reading, low: int, high: int, wanted: Filter) -> Iterator[tuple[list[Row], bool]]:
    """Return the events of a range of anchors, some thousands at a time, and whether they are from the archive."""
    for table in reading.tables:
        for some in _of_table(reading, table.name, low, high, wanted):
            yield some, False
    for file in reading.files:
        for some in _of_file(file, low, high, wanted):
            yield some, True


def _of_table(reading: Reading, table: str, low: int, high: int, wanted: Filter) -> Iterator[list[Row]]:
    lines = _lines(reading.session, query(table, low, high, wanted, reading.rules.folder.reading))
    while some := [_row(line) for line in islice(lines, ROWS)]:
        yield some


def _lines(session: psycopg.Connection[Any], copy: sql.Composed) -> Iterator[bytes]:
    """Return what a COPY TO STDOUT gives, line by line, from libpq itself: psycopg's own way costs 4 µs a line."""
    connected = session.pgconn
    begun = connected.exec_(copy.as_bytes(session))
    if begun.status != ExecStatus.COPY_OUT:
        raise error_from_result(begun)
    while True:
        size, data = connected.get_copy_data(0)
        if size < 0:
            break
        yield bytes(data)
    while (ended := connected.get_result()) is not None:
        if ended.status != ExecStatus.COMMAND_OK:
            raise error_from_result(ended)


def query(table: str, low: int, high: int, wanted: Filter, of_properties: Sequence[tuple[str, str]]) -> sql.Composed:
    """Return the COPY by which a table's events of a range of anchors are read.

    Properties come with the events of the types and names `of_properties` alone, and where they are traits.
    """
    named = [("identify", ""), ("group", ""), *of_properties]
    read = sql.SQL(" OR ").join(
        sql.SQL("(event_type = {0} OR {0} = '') AND (name = {1} OR {1} = '')").format(*map(sql.Literal, one))
        for one in named
    )
    return sql.SQL("COPY (SELECT {} FROM {} WHERE {}) TO STDOUT (NULL '')").format(
        sql.SQL(_COLUMNS).format(read), sql.Identifier(table),
        sql.SQL(" AND ").join(_conditions(low, high, wanted)),
    )  # fmt: skip


def _conditions(low: int, high: int, wanted: Filter) -> list[sql.Composable]:
    found: list[sql.Composable] = []
    if wanted.anchors is not None:
        found.append(sql.SQL("anchor_id = ANY({})").format(sql.Literal(sorted(wanted.anchors))))
    else:
        found.append(sql.SQL("anchor_id > {} AND anchor_id <= {}").format(sql.Literal(low), sql.Literal(high)))
    for condition, value in (
        ("source_id = {}", wanted.source_id),
        ("occurred_at >= {}", wanted.since),
        ("occurred_at < {}", wanted.until),
        ("{} IN (name, event_type)", wanted.event or None),
    ):
        if value is not None:
            found.append(sql.SQL(condition).format(sql.Literal(value)))
    return found


def _row(line: bytes) -> Row:
    fields = line[:-1].split(b"\t")
    if b"\\" in line:
        fields = [_text(one) for one in fields]
    anchor, kind, name, properties, source, message_id, occurred, received, identifiers, extra, context = fields
    message = Message(
        int(source), kind.decode(), name.decode(), message_id.decode(), NOBODY, [], "", properties, context or b"{}",
        extra, int(occurred), None, int(received), (), b"", 0,
    )  # fmt: skip
    return Row(int(anchor), identifiers, message)


def _text(field_: bytes) -> bytes:
    """Return a field of COPY as it was."""
    return _ESCAPES.sub(lambda found: _ESCAPED.get(found[1], found[1]), field_)


_ESCAPES = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPED = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_OF_FILE = (
    "anchor_id", "event_type", "name", "properties", "source_id", "message_id", "occurred_at", "received_at",
    "identifiers", "extra", "context",
)  # fmt: skip


def _of_file(file: ArchiveFile, low: int, high: int, wanted: Filter) -> Iterator[list[Row]]:
    anchors = wanted.anchors if wanted.anchors is not None else range(low + 1, high + 1)
    for table in archive.read(file, anchors=anchors, columns=_OF_FILE):
        some = [
            Row(row["anchor_id"], _several(row["identifiers"]), _archived_message(row)) for row in parquet.plain(table)
        ]
        yield [row for row in some if _fits(row.message, wanted)]


def _archived_message(row: dict[str, Any]) -> Message:
    return Message(
        source_id=row["source_id"], type=row["event_type"], name=row["name"], message_id=row["message_id"],
        anchor=NOBODY, identifiers=[], alias_of="", properties=row["properties"].encode(),
        context=row["context"].encode(),
        extra=(row["extra"] or "").encode(), occurred_us=row["occurred_at"], original_timestamp=None,
        received_us=row["received_at"], flags=(), id_hash=b"", payload_hash=0,
    )  # fmt: skip


def _several(identifiers: list[dict[str, str]]) -> bytes:
    pairs = [[one["namespace"], one["value"]] for one in identifiers]
    return _encode(pairs) if len(pairs) > 1 else b""


def _fits(message: Message, wanted: Filter) -> bool:
    return (
        (wanted.source_id is None or message.source_id == wanted.source_id)
        and (wanted.since is None or message.occurred_us >= clock.to_us(wanted.since))
        and (wanted.until is None or message.occurred_us < clock.to_us(wanted.until))
        and (not wanted.event or wanted.event in (message.name, message.type))
    )
