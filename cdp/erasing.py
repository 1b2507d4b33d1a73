"""Erasing a person from PostgreSQL: their rows go, and what others' rows say of them is taken out.

Each function works in its caller's transaction and may be called again: then it finds less, or nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec
from django.db import connection

from cdp import redaction
from cdp.processing import registers
from cdp.processing.accounts import Membership
from cdp.processing.consent import Choice, Consent
from cdp.processing.identity import Identifier
from cdp.processing.states import Asked, Counter, Ranked, Tags
from cdp.processing.store import RULES_LOCK
from martech.lib.errors import RetryableError

_STRUCTS = (Ranked, Tags, Counter, Asked, Consent, Choice, Membership)
# What states are written with: without them nobody could read one.
_WORDS = frozenset(
    {"policy", *(one.encode_name for struct in _STRUCTS for one in msgspec.structs.fields(struct))}
    | {str(struct.__struct_config__.tag) for struct in _STRUCTS}
)
# Rows that are looked at, or rewritten, in one go.
CHUNK = 500
# Profiles may be merged while we wait for their locks.
TRIES = 10

# Two look-ups, each by an index: asked for in one condition, they would read all identifiers.
LIVING = """
SELECT i.profile_id FROM unnest(%(namespaces)s::text[], %(values)s::text[]) AS wanted (namespace, value)
JOIN cdp_identifier i ON i.namespace = wanted.namespace AND i.value = wanted.value
UNION
SELECT profile_id FROM cdp_identifier WHERE profile_id = ANY(%(profiles)s::uuid[])
"""
# Those that became part of them, at whatever remove; and of those that are given, what they became part of.
_ALL = """
WITH RECURSIVE up AS (
    SELECT id, merged_into_id FROM customer_profiles WHERE id = ANY(%(profiles)s::uuid[])
    UNION
    SELECT p.id, p.merged_into_id FROM customer_profiles p JOIN up ON p.id = up.merged_into_id
), down AS (
    SELECT id FROM up
    UNION
    SELECT p.id FROM customer_profiles p JOIN down ON p.merged_into_id = down.id
)
SELECT id FROM down
"""
_LOCK = "SELECT id FROM customer_profiles WHERE id = ANY(%s::uuid[]) ORDER BY id FOR UPDATE"
_EMPTY = """
UPDATE customer_profiles SET identity_graph = '{}', traits = '{}', computed_traits = '{}', registers = '{}',
    trait_states = '{}', consent = '{}', standing = 0, due_at = NULL, version = version + 1, timestamp = now(),
    erased_at = now()
WHERE id = ANY(%s::uuid[]) AND (erased_at IS NULL OR identity_graph <> '{}')
"""
# In this order: what points to identifiers goes before them. Each takes the ids of the anchors.
DELETIONS = {
    "events": "DELETE FROM event_stream WHERE anchor_id = ANY(%s::bigint[])",
    "edges": "DELETE FROM cdp_edge WHERE left_id = ANY(%s::bigint[]) OR right_id = ANY(%s::bigint[])",
    "unmerge_sides": "DELETE FROM cdp_unmergeside WHERE identifier_id = ANY(%s::bigint[])",
    "account_memberships": "DELETE FROM cdp_accountmember WHERE identifier_id = ANY(%s::bigint[])",
    "identifiers": "DELETE FROM cdp_identifier WHERE id = ANY(%s::bigint[])",
}
# An event says two identifiers only where there is an edge between its anchor and each other one, and what tells of an
# unmerge only those that were on one side of it.
NEIGHBOURS = """
WITH beside AS (
    SELECT CASE WHEN left_id = ANY(%(anchors)s::bigint[]) THEN right_id ELSE left_id END AS id FROM cdp_edge
    WHERE left_id = ANY(%(anchors)s::bigint[]) OR right_id = ANY(%(anchors)s::bigint[])
    UNION
    SELECT identifier_id FROM cdp_unmergeside WHERE decision_id IN (
        SELECT decision_id FROM cdp_unmergeside WHERE identifier_id = ANY(%(anchors)s::bigint[])
    )
)
SELECT id, profile_id FROM cdp_identifier JOIN beside USING (id) WHERE id <> ALL(%(anchors)s::bigint[])
"""
_GROUPS = """
SELECT extra->>'groupId' FROM event_stream
WHERE anchor_id = ANY(%(anchors)s::bigint[]) AND event_type = 'group' AND extra->>'groupId' <> ''
UNION
SELECT named.value FROM cdp_accountmember m
JOIN cdp_accountidentifier named ON named.account_id = m.account_id AND named.namespace = 'group_id'
WHERE m.identifier_id = ANY(%(anchors)s::bigint[])
"""
_DECISIONS = """
UPDATE cdp_identitydecision SET detail = '{}', message_id = ''
WHERE (profile_id = ANY(%(profiles)s::uuid[]) OR other_id = ANY(%(profiles)s::uuid[]))
AND (detail <> '{}' OR message_id <> '')
"""
# Identifiers of which nothing is left: none but the person's events ever told of them.
_ORPHANS = """
SELECT i.id, i.namespace, i.value, i.profile_id FROM cdp_identifier i
WHERE i.id = ANY(%s::bigint[]) AND i.registers = '{}' AND i.trait_states = '{}'
AND NOT EXISTS (SELECT FROM cdp_identifier other WHERE other.profile_id = i.profile_id AND other.id <> i.id)
AND NOT EXISTS (SELECT FROM cdp_edge WHERE left_id = i.id)
AND NOT EXISTS (SELECT FROM cdp_edge WHERE right_id = i.id)
AND NOT EXISTS (SELECT FROM cdp_unmergeside WHERE identifier_id = i.id)
AND NOT EXISTS (SELECT FROM cdp_accountmember WHERE identifier_id = i.id)
AND NOT EXISTS (SELECT FROM event_stream WHERE anchor_id = i.id)
"""
_MENTIONS = """
SELECT event_id, ingested_at, anchor_id, message_id, name, identifiers::text, properties::text, context::text,
    extra::text
