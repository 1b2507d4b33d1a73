"""Messages that came before: their keys, kept in generations of bounded size for a bounded time.

A generation is a table `event_duplicate_N` of its own. One is open and takes the keys of all processors; it is
sealed when it is old or large, and never changes again. So the index that grows stays small, what is past the
window goes by dropping a table, and a sealed generation can be stood for by a filter in memory: its index is asked
only about what the filter has probably seen.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import psycopg
from psycopg import sql
from rbloom import Bloom

from cdp.processing.copying import copy, instant, number
from cdp.processing.store import Connection, Raced

TABLE = "event_duplicate"
# Held shared by every batch until it commits, and alone while a generation is sealed: two batches under way at one
# time always keep their keys in one table, whose unique index lets only one of them have a key.
LOCK = 0x6D617275
OPEN_FOR = timedelta(hours=6)
# 20 million keys; their index of about the same size is what a batch's random look-ups must find in memory.
OPEN_BYTES = 2**30
# One look-up in a hundred is for nothing; 1.2 bytes a key.
FALSE_POSITIVES = 0.01
SEAL_SECONDS = 2


class Key(NamedTuple):
    """What a message is recognised by: 16 bytes of source and message id, and 8 of what it says as a number."""

    id_hash: bytes
    payload_hash: int


class Generation(NamedTuple):
    """A table of keys. `keys` is their number once it is sealed and counted."""

    number: int
    opened_at: datetime
    sealed_at: datetime | None
    keys: int | None

    @property
    def table(self) -> sql.Identifier:
        """The name of its table."""
        return sql.Identifier(f"{TABLE}_{self.number}")


def hold(connection: Connection) -> None:
    """Keep the open generation open until the transaction ends; called outside of its savepoints."""
    connection.execute("SELECT pg_advisory_xact_lock_shared(%s, 0)", [LOCK])


def generations(connection: Connection) -> list[Generation]:
    """Return all generations, oldest first; the last one is open."""
    rows = connection.execute("SELECT id, opened_at, sealed_at, keys FROM cdp_duplicategeneration ORDER BY id")
    return [Generation(*row) for row in rows.fetchall()]


class Window:
    """The messages that are remembered, for one process: look-ups, and filters that save most of them.

    `seen` and `keep` are called in a batch's transaction after `hold`, `learn` by another thread over another
    connection.
    """

    def __init__(self) -> None:
        # By number and time of sealing: after a failover a number may stand for another content.
        self._filters: dict[tuple[int, datetime | None], Bloom] = {}
        self._lock = threading.Lock()

    def seen(self, connection: Connection, hashes: Sequence[bytes]) -> dict[bytes, set[int]]:
        """Return which id hashes are known, each with its payload hashes."""
        known: dict[bytes, set[int]] = {}
        try:
            for generation in generations(connection):
                filter_ = self._filters.get((generation.number, generation.sealed_at))
                asked = hashes if filter_ is None else [one for one in hashes if one in filter_]
                for id_hash, payload_hash in _look_up(connection, generation, asked) if asked else ():
                    known.setdefault(id_hash.bytes, set()).add(payload_hash)
        except psycopg.errors.UndefinedTable as error:
            raise Raced("A generation of duplicates was dropped meanwhile.") from error
        return known

    def keep(self, connection: Connection, keys: Iterable[Key], now_us: int) -> None:
        """Remember keys in the open generation; Raced when another process kept one of them first."""
        at = instant(now_us)
        rows = ((one.id_hash.hex().encode(), number(one.payload_hash), at) for one in keys)
        open_ = open_generation(connection)
        statement = sql.SQL("COPY {} (id_hash, payload_hash, ingested_at) FROM STDIN").format(open_.table)
        try:
            copy(connection, statement.as_string(connection), rows)
        except psycopg.errors.UniqueViolation as error:
            raise Raced("Another process took one of the batch's messages in.") from error

    def learn(self, connection: Connection) -> bool:
        """Read one sealed generation into a filter; False when there was none to read."""
        held = generations(connection)
        with self._lock:
            for gone in self._filters.keys() - {(one.number, one.sealed_at) for one in held}:
                del self._filters[gone]
        unread = [one for one in held if one.keys is not None and (one.number, one.sealed_at) not in self._filters]
        if not unread:
            return False
        # The newest first: retries come soon.
        generation = unread[-1]
        self._filters[generation.number, generation.sealed_at] = _filter_of(connection, generation)
        return True

    @property
    def filtered(self) -> int:
        """How many generations have a filter."""
        return len(self._filters)


def _look_up(connection: Connection, generation: Generation, hashes: Sequence[bytes]) -> list[tuple[UUID, int]]:
    statement = sql.SQL("SELECT id_hash, payload_hash FROM {} WHERE id_hash = ANY(%s::uuid[])")
    array = "{" + ",".join([one.hex() for one in hashes]) + "}"
    # Prepared: planning for each array anew weighs every key in it, and may choose to read the whole table.
    return connection.execute(statement.format(generation.table), [array], prepare=True).fetchall()


def _filter_of(connection: Connection, generation: Generation) -> Bloom:
    found = Bloom(max(1, generation.keys or 0), FALSE_POSITIVES)
    statement = sql.SQL("COPY {} (id_hash) TO STDOUT (FORMAT binary)").format(generation.table)
    with connection.cursor() as cursor, cursor.copy(statement) as rows:
        # A row is its number of fields, the field's length and the field; what comes before and after is shorter.
        found.update(bytes(row[-16:]) for row in rows)
    return found


def open_generation(connection: Connection) -> Generation:
    """Return the generation that takes keys, within the transaction of a batch; makes the first one."""
    rows = connection.execute(
        "SELECT id, opened_at, sealed_at, keys FROM cdp_duplicategeneration WHERE sealed_at IS NULL"
    ).fetchall()
    if rows:
        return Generation(*rows[0])
    try:
        return _open(connection)
    except psycopg.errors.UniqueViolation as error:
        raise Raced("Another process made the first generation of duplicates.") from error


def _open(connection: Connection) -> Generation:
    row = connection.execute(
        "INSERT INTO cdp_duplicategeneration (opened_at) VALUES (clock_timestamp())"
        " RETURNING id, opened_at, sealed_at, keys"
    ).fetchone()
    generation = Generation(*row)  # type: ignore[misc]  # an INSERT returns its row
    connection.execute(
        sql.SQL("CREATE TABLE {} (PRIMARY KEY (id_hash, payload_hash)) INHERITS ({})").format(
            generation.table, sql.Identifier(TABLE)
        )
    )
    return generation


def seal(connection: Connection, *, older_than: timedelta = OPEN_FOR, larger_than: int = OPEN_BYTES) -> bool:
    """Seal the open generation if it is old or large, and open the next one; False if it is not, or in use too long.

    Any process may call this at any time, over a connection without a transaction.
    """
    if not _is_due(connection, older_than, larger_than):
        return False
    try:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{SEAL_SECONDS}s'")
            # All processors wait meanwhile: one that stands still here must not hold them up.
            connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{SEAL_SECONDS}s'")
            connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", [LOCK])
            if not _is_due(connection, older_than, larger_than):
                return False
            connection.execute(
                "UPDATE cdp_duplicategeneration SET sealed_at = clock_timestamp() WHERE sealed_at IS NULL"
            )
            _open(connection)
            return True
    except psycopg.errors.LockNotAvailable:
        return False


def _is_due(connection: Connection, older_than: timedelta, larger_than: int) -> bool:
    row = connection.execute(
        "SELECT (clock_timestamp() - opened_at >= %s OR pg_relation_size(to_regclass('event_duplicate_' || id)) > %s)"
        " AND pg_relation_size(to_regclass('event_duplicate_' || id)) > 0"
        " FROM cdp_duplicategeneration WHERE sealed_at IS NULL",
        [older_than, larger_than],
    ).fetchone()
    return bool(row and row[0])


def count(connection: Connection) -> None:
    """Count the keys of the sealed generations that were not counted yet."""
    for generation in generations(connection):
        if generation.sealed_at is not None and generation.keys is None:
            connection.execute(
                sql.SQL("UPDATE cdp_duplicategeneration SET keys = (SELECT count(*) FROM {}) WHERE id = %s").format(
                    generation.table
                ),
                [generation.number],
            )


def past(held: Sequence[Generation], *, before: datetime, most: int) -> list[Generation]:
    """Return the generations that were sealed before a time, or that `most` newer keys make superfluous."""
    kept = 0
    gone = []
    for generation in reversed(held):
        if generation.sealed_at is None:
            continue
        if generation.sealed_at < before or kept >= most:
            gone.append(generation)
        kept += generation.keys or 0
    return gone[::-1]


def forget(connection: Connection, gone: Sequence[Generation]) -> None:
    """Have no batch from now on ask these generations; `sweep` drops their tables."""
    connection.execute(
        "DELETE FROM cdp_duplicategeneration WHERE id = ANY(%s)", [[generation.number for generation in gone]]
    )


def sweep(connection: Connection) -> list[str]:
    """Drop the tables of forgotten generations and return their names; one that a batch still reads goes later."""
    children = connection.execute(
        "SELECT relname::text FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
        " WHERE inhparent = to_regclass(%s)", [TABLE]
    ).fetchall()  # fmt: skip
    known = {f"{TABLE}_{one.number}" for one in generations(connection)}
    return [name for (name,) in children if name not in known and _dropped(connection, name)]


def _dropped(connection: Connection, name: str) -> bool:
    try:
        with connection.transaction():
            connection.execute("SET LOCAL lock_timeout = '200ms'")
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(name)))
            return True
    except psycopg.errors.LockNotAvailable:
        return False
