"""The archive: closed partitions of events as Parquet files in the storage `archive`, a file a (table, bucket).

A file counts from its `ArchiveFile` row on. Whoever is killed leaves at most a file that no row names, which the
next one to take the archive's lock deletes. A file is never changed: a rewrite is a new file, then the row, then
the old file's end. Whoever erases events deletes them in PostgreSQL first, commits, and calls `erase` then: what is
being archived meanwhile is waited for.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psycopg
import structlog
from django.conf import settings
from django.core.files import File
from django.core.files.storage import Storage, storages
from django.db import connection
from psycopg import sql

from cdp import parquet, partitions
from cdp.models import ArchiveFile
from cdp.partitions import Partition
from cdp.processing.identity import Identifier
from martech.lib import clock
from martech.lib.errors import RetryableError

if TYPE_CHECKING:
    import pyarrow as pa

# A batch writes into the partition of its beginning, and may take its time.
MARGIN = timedelta(hours=1)
# The advisory lock of whoever writes, rewrites or deletes files.
LOCK = 0x61726368
# A reader of CSV may be slow, and a storage too: nobody waits for these locks but the archive's own users.
OPTIONS = "-c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0"
READ_BYTES = 2**20

Advance = Callable[[int], object]
log = structlog.get_logger("martech.archive")


@dataclass(frozen=True, slots=True)
class Written:
    """A table that was archived: how many files were made of it now, and the events in them."""

    table: str
    files: int
    events: int


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure did: files written anew, events taken out, and events of others that had named the person."""

    files: int = 0
    removed: int = 0
    changed: int = 0


def storage() -> Storage:
    """Return where the files are."""
    return storages["archive"]


def archive_closed(*, now: datetime, advance: Advance = lambda events: None) -> list[Written]:
    """Archive every partition of events that takes no more of them; return what was written.

    May be killed, and called again, at any time. `advance` hears how many events were written.
    """
    parquet.arrow()
    written = []
    for partition in closed(now=now):
        if missing(partition.name):
            with _lock() as session:
                written.append(_archive(session, partition, advance))
    return written


def closed(*, now: datetime) -> list[Partition]:
    """Return the partitions of events that take no more of them, oldest first."""
    return [one for one in _standing() if end_of(one) + MARGIN <= now]


def missing(table: str) -> list[int]:
    """Return the buckets of a table that are not archived yet."""
    held = dict(ArchiveFile.objects.filter(table=table).values_list("bucket", "buckets"))
    return [bucket for bucket in range(_buckets(held.values())) if bucket not in held]


def _buckets(of_table: Iterable[int]) -> int:
    """Return into how many buckets a table goes: what was begun with one number goes on with it."""
    return next(iter(of_table), settings.ARCHIVE_BUCKETS)


def _standing() -> list[Partition]:
    connection.ensure_connection()
    return partitions.existing(connection.connection, partitions.EVENTS)


def start_of(partition: Partition) -> datetime:
    """Return a partition's first instant."""
    return datetime.combine(partition.start, time(), UTC)


def end_of(partition: Partition) -> datetime:
    """Return the first instant after a partition."""
    return datetime.combine(partition.end, time(), UTC)


@contextmanager
def _lock() -> Iterator[psycopg.Connection]:
    """Hold the archive for its writer, after clearing away what a killed one left; yields a connection of its own."""
    parameters = connection.get_connection_params()
    for ours in ("context", "cursor_factory"):
        parameters.pop(ours, None)
    parameters["options"] = f"{parameters.get('options', '')} {OPTIONS}".strip()
    with psycopg.connect(**parameters, autocommit=True) as session:
        session.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        _sweep()
        yield session


def _sweep() -> None:
    """Delete the files that no row names."""
    try:
        _, names = storage().listdir("")
    except FileNotFoundError:
        return
    known = set(ArchiveFile.objects.values_list("path", flat=True))
    for name in names:
        if name.startswith(f"{partitions.EVENTS}_") and name not in known:
            storage().delete(name)