FROM event_stream WHERE anchor_id = ANY(%(around)s::bigint[]) AND (
    identifiers @> ANY(%(pairs)s::jsonb[])
    OR event_type IN ('unmerge', 'lift_unmerge') AND properties->'identifiers' @> ANY(%(pairs)s::jsonb[])
)
LIMIT %(limit)s FOR UPDATE
"""
_LINKS = """
SELECT id, message_id FROM cdp_edge WHERE left_id = ANY(%(anchors)s::bigint[]) OR right_id = ANY(%(anchors)s::bigint[])
ORDER BY id
"""
# Where an event still is called so, it does not name the person; else it was redacted, or is in the archive alone.
_RENAME = """
UPDATE cdp_edge e SET message_id = %s WHERE id = %s
AND NOT EXISTS (SELECT FROM event_stream WHERE anchor_id IN (e.left_id, e.right_id) AND message_id = e.message_id)
"""
REWRITE = """
UPDATE event_stream SET message_id = %s, name = %s, identifiers = %s::jsonb, properties = %s::jsonb,
    context = %s::jsonb, extra = %s::jsonb
WHERE event_id = %s AND ingested_at = %s
"""


@dataclass(slots=True)
class Person:
    """Whom an erasure is about, as far as it has found out: kept in its row until the end.

    `anchors` are the ids of the identifiers' rows; `around` are those of others' that edges led to, `neighbours` their
    profiles. `aliases` are anonymous ids by which others' profiles knew the person's user ids (`cdp.aliases`).
    `groups` are the group ids of accounts that the person's calls named, with what the erasure makes of them.
    """

    identifiers: list[Identifier] = field(default_factory=list)
    anchors: list[int] = field(default_factory=list)
    profiles: list[UUID] = field(default_factory=list)
    around: list[int] = field(default_factory=list)
    neighbours: list[UUID] = field(default_factory=list)
    aliases: list[Identifier] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[Identifier]:
        """All that names the person: whoever has one of them among their identifiers names them."""
        return [*self.identifiers, *(one for one in self.aliases if one not in self.identifiers)]

    @property
    def values(self) -> list[str]:
        """The values of all that names them."""
        return sorted({one.value for one in self.names})


def hold(person: Person) -> None:
    """Lock the person's living profiles as processing does, in id order, and add what belongs to them by now."""
    held: set[UUID] = set()
    # Batches name identifiers that stand for nobody without locking them: those at work end first.
    select("SELECT pg_advisory_xact_lock(%s)", [RULES_LOCK])
    for _ in range(TRIES):
        living = {row[0] for row in select(LIVING, named(person))}
        if living <= held:
            break
        # More than one round, where a batch joined them to others meanwhile, may deadlock: then the task comes again.
        held |= {row[0] for row in select(_LOCK, [sorted(living - held)])}
    else:
        raise RetryableError("The person's profiles are being merged all the time. Try again.")
    rows = select("SELECT id, namespace, value FROM cdp_identifier WHERE profile_id = ANY(%s::uuid[])", [sorted(held)])
    person.anchors = sorted({*person.anchors, *(row[0] for row in rows)})
    found = [one for row in rows if (one := Identifier(*row[1:])) not in person.aliases]
    person.identifiers = list(dict.fromkeys([*person.identifiers, *found]))
    person.profiles = sorted({*person.profiles, *held})
    whole(person)


