"""All SQL of the core: reading what a batch needs, and writing what it changed, set by set.

Every function works inside the transaction of the connection it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import psycopg
from psycopg import sql

from cdp.processing import registers
from cdp.processing.clusters import DEFAULT, Ruleset
from cdp.processing.copying import NULL, bytea, copy, escaped, instant, number, text
from cdp.processing.decode import Message
from cdp.processing.identity import Identifier
from cdp.processing.people import BLOCKED, Delta, Person
from cdp.processing.policies import Policy
from cdp.processing.traits import Definition
from martech.lib import clock
from martech.lib.errors import RetryableError

Connection = psycopg.Connection[Any]
encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode
# "rules" in ASCII.
RULES_LOCK = 0x72756C6573


class StalePosition(RetryableError):
    """Another process committed this part of the log: drop the batch and read on from the checkpoint."""

    code = "stale_position"


class Raced(RetryableError):
    """Another process changed who is who between our look-up and its use: roll back and do the batch again."""

    code = "raced"


class SourceRow(NamedTuple):
    """A source as its row says."""

    kind: str
    rules: dict[str, Any]


def lock_positions(connection: Connection, log: str, expected: dict[int, tuple[str, int]]) -> None:
    """Lock the checkpoints of a batch; StalePosition when one has not the position and epoch it was read with."""
    rows = connection.execute(
        "SELECT partition, position, epoch FROM cdp_checkpoint WHERE log = %s AND partition = ANY(%s)"
        " ORDER BY partition FOR UPDATE",
        [log, sorted(expected)],
    ).fetchall()
    found = {partition: (position, epoch) for partition, position, epoch in rows}
    for partition, wanted in expected.items():
        if found.get(partition) != wanted:
            raise StalePosition(
                f"Partition {partition} is at {found.get(partition)}, not at {wanted}: another process took it."
            )


def show_positions(connection: Connection, log: str, done_us: dict[int, int]) -> None:
    """Show that partitions have a living processor, and the time (µs, 0: unknown) before which all is processed."""
    connection.execute(
        "UPDATE cdp_checkpoint SET updated_at = now(), done_at = coalesce(to_timestamp(nullif(us, 0) / 1e6), done_at)"
        " FROM unnest(%s::int[], %s::bigint[]) AS done (number, us) WHERE log = %s AND partition = number",
        [list(done_us), list(done_us.values()), log],
    )


def database_now_us(connection: Connection) -> int:
    """Return the database's clock in microseconds since 1970: one clock for all processors."""
    row = connection.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").fetchone()
    return int(row[0]) if row else clock.now_us()


def move_positions(connection: Connection, log: str, positions: dict[int, str], events: dict[int, int]) -> None:
    """Write the new positions, in the transaction of the batch; what was found out at the old ones is over."""
    partitions = sorted(positions)
    connection.execute(
        "UPDATE cdp_checkpoint SET position = new.position, events = cdp_checkpoint.events + new.events,"
        " updated_at = now(), crashes = 0, trial = NULL"
        " FROM unnest(%s::int[], %s::text[], %s::bigint[]) AS new (partition, position, events)"
        " WHERE cdp_checkpoint.log = %s AND cdp_checkpoint.partition = new.partition",
        [partitions, [positions[one] for one in partitions], [events.get(one, 0) for one in partitions], log],
    )


def definition_version(connection: Connection) -> int:
    """Return the number that every change of a definition or source raises."""
    row = connection.execute("SELECT version FROM cdp_definitionversion").fetchone()
    return int(row[0]) if row else 0


def definitions(connection: Connection) -> list[Definition]:
    """Return the computed traits to fold."""
    rows = connection.execute(
        "SELECT id, name, kind, event_type, event_name, options::text, version"
        " FROM cdp_traitdefinition WHERE enabled ORDER BY id"
    ).fetchall()
    return [
        Definition(number, name, kind, event_type, event_name, _decode(options), version)
        for number, name, kind, event_type, event_name, options, version in rows
    ]


def merge_policies(connection: Connection) -> list[Policy]:
    """Return the merge policies of given traits."""
    rows = connection.execute("SELECT trait, policy, sources, version FROM cdp_mergepolicy ORDER BY trait").fetchall()
    return [Policy(trait, policy, tuple(ids), version) for trait, policy, ids, version in rows]


def identity_rules(connection: Connection) -> Ruleset:
    """Return the rules of who is who that count now."""
    row = connection.execute(
        "SELECT version, namespaces::text FROM cdp_identityrules WHERE status <> 'draft' ORDER BY version DESC LIMIT 1"
    ).fetchone()
    return Ruleset.of(row[0], _decode(row[1])) if row else DEFAULT


def hold_rules(connection: Connection) -> None:
    """Let nobody change the rules of who is who until this transaction ends: a change waits for those at work."""
    connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", [RULES_LOCK])