def _archive(session: psycopg.Connection, partition: Partition, advance: Advance) -> Written:
    """Write the files of a table that are missing, in one pass over it."""
    table = partition.name
    wanted = missing(table)
    rows = list(ArchiveFile.objects.filter(table=table).values_list("buckets", flat=True))
    buckets = _buckets(rows)
    todo = iter(wanted)
    events = 0
    with session.cursor() as cursor, cursor.copy(_query(table, buckets, wanted)) as copied:
        for bucket, tables in _by_bucket(parquet.batches(copied, ("bucket",))):
            for empty in _up_to(todo, bucket):
                _write(partition, empty, buckets, [], advance)
            events += _write(partition, bucket, buckets, tables, advance)
    for empty in todo:
        _write(partition, empty, buckets, [], advance)
    log.info("events archived", table=table, files=len(wanted), events=events)
    return Written(table, len(wanted), events)


def _up_to(todo: Iterator[int], bucket: int) -> Iterator[int]:
    """Return the buckets before this one, which goes too."""
    for one in todo:
        if one == bucket:
            return
        yield one


def _query(table: str, buckets: int, wanted: Sequence[int]) -> sql.Composed:
    return sql.SQL(
        "COPY (SELECT (event.anchor_id % {buckets})::int, {columns} FROM {table} AS event"
        " LEFT JOIN cdp_identifier AS anchor ON anchor.id = event.anchor_id"
        " LEFT JOIN cdp_source AS source ON source.id = event.source_id"
        " WHERE event.anchor_id % {buckets} = ANY({wanted})"
        " ORDER BY 1, event.anchor_id, event.occurred_at, event.event_id)"
        " TO STDOUT (FORMAT csv, NULL '\\N')"
    ).format(
        buckets=sql.Literal(buckets),
        columns=sql.SQL(", ".join(asked for asked, _ in parquet.COLUMNS.values())),
        table=sql.Identifier(table),
        wanted=sql.Literal(list(wanted)),
    )


def _by_bucket(tables: Iterator[pa.Table]) -> Iterator[tuple[int, Iterator[pa.Table]]]:
    """Group tables that are in the order of their column `bucket`; as with itertools, one group at a time."""
    parts = (part for table in tables for part in _parts(table))
    for bucket, group in groupby(parts, key=lambda part: part[0]):
        yield bucket, (table for _, table in group)