def whole(person: Person) -> Person:
    """Add the profiles that became part of the person's, at whatever remove."""
    person.profiles = sorted(row[0] for row in select(_ALL, {"profiles": person.profiles}))
    return person


def delete(person: Person) -> dict[str, int]:
    """Delete a held person's rows, leave their profiles as empty stubs, and return how many rows it was."""
    note_beside(person, person.anchors)
    named = (row[0] for row in select(_GROUPS, {"anchors": person.anchors}))
    person.groups = {group: group for group in named} | person.groups
    counts = {name: count(query, [person.anchors] * query.count("%s")) for name, query in DELETIONS.items()}
    counts["decisions"] = count(_DECISIONS, {"profiles": person.profiles})
    counts["profiles"] = count(_EMPTY, [person.profiles])
    return counts


def note_beside(person: Person, anchors: Sequence[int]) -> None:
    """Add those whose events may name what is about to be deleted: whom edges and unmerges lead to from these rows."""
    beside = select(NEIGHBOURS, {"anchors": anchors})
    person.around = sorted({*person.around, *(row[0] for row in beside)})
    person.neighbours = sorted({*person.neighbours, *(row[1] for row in beside)})


def orphans(person: Person) -> Person:
    """Delete the identifiers beside the person that only their events told of, and return whose they were.

    They belonged to nobody else, but the rules had kept them from the person: their profiles are left as stubs.
    """
    beside = select("SELECT profile_id FROM cdp_identifier WHERE id = ANY(%s::bigint[])", [person.around])
    select(_LOCK, [sorted({row[0] for row in beside})])
    found = select(_ORPHANS, [person.around])
    alone = Person([Identifier(*row[1:3]) for row in found], [row[0] for row in found], [row[3] for row in found])
    _execute(DELETIONS["identifiers"], [alone.anchors])
    _execute(_EMPTY, [alone.profiles])
    return alone


def forms(values: Iterable[str]) -> list[bytes]:
    """Return how JSON may write values."""
    plain = {
        form
        for one in values
        for form in (one, *(json.dumps(one, ensure_ascii=ascii)[1:-1] for ascii in (True, False)))
    }
    every = {form for one in plain for form in (one, one.replace("/", "\\/"))}
    return sorted(form.encode("utf-8", "replace") for form in every)


def mentions(person: Person) -> int:
    """Take the person's identifiers out of some events of others, and of their traits; return of how many events."""
    found = redaction.pattern(person.values)
    pairs = [json.dumps([[one.namespace, one.value]]) for one in person.names]
    events = select(_MENTIONS, {"around": person.around, "pairs": pairs, "limit": CHUNK})
    for row in events:
        _execute(REWRITE, without(row, person, found))
    if events:
        mentioned(person, {row[2] for row in events})
    return len(events)


def mentioned(person: Person, anchors: Collection[int]) -> None:
    """Take the person's identifiers out of the traits and links of others, by the anchors of events that name them."""
    profiles = _scrub_states(anchors, pattern_of_states(person))
    _scrub_numbers(anchors, profiles, redaction.pattern(redaction.distinct(person.values)))
    _scrub_edges(anchors, redaction.pattern(person.values))
    person.neighbours = sorted({*person.neighbours, *profiles})


def _scrub_numbers(anchors: Collection[int], profiles: Sequence[UUID], found: re.Pattern[str]) -> None:
    """Take identifiers that are numbers out of given traits; the profiles are locked."""
    for row_id, held in select("SELECT id, registers::text FROM cdp_identifier WHERE id = ANY(%s)", [sorted(anchors)]):
        if (left := _without_numbers(held, found)) != held:
            _execute("UPDATE cdp_identifier SET registers = %s::jsonb WHERE id = %s", [left, row_id])
    for row_id, held in select("SELECT id, registers::text FROM customer_profiles WHERE id = ANY(%s)", [profiles]):
        if (left := _without_numbers(held, found)) != held:
            traits = msgspec.json.encode(registers.present(registers.load(left))).decode()
            _execute("UPDATE customer_profiles SET registers = %s::jsonb, traits = %s::jsonb, version = version + 1,"
                     " timestamp = now() WHERE id = %s", [left, traits, row_id])  # fmt: skip