def change_rules(connection: Connection) -> None:
    """Let nobody be at work under what was true before this transaction, nor remember it afterwards."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [RULES_LOCK])
    connection.execute("UPDATE cdp_definitionversion SET version = version + 1")


def any_blocked(connection: Connection, profiles: Iterable[UUID]) -> bool:
    """Tell whether one of these profiles is marked as standing for nobody."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM customer_profiles WHERE id = ANY(%s) AND standing = %s)", [list(profiles), BLOCKED]
    ).fetchone()
    return bool(row and row[0])


def sources(connection: Connection) -> dict[int, SourceRow]:
    """Return all sources by id."""
    rows = connection.execute("SELECT id, kind, rules::text FROM cdp_source")
    return {source_id: SourceRow(kind, _decode(rules)) for source_id, kind, rules in rows}


def find_identifiers(
    connection: Connection, identifiers: Iterable[Identifier]
) -> dict[Identifier, tuple[int, UUID, bool]]:
    """Return the row id and profile of the identifiers that exist, and whether they stand for nobody."""
    wanted = sorted(identifiers)
    rows = connection.execute(
        "SELECT i.id, i.namespace, i.value, i.profile_id, p.standing = %s FROM cdp_identifier i"
        " JOIN unnest(%s::text[], %s::text[]) AS wanted (namespace, value)"
        " ON i.namespace = wanted.namespace AND i.value = wanted.value JOIN customer_profiles p ON p.id = i.profile_id",
        [BLOCKED, [one.namespace for one in wanted], [one.value for one in wanted]],
    ).fetchall()
    return {
        Identifier(namespace, value): (row_id, profile, blocked) for row_id, namespace, value, profile, blocked in rows
    }


def lock_people(connection: Connection, ids: Iterable[UUID]) -> dict[UUID, Person]:
    """Lock the profiles in id order and return them; Raced when one has been merged meanwhile."""
    rows = connection.execute(
        "SELECT id, created_at, version, identity_graph::text, registers::text, trait_states::text, standing,"
        " merged_into_id"
        " FROM customer_profiles WHERE id = ANY(%b) ORDER BY id FOR UPDATE",
        [sorted(ids)],
    )
    people = {}
    for row_id, created_at, version, graph, held, states, standing, merged_into in rows:
        if merged_into is not None:
            raise Raced(f"Profile {row_id} was merged by another process.")
        people[row_id] = Person(
            row_id, clock.to_us(created_at), version, _decode(graph), registers.load(held), _decode(states), standing
        )
    return people


def anchor_states(connection: Connection, ids: Iterable[int]) -> dict[int, tuple[registers.Registers, dict[str, Any]]]:
    """Return the state of identifiers; their profiles are locked, so nobody changes it."""
    rows = connection.execute(
        "SELECT id, registers::text, trait_states::text FROM cdp_identifier WHERE id = ANY(%b)", [sorted(ids)]
    )
    return {row_id: (registers.load(held), _decode(states)) for row_id, held, states in rows}


def insert_people(connection: Connection, people: Iterable[Person], now: str) -> None:
    """Insert new profiles, bare: `update_people` fills them."""
    copy(
        connection,
        "COPY customer_profiles (id, identity_graph, traits, computed_traits, version, timestamp, created_at,"
        " registers, trait_states) FROM STDIN",
        (
            (text(str(one.id)), b"{}", b"{}", b"{}", b"0", text(now), instant(one.created_us), b"{}", b"{}")
            for one in people
        ),
    )


def update_anchors(connection: Connection, states: dict[int, Delta]) -> None:
    """Write the whole new state of identifiers."""
    _copy_aside(
        connection,
        "batch_anchors",
        "id bigint, registers jsonb, trait_states jsonb",
        (
            (number(row_id), escaped(encode(state.registers)), escaped(encode(state.states)))
            for row_id, state in states.items()
        ),
    )
    connection.execute(
        "UPDATE cdp_identifier i SET registers = b.registers, trait_states = b.trait_states"
        " FROM batch_anchors b WHERE i.id = b.id"
    )


class ProfileRow(NamedTuple):
    """A profile's presented and internal state, encoded once for the table and the cache."""

    person: Person
    graph: bytes
    traits: bytes
    computed: bytes
    consent: bytes
    # When (µs) time alone changes what is computed, None where only events do.
    due_us: int | None = None


def update_people(connection: Connection, rows: Sequence[ProfileRow], now: str) -> None:
    """Write profiles as the batch leaves them."""
    _copy_aside(
        connection,
        "batch_people",
        "id uuid, version bigint, identity_graph jsonb, traits jsonb, computed_traits jsonb, registers jsonb,"
        " trait_states jsonb, consent jsonb, standing smallint, due_at timestamptz",
        (
            (
                text(str(row.person.id)),
                number(row.person.version),
                escaped(row.graph),
                escaped(row.traits),
                escaped(row.computed),
                escaped(encode(row.person.registers)),
                escaped(encode(row.person.states)),
                escaped(row.consent),
                number(row.person.standing),
                NULL if row.due_us is None else instant(row.due_us),
            )
            for row in rows
        ),
    )
    connection.execute(
        "UPDATE customer_profiles p SET version = b.version, identity_graph = b.identity_graph, traits = b.traits,"
        " computed_traits = b.computed_traits, registers = b.registers, trait_states = b.trait_states,"
        " consent = b.consent, standing = b.standing, timestamp = %s, computed_at = %s, due_at = b.due_at"
        " FROM batch_people b WHERE p.id = b.id",
        [now, now],
    )