def _parts(table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """Cut a table where its bucket changes."""
    compute = parquet.arrow().compute
    buckets = table["bucket"]
    plain = table.drop_columns(["bucket"])
    start = 0
    while start < table.num_rows:
        bucket = buckets[start].as_py()
        length = compute.sum(compute.equal(buckets, bucket)).as_py()
        yield bucket, plain.slice(start, length)
        start += length


def _write(partition: Partition, bucket: int, buckets: int, tables: Iterable[pa.Table], advance: Advance) -> int:
    """Write the file of a bucket and its row; return the events in it."""
    with _spool(tables, advance) as (spooled, rows):
        name = _name(partition.name, bucket, buckets)
        size, digest = _put(name, spooled, rows)
        ArchiveFile.objects.create(
            table=partition.name, bucket=bucket, buckets=buckets, path=name, start=start_of(partition),
            end=end_of(partition), rows=rows, size=size, sha256=digest, written_at=clock.now(),
        )  # fmt: skip
    return rows


def _name(table: str, bucket: int, buckets: int) -> str:
    return f"{table}-{bucket:04d}-of-{buckets:04d}-{secrets.token_hex(4)}.parquet"


@contextmanager
def _spool(tables: Iterable[pa.Table], advance: Advance = lambda events: None) -> Iterator[tuple[IO[bytes], int]]:
    """Write tables into a nameless local file, which ends with us; yields it and its rows."""
    with tempfile.TemporaryFile() as spooled:
        rows = 0
        with parquet.writer(spooled) as writer:
            for table in tables:
                writer.write_table(table)
                rows += table.num_rows
                advance(table.num_rows)
        yield spooled, rows


def _put(name: str, spooled: IO[bytes], rows: int) -> tuple[int, str]:
    """Bring a file into the storage, so that it is whole and stays; return its size and SHA-256."""
    size, digest = _digest(spooled)
    spooled.seek(0)
    place = storage()
    local = _local(place, name)
    wanted = name if local is None else f"{name}.part"
    saved = place.save(wanted, File(spooled, name=wanted))
    with place.open(saved, "rb") as stored:
        whole = _digest(stored) == (size, digest) and _rows(stored) == rows
    if not whole or saved != wanted:
        place.delete(saved)
        raise RetryableError(f"The storage `archive` gave back another file than {wanted}. Check its disk, try again.")
    if local is not None:
        _settle(local.with_name(f"{local.name}.part"), local)
    return size, digest


def _rows(stored: IO[bytes]) -> int:
    stored.seek(0)
    return parquet.count(stored)


def _digest(file: IO[bytes]) -> tuple[int, str]:
    file.seek(0)
    digest, size = hashlib.sha256(), 0
    while data := file.read(READ_BYTES):
        digest.update(data)
        size += len(data)
    return size, digest.hexdigest()


def _local(place: Storage, name: str) -> Path | None:
    """Return where a file is on this machine; None in a storage elsewhere, which takes a file whole or not at all."""
    try:
        return Path(place.path(name))
    except NotImplementedError:
        return None


def _settle(part: Path, final: Path) -> None:
    """Have the disk keep a file, then give it its name."""
    for path, change in ((part, lambda: part.replace(final)), (final.parent, lambda: None)):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        change()


def may_drop(partition: Partition) -> bool:
    """Tell whether retention may drop a partition: where events are archived, only one whose events all are."""
    if not settings.ARCHIVE_EVENTS:
        return True
    short = missing(partition.name) or _outgrown(partition.name)
    if short:
        log.warning("events kept beyond their days: not archived", table=partition.name, buckets=short,
                    hint="Run manage.py archive_events and see what it says.")  # fmt: skip
    return not short


def _outgrown(table: str) -> list[int]:
    """Return the buckets with more events in PostgreSQL than in their file, which the next run writes anew."""
    files = {file.bucket: file for file in ArchiveFile.objects.filter(table=table)}
    buckets = _buckets(file.buckets for file in files.values())
    query = sql.SQL("SELECT anchor_id %% %s, count(*) FROM {} GROUP BY 1").format(sql.Identifier(table))
    with connection.cursor() as cursor:
        cursor.execute(query, [buckets])
        short = [bucket for bucket, events in cursor.fetchall() if events > files[bucket].rows]
    ArchiveFile.objects.filter(table=table, bucket__in=short).delete()
    return short


def damaged(*, advance: Advance = lambda files: None) -> list[str]:
    """Read every file and say which are not as they were written; `advance` hears how many files were read."""
    found = []
    for file in files():
        try:
            with _open(file) as stored:
                if _digest(stored) != (file.size, file.sha256):
                    found.append(f"{file.path} is not as it was written. Restore it from a backup.")
        except FileNotFoundError:
            found.append(f"{file.path} is missing. Restore it from a backup.")
        advance(1)
    return found


def files(*, anchors: Iterable[int] | None = None, dropped_only: bool = False) -> list[ArchiveFile]:
    """Return the files that may hold events of some anchors (None: of anybody), oldest table first.

    With `dropped_only`, of those tables only that PostgreSQL has no more.
    """
    found = ArchiveFile.objects.order_by("start", "table", "bucket")
    if dropped_only:
        found = found.exclude(table__in=[one.name for one in _standing()])
    wanted = None if anchors is None else frozenset(anchors)
    return [file for file in found if wanted is None or any(one % file.buckets == file.bucket for one in wanted)]


def read(
    file: ArchiveFile, *, anchors: Collection[int] | None = None, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Return a file's events as tables of pyarrow, a row group at a time, by anchor and time.

    `anchors` (None: any) may be a `range`, which costs nothing.
    """
    with _open(file) as stored:
        yield from parquet.tables(stored, anchors=anchors, columns=columns)


def _open(file: ArchiveFile) -> IO[bytes]:
    try:
        return storage().open(file.path, "rb")
    except FileNotFoundError:
        # Written anew since its row was read.
        file.refresh_from_db()
        return storage().open(file.path, "rb")


def events(*, anchors: Iterable[int], dropped_only: bool = False) -> Iterator[dict[str, Any]]:
    """Return the archived events of some anchors as dicts by column; see `parquet.COLUMNS`. JSON is text."""
    wanted = frozenset(anchors)
    for file in files(anchors=wanted, dropped_only=dropped_only):
        for table in read(file, anchors=wanted):
            yield from table.to_pylist()


def groups(*, anchors: Collection[int] | None = None) -> Iterator[tuple[int, str]]:
    """Return the anchor and the group id of each archived group call, of tables that PostgreSQL has no more."""
    for file in files(anchors=anchors, dropped_only=True):
        for table in read(file, anchors=anchors, columns=("anchor_id", "event_type", "extra")):
            yield from parquet.groups(table)


def erase(
    *,
    anchors: Iterable[int],
    identifiers: Iterable[Identifier] = (),
    groups: Mapping[str, str] | None = None,
    mentioned: Callable[[frozenset[int]], object] = lambda anchors: None,
) -> Erased:
    """Take the events of some anchors out of every file, and the values of `identifiers` out of others' events.

    Those are the events that have one of them among their identifiers, as in PostgreSQL; what else may say a value
    there says it in the person's own state too; and the calls of the accounts `groups`, by group id, which get another
    one where it is given. Events must be gone from PostgreSQL, committed, before: a table that is
    archived after this has none of them. `mentioned` hears of whom (anchors) the events of others are that a file has,
    before it is written anew. Without identifiers only the files of the anchors are looked at. May be killed and called
    again.
    """
    gone, named = frozenset(anchors), sorted({one for one in identifiers if one.value})
    total = Erased()
    with _lock():
        for file in files(anchors=None if named else gone):
            removed, changed = _rewrite(file, lambda table: _without(table, gone, named, groups or {}), mentioned)
            total = Erased(total.files + bool(removed or changed), total.removed + removed, total.changed + changed)
    return total


Change = Callable[["pa.Table"], tuple["pa.Table", int, list[int]]]


def _without(
    table: pa.Table, gone: frozenset[int], named: Sequence[Identifier], groups: Mapping[str, str]
) -> tuple[pa.Table, int, list[int]]:
    """Return a table without a person, the rows that went, and the anchors of those that were changed."""
    pa = parquet.arrow()
    theirs = pa.compute.is_in(table["anchor_id"], value_set=pa.array(sorted(gone), pa.int64()))
    left = table.filter(pa.compute.invert(theirs))
    removed = table.num_rows - left.num_rows
    cleaned, changed = parquet.redacted(left, named, groups) if named else (left, [])
    return cleaned, removed, changed


def _rewrite(file: ArchiveFile, change: Change, mentioned: Callable[[frozenset[int]], object]) -> tuple[int, int]:
    """Write a file anew where `change` changes something of it; return the events it took out and changed."""
    removed, changed = 0, list[int]()
    with _open(file) as stored:
        for table in parquet.tables(stored):
            _, out, theirs = change(table)
            removed += out
            changed += theirs
    if others := frozenset(changed) - {parquet.NOBODY}:
        mentioned(others)
    if removed or changed:
        with _open(file) as stored, _spool(change(table)[0] for table in parquet.tables(stored)) as (spooled, rows):
            name = _name(file.table, file.bucket, file.buckets)
            size, digest = _put(name, spooled, rows)
            old, file.path = file.path, name
            file.rows, file.size, file.sha256, file.written_at = rows, size, digest, clock.now()
            file.save(update_fields=["path", "rows", "size", "sha256", "written_at"])
        storage().delete(old)
    return removed, len(changed)
