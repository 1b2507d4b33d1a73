"""Everything on a person as one JSON document, written piece by piece: it is never in memory as a whole.

Sections are written in the order of the document; the last one counts what each store gave, so an export that ends
without it is not whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Raw

from cdp import archive, audit, dead_letters, erased_letters, erasing, holders, subjects
from cdp.erasing import Person
from cdp.models import AuditEntry
from cdp.processing import suppression
from cdp.subjects import Subject
from cdp.suppressions import key
from martech.lib import clock

# Rows of a table in one read.
CHUNK = 500
_encode = msgspec.json.Encoder(enc_hook=str).encode

Rows = Iterator[bytes]

_PROFILES = """
WITH RECURSIVE them AS (
    SELECT * FROM customer_profiles WHERE id = %s
    UNION
    SELECT p.* FROM customer_profiles p JOIN them ON p.merged_into_id = them.id
)
SELECT row_to_json(them)::text FROM them ORDER BY created_at, id
"""
# Each takes the anchors' ids, and gives a row as JSON.
_BY_ANCHORS = {
    "identifiers": """
        SELECT json_build_object('namespace', i.namespace, 'value', i.value, 'created_at', i.created_at,
            'profile', i.profile_id, 'first_profile', i.origin, 'registers', i.registers,
            'trait_states', i.trait_states, 'blocked', p.standing = 2)::text
        FROM cdp_identifier i JOIN customer_profiles p ON p.id = i.profile_id
        WHERE i.id = ANY(%(anchors)s::bigint[]) ORDER BY i.id
    """,
    "accounts": """
        SELECT json_build_object('account', m.account_id, 'account_traits', a.traits, 'role', m.role,
            'joined_at', m.joined_at, 'left_at', m.left_at, 'evidence', m.register,
            'identifier', i.namespace || ':' || i.value)::text
        FROM cdp_accountmember m JOIN cdp_account a ON a.id = m.account_id
        JOIN cdp_identifier i ON i.id = m.identifier_id WHERE i.id = ANY(%(anchors)s::bigint[]) ORDER BY m.id
    """,
    "edges": """
        SELECT json_build_object('left', l.namespace || ':' || l.value, 'right', r.namespace || ':' || r.value,
            'source', s.name, 'source_class', e.source_class, 'occurred_at', e.occurred_at,
            'message_id', e.message_id, 'rule_version', e.rule_version, 'refused', e.refused)::text
        FROM cdp_edge e JOIN cdp_identifier l ON l.id = e.left_id JOIN cdp_identifier r ON r.id = e.right_id
        LEFT JOIN cdp_source s ON s.id = e.source_id
        WHERE e.left_id = ANY(%(anchors)s::bigint[]) OR e.right_id = ANY(%(anchors)s::bigint[]) ORDER BY e.id
    """,
}
_DECISIONS = """
SELECT row_to_json(d)::text FROM cdp_identitydecision d
WHERE profile_id = ANY(%(profiles)s::uuid[]) OR other_id = ANY(%(profiles)s::uuid[]) ORDER BY id
"""
_EVENTS = """
SELECT e.occurred_at, e.event_id, row_to_json(e)::text FROM event_stream e
WHERE anchor_id = %(anchor)s AND (occurred_at, event_id) > (%(at)s, %(after)s)
ORDER BY occurred_at, event_id LIMIT %(limit)s
"""


def written(reference: str, *, actor: str) -> Iterator[bytes]:
    """Return the export of a person in pieces of JSON, and write down who asked; UnknownPerson as `subjects.find`."""
    subject = subjects.find(reference)
    known = ("profile", subject.profile_id) if subject.profile_id else ("identifier", _nameless(subject))
    audit.record(actor=actor, action="profile.export", object_type=known[0], object_id=known[1])
    return _document(subject)


def _nameless(subject: Subject) -> str:
    """Return what an identifier without a profile is called where no value may stand."""
    return suppression.digest(key(), subject.identifiers[0]).hex()


def _document(subject: Subject) -> Iterator[bytes]:
    counts: dict[str, int] = {}
    yield b'{"exported_at":' + _encode(clock.now())
    yield b',"asked_for":' + _encode([f"{one.namespace}:{one.value}" for one in subject.identifiers])
    for name, rows in SECTIONS.items():
        yield b',"%b":[' % name.encode()
        counts[name] = 0
        for row in rows(subject):
            yield b"," + row if counts[name] else row
            counts[name] += 1
        yield b"]"
    yield b',"holders":{'
    for number, one in enumerate(holders.holders()):
        held = one.export(subject.identifiers)
        yield (b"," if number else b"") + _encode(one.name) + b":" + _encode(held)
        counts[f"holder:{one.name}"] = len(held)
    yield b'},"counts":' + _encode(counts) + b"}\n"


def _profiles(subject: Subject) -> Rows:
    return _texts(_PROFILES, [subject.profile_id])


def _by_anchors(name: str) -> Callable[[Subject], Rows]:
    return lambda subject: _texts(_BY_ANCHORS[name], {"anchors": subject.anchors})


def _decisions(subject: Subject) -> Rows:
    profiles = _person(subject).profiles
    return _texts(_DECISIONS, {"profiles": profiles})


def _person(subject: Subject) -> Person:
    return erasing.whole(
        Person(subject.identifiers, subject.anchors, [subject.profile_id] if subject.profile_id else [])
    )


def _events(subject: Subject) -> Rows:
    """Yield the events of each identifier, oldest first."""
    for anchor in subject.anchors:
        at, after = clock.EPOCH.replace(year=1), 0
        while True:
            values = {"anchor": anchor, "at": at, "after": after, "limit": CHUNK}
            found = erasing.select(_EVENTS, values)
            yield from (text.encode() for _, _, text in found)
            if len(found) < CHUNK:
                break
            at, after, _ = found[-1]


def _archived(subject: Subject) -> Rows:
    """Yield the events of partitions that PostgreSQL has no more."""
    if subject.anchors:
        for row in archive.events(anchors=subject.anchors, dropped_only=True):
            yield _encode(row)


def _letters(subject: Subject) -> Rows:
    for letter in erased_letters.holding(_person(subject)):
        shown = dead_letters.payload_of(letter)
        yield _encode(
            {
                "id": letter.pk, "status": letter.status, "reason": letter.reason, "detail": letter.detail,
                "received_at": letter.received_at, "message_id": letter.message_id,
                "payload": Raw(shown.text.encode()) if shown.parsed else shown.text,
            }
        )  # fmt: skip


def _audit(subject: Subject) -> Rows:
    ids = [str(one) for one in _person(subject).profiles] or [_nameless(subject)]
    rows = AuditEntry.objects.filter(object_type__in=("profile", "identifier"), object_id__in=ids).order_by("id")
    for row in rows.iterator(CHUNK):
        yield _encode({"at": row.at, "actor": row.actor, "action": row.action, "detail": row.detail})


SECTIONS: dict[str, Callable[[Subject], Rows]] = {
    "profiles": _profiles,
    "identifiers": _by_anchors("identifiers"),
    "accounts": _by_anchors("accounts"),
    "edges": _by_anchors("edges"),
    "decisions": _decisions,
    "events": _events,
    "archived_events": _archived,
    "dead_letters": _letters,
    "audit": _audit,
}


def _texts(query: str, values: Any) -> Rows:
    for (text,) in erasing.select(query, values):
        yield text.encode()


def joined(pieces: Iterable[bytes], *, size: int = 64 * 2**10) -> Iterator[bytes]:
    """Yield the same bytes in larger pieces, of about `size`: each costs a system call."""
    held: list[bytes] = []
    length = 0
    for piece in pieces:
        held.append(piece)
        length += len(piece)
        if length >= size:
            yield b"".join(held)
            held, length = [], 0
    if held:
        yield b"".join(held)