def _copy_aside(connection: Connection, table: str, columns: str, rows: Iterable[Sequence[bytes]]) -> None:
    """Copy rows into a temporary table of this session, which every commit empties."""
    name = sql.Identifier(table)
    connection.execute(
        sql.SQL("CREATE TEMP TABLE IF NOT EXISTS {} ({}) ON COMMIT DELETE ROWS").format(name, sql.SQL(columns))
    )
    connection.execute(sql.SQL("DELETE FROM {}").format(name))
    copy(connection, f"COPY {table} FROM STDIN", rows)


class EventRow(NamedTuple):
    """A message with what was resolved of it."""

    message: Message
    # None and 0 where the message concerns no person.
    profile: UUID | None
    anchor_id: int
    log_partition: int | None
    log_position: str | None
    trace: str = ""


def insert_events(connection: Connection, rows: Iterable[EventRow], now: str) -> None:
    """Append events to the stream."""
    ingested = text(now)
    copy(
        connection,
        "COPY event_stream (ingested_at, profile_id, anchor_id, identifiers, event_type, name, properties, context,"
        " extra, source_id, message_id, occurred_at, original_timestamp, received_at, flags, log_partition,"
        " log_position, trace_parent) FROM STDIN",
        (_event_fields(row, ingested) for row in rows),
    )


def _event_fields(row: EventRow, ingested: bytes) -> tuple[bytes, ...]:
    message = row.message
    return (
        ingested,
        NULL if row.profile is None else str(row.profile).encode(),
        number(row.anchor_id),
        escaped(encode(message.identifiers)),
        message.type.encode(),
        text(message.name),
        escaped(message.properties),
        escaped(message.context),
        escaped(message.extra) if message.extra else NULL,
        number(message.source_id),
        text(message.message_id),
        instant(message.occurred_us),
        NULL if message.original_timestamp is None else text(message.original_timestamp),
        instant(message.received_us),
        b"{" + ",".join(message.flags).encode() + b"}",
        NULL if row.log_partition is None else number(row.log_partition),
        NULL if row.log_position is None else row.log_position.encode(),
        text(row.trace) if row.trace else NULL,
    )


class LetterRow(NamedTuple):
    """A dead letter to write."""

    reason: str
    detail: str
    source_id: int
    message_id: str
    delivery: bytes
    received_us: int
    log_partition: int | None
    log_position: str | None
    # The dead letter that was given back and is put aside again, else 0.
    letter_id: int = 0


def settle_letters(connection: Connection, ids: Sequence[int]) -> None:
    """Mark dead letters whose event came back as replayed: it is stored, or was before."""
    connection.execute("UPDATE cdp_deadletter SET status = 'replayed' WHERE id = ANY(%s)", [sorted(ids)])


def put_aside(connection: Connection, letters: Sequence[LetterRow], now: str) -> None:
    """Keep what could not be processed: one that came back in the row it has, the others in new ones."""
    returned = {one.letter_id: one for one in letters if one.letter_id}
    known = _put_aside_again(connection, returned) if returned else frozenset()
    insert_dead_letters(connection, [one for one in letters if one.letter_id not in known], now)


def _put_aside_again(connection: Connection, letters: dict[int, LetterRow]) -> frozenset[int]:
    """Write the new reasons and return the rows that are there; one that was replayed meanwhile stays so."""
    rows = connection.execute(
        "SELECT id FROM cdp_deadletter WHERE id = ANY(%s) ORDER BY id FOR UPDATE", [sorted(letters)]
    ).fetchall()
    known = [row_id for (row_id,) in rows]
    connection.execute(
        "UPDATE cdp_deadletter SET status = 'new', reason = new.reason, detail = new.detail, attempts = attempts + 1"
        " FROM unnest(%s::bigint[], %s::text[], %s::text[]) AS new (id, reason, detail)"
        " WHERE cdp_deadletter.id = new.id AND status <> 'replayed'",
        [known, [letters[one].reason for one in known], [_storable(letters[one].detail) for one in known]],
    )
    return frozenset(known)


def _storable(said: str) -> str:
    return said.encode("utf-8", "replace").decode().replace("\0", "")


def insert_dead_letters(connection: Connection, letters: Iterable[LetterRow], now: str) -> None:
    """Put aside what could not be processed."""
    copy(
        connection,
        "COPY cdp_deadletter (status, reason, detail, source_id, message_id, delivery, received_at, log_partition,"
        " log_position, created_at) FROM STDIN",
        (
            (
                b"new",
                text(one.reason),
                escaped(one.detail.encode("utf-8", "replace").replace(b"\x00", b"")),
                number(one.source_id),
                escaped(one.message_id.encode("utf-8", "replace").replace(b"\x00", b"")),
                bytea(one.delivery),
                instant(one.received_us),
                NULL if one.log_partition is None else number(one.log_partition),
                NULL if one.log_position is None else text(one.log_position),
                text(now),
            )
            for one in letters
        ),
    )