def _without_numbers(held: str, found: re.Pattern[str]) -> str:
    """Return registers whose values are none of these numbers; what orders them, and what policies made, stays."""
    states = msgspec.json.decode(held, type=dict[str, msgspec.Raw])
    changed = dict[str, list[msgspec.Raw]]()
    for name, state in states.items():
        if bytes(state).startswith(b"["):
            value, *order = msgspec.json.decode(state, type=list[msgspec.Raw])
            before = bytes(value).decode()
            if (left := redaction.redact_json(before, found, numbers=True)) != before:
                changed[name] = [msgspec.Raw(left.encode()), *order]
    return msgspec.json.encode(states | changed).decode() if changed else held


def _scrub_edges(anchors: Collection[int], found: re.Pattern[str]) -> None:
    """Call messages as the events are called by now; their people are locked, as processing locks them first."""
    for row_id, message_id in select(_LINKS, {"anchors": sorted(anchors)}):
        if (left := redaction.redact(message_id, found)) != message_id:
            _execute(_RENAME, [left, row_id])


def without(row: Sequence[Any], person: Person, found: re.Pattern[str]) -> list[Any]:
    """Return what `REWRITE` makes of an event, so that it no longer names the person."""
    event_id, ingested_at, _, message_id, name, identifiers, *said = row
    gone = set(person.names)
    kept = [pair for pair in json.loads(identifiers) if Identifier(*pair) not in gone]
    cleaned = [text and redaction.redact_json(text, found, numbers=True) for text in said]
    plain = [redaction.redact(text, found) for text in (message_id, name)]
    return [*plain, json.dumps(kept, ensure_ascii=False), *cleaned, event_id, ingested_at]


def pattern_of_states(person: Person) -> re.Pattern[str]:
    """Return what finds the person's values in states, but for those that are words of the states themselves."""
    return redaction.pattern(one for one in person.values if one.lower() not in _WORDS)


def _scrub_states(anchors: Collection[int], found: re.Pattern[str]) -> list[UUID]:
    """Take the identifiers out of what those events made of others' traits, as a replay of them would.

    Each profile's version rises, whether or not it was found to say them: whoever read their events before must not
    write by it.
    """
    locked = select(
        "SELECT id FROM customer_profiles WHERE id IN (SELECT profile_id FROM cdp_identifier WHERE id = ANY(%s))"
        " ORDER BY id FOR UPDATE",
        [sorted(anchors)],
    )
    profiles = [row[0] for row in locked]
    columns = ("registers", "traits", "trait_states", "computed_traits", "consent")
    also = ", version = version + 1, timestamp = now()"
    _scrub_rows("customer_profiles", "id = ANY(%s::uuid[])", profiles, columns, found, also=also)
    _scrub_rows("cdp_identifier", "id = ANY(%s)", sorted(anchors), ("registers", "trait_states"), found)
    return profiles


def _scrub_rows(
    table: str, where: str, ids: Sequence[Any], columns: Sequence[str], found: re.Pattern[str], *, also: str = ""
) -> None:
    shown = ", ".join(f"{column}::text" for column in columns)
    for row_id, *before in select(f"SELECT id, {shown} FROM {table} WHERE {where} ORDER BY id FOR UPDATE", [ids]):  # noqa: S608
        after = [redaction.redact_json(text, found) for text in before]
        if after != before or also:
            set_to = ", ".join(f"{column} = %s::jsonb" for column in columns)
            _execute(f"UPDATE {table} SET {set_to}{also} WHERE id = %s", [*after, row_id])  # noqa: S608


def named(person: Person) -> dict[str, Any]:
    """Return what `LIVING` asks for."""
    return {
        "namespaces": [one.namespace for one in person.identifiers],
        "values": [one.value for one in person.identifiers],
        "profiles": person.profiles,
    }


def select(query: Any, values: Any) -> list[tuple[Any, ...]]:
    """Return what a query finds."""
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return cursor.fetchall()


def _execute(query: Any, values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(query, values)


def count(query: str, values: Any) -> int:
    """Do what a query says, and return of how many rows."""
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return cursor.rowcount
