"""The identity graph in PostgreSQL: links with their evidence, unmerges, and who holds which identifier.

Every function works inside the transaction of the connection it is given, upon profiles that are locked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from cdp.processing import clusters
from cdp.processing.clusters import Evidence, Link, Ruleset, Unmerge
from cdp.processing.copying import NULL, copy, escaped, instant, number, text
from cdp.processing.identity import Identifier
from cdp.processing.people import BLOCKED, Decision, Person
from cdp.processing.store import Connection, Raced, encode
from martech.lib import clock

Pair = tuple[Identifier, Identifier]

_LINKS = """
WITH found AS (
    SELECT * FROM cdp_edge WHERE left_id = ANY(%(ids)s)
    UNION SELECT * FROM cdp_edge WHERE right_id = ANY(%(ids)s)
)
SELECT l.namespace, l.value, l.id, l.profile_id, lp.standing, r.namespace, r.value, r.id, r.profile_id, rp.standing,
       e.source_class, e.occurred_at, e.message_id, e.source_id, e.refused
FROM found e
JOIN cdp_identifier l ON l.id = e.left_id JOIN customer_profiles lp ON lp.id = l.profile_id
JOIN cdp_identifier r ON r.id = e.right_id JOIN customer_profiles rp ON rp.id = r.profile_id
"""
_UNMERGES = """
SELECT d.id, d.occurred_at, i.namespace, i.value, s.side, i.profile_id
FROM cdp_unmergeside s
JOIN cdp_identitydecision d ON d.id = s.decision_id AND d.kind = 'unmerge' AND d.lifted_at IS NULL
JOIN cdp_identifier i ON i.id = s.identifier_id
WHERE s.decision_id IN (SELECT decision_id FROM cdp_unmergeside WHERE identifier_id = ANY(%s))
"""


class Row(NamedTuple):
    """An identifier's row: its id, its profile, and the profile that it was first given."""

    id: int
    profile: UUID
    origin: UUID | None


@dataclass(slots=True)
class Whole:
    """Profiles with all that bears on who they are.

    `rows` are their identifiers; `links` touch one of them; `neighbours` are the other profiles that links and
    unmerges lead to, except blocked ones, whose identifiers are in `blocked`.
    """

    rows: dict[Identifier, Row] = field(default_factory=dict)
    # Of all identifiers that are met, those of neighbours too: their row ids and their profiles.
    ids: dict[Identifier, int] = field(default_factory=dict)
    of: dict[Identifier, UUID] = field(default_factory=dict)
    links: dict[Pair, Link] = field(default_factory=dict)
    unmerges: list[Unmerge] = field(default_factory=list)
    neighbours: set[UUID] = field(default_factory=set)
    blocked: dict[Identifier, str] = field(default_factory=dict)
    inside: set[UUID] = field(default_factory=set)


def load(
    connection: Connection,
    profiles: Iterable[UUID],
    rules: Ruleset,
    still: Mapping[Identifier, str] | None = None,
    whole: Whole | None = None,
) -> Whole:
    """Return these profiles with what bears on them, added to `whole` if that is given.

    `still` are the identifiers that stand for nobody under these rules, where others may have said so of those that
    are marked; None where the marks count.
    """
    whole = whole or Whole()
    fresh = set(profiles) - whole.inside
    whole.inside |= fresh
    ids = []
    for row_id, namespace, value, profile, origin in connection.execute(
        "SELECT id, namespace, value, profile_id, origin FROM cdp_identifier WHERE profile_id = ANY(%s) ORDER BY id",
        [list(fresh)],
    ):
        identifier = Identifier(namespace, value)
        whole.rows[identifier] = Row(row_id, profile, origin)
        whole.ids[identifier] = row_id
        whole.of[identifier] = profile
        ids.append(row_id)
    for row in connection.execute(_LINKS, {"ids": ids}):
        _take_link(whole, row, lambda one: _why_blocked(one, rules, still))
    _take_unmerges(connection, whole, ids)
    whole.neighbours -= whole.inside
    for identifier in whole.blocked.keys() & whole.rows.keys():
        del whole.blocked[identifier]
    return whole


def closure(
    connection: Connection, profiles: Iterable[UUID], rules: Ruleset, still: Mapping[Identifier, str] | None
) -> Whole:
    """Return these profiles and all that hang together with them, as they are now: nothing is locked."""
    whole = load(connection, profiles, rules, still)
    while whole.neighbours:
        load(connection, whole.neighbours, rules, still, whole)
    return whole


def _why_blocked(identifier: Identifier, rules: Ruleset, still: Mapping[Identifier, str] | None) -> str:
    """Return why an identifier that is marked as blocked is so, "" where it no longer is."""
    if rules.blocks(identifier):
        return clusters.BLOCKED_VALUE
    return clusters.SHARED if still is None else still.get(identifier, "")


def _take_link(whole: Whole, row: Sequence[Any], why_blocked: Callable[[Identifier], str]) -> None:
    ends = [(Identifier(*row[at : at + 2]), *row[at + 2 : at + 5]) for at in (0, 5)]
    source_class, occurred_at, message_id, source_id, refused = row[10:]
    left, right = ends[0][0], ends[1][0]
    evidence = Evidence(source_class, clock.to_us(occurred_at), message_id)
    link = Link(*clusters.paired(left, right), evidence, source_id, refused)
    whole.links[link.pair] = link
    for identifier, row_id, profile, standing in ends:
        whole.ids[identifier] = row_id
        whole.of[identifier] = profile
        if profile in whole.inside:
            continue
        if standing == BLOCKED and (why := why_blocked(identifier)):
            whole.blocked[identifier] = why
        else:
            whole.neighbours.add(profile)


def _take_unmerges(connection: Connection, whole: Whole, ids: Sequence[int]) -> None:
    found = {one.id: one for one in whole.unmerges}
    for decision, at, namespace, value, side, profile in connection.execute(_UNMERGES, [ids]):
        unmerge = found.setdefault(decision, Unmerge(decision, clock.to_us(at), {}))
        identifier = Identifier(namespace, value)
        unmerge.sides[identifier] = side
        whole.of[identifier] = profile
        whole.neighbours.add(profile)
    whole.unmerges = list(found.values())


def blocked(connection: Connection, rules: Ruleset) -> tuple[dict[Identifier, str], set[UUID]]:
    """Return which of the identifiers that are marked as blocked are so under these rules, and why.

    With them come the profiles of those for which nothing changes at all.
    """
    marked = connection.execute("SELECT id FROM customer_profiles WHERE standing = %s ORDER BY id", [BLOCKED])
    found, profiles = {}, set[UUID]()
    for (profile,) in marked.fetchall():
        whole = load(connection, [profile], rules)
        shared = clusters.shared(whole.links.values(), rules)
        for one in whole.rows:
            if why := clusters.BLOCKED_VALUE if rules.blocks(one) else clusters.SHARED if one in shared else "":
                found[one] = why
                if all(link.refused == why for link in whole.links.values()):
                    profiles.add(profile)
    return found, profiles


def stored_evidence(connection: Connection, pairs: Mapping[tuple[int, int], Pair]) -> dict[Pair, Evidence]:
    """Return the evidence that is stored of pairs, given by their row ids."""
    ordered = {(min(ids), max(ids)): pair for ids, pair in pairs.items()}
    rows = connection.execute(
        "SELECT left_id, right_id, source_class, occurred_at, message_id FROM cdp_edge"
        " JOIN unnest(%s::bigint[], %s::bigint[]) AS wanted (one, other) ON left_id = one AND right_id = other",
        [[left for left, _ in ordered], [right for _, right in ordered]],
    )
    return {
        ordered[left, right]: Evidence(source_class, clock.to_us(at), message_id)
        for left, right, source_class, at, message_id in rows
    }


def write_links(connection: Connection, links: Iterable[Link], ids: Mapping[Identifier, int], version: int) -> None:
    """Keep links; what is stored of a pair already is weaker: that was seen under the lock of one of the two."""
    rows = {}
    for link in links:
        left, right = sorted((ids[link.left], ids[link.right]))
        rows[left, right] = (*link.evidence, link.source_id, link.refused)
    if not rows:
        return
    pairs = sorted(rows)
    source_classes, times, messages, sources, refused = zip(*(rows[pair] for pair in pairs), strict=True)
    connection.execute(
        "INSERT INTO cdp_edge AS e (left_id, right_id, source_class, occurred_at, message_id, source_id, refused,"
        " rule_version) SELECT *, %s FROM unnest(%s::bigint[], %s::bigint[], %s::int[], %s::timestamptz[], %s::text[],"
        " %s::int[], %s::text[]) ON CONFLICT (left_id, right_id) DO UPDATE SET source_class = excluded.source_class,"
        " occurred_at = excluded.occurred_at, message_id = excluded.message_id, source_id = excluded.source_id,"
        " refused = excluded.refused, rule_version = excluded.rule_version",
        [
            version, [left for left, _ in pairs], [right for _, right in pairs], list(source_classes),
            [clock.from_us(at) for at in times], list(messages), list(sources), list(refused),
        ],
    )  # fmt: skip


def write_verdicts(
    connection: Connection, refused: Mapping[Pair, str], ids: Mapping[Identifier, int], version: int
) -> None:
    """Write why stored links are refused now, "" where they no longer are."""
    if not refused:
        return
    pairs = [sorted((ids[left], ids[right])) for left, right in refused]
    connection.execute(
        "UPDATE cdp_edge SET refused = new.refused, rule_version = %s"
        " FROM unnest(%s::bigint[], %s::bigint[], %s::text[]) AS new (one, other, refused)"
        " WHERE left_id = new.one AND right_id = new.other",
        [version, [one for one, _ in pairs], [other for _, other in pairs], list(refused.values())],
    )


def move_identifiers(connection: Connection, moved: Mapping[int, Person]) -> None:
    """Give identifiers, by row id, to other profiles; one of a new profile has it as its origin from now on."""
    if not moved:
        return
    connection.execute(
        "UPDATE cdp_identifier SET profile_id = new.profile,"
        " origin = CASE WHEN new.fresh THEN new.profile ELSE origin END"
        " FROM unnest(%s::bigint[], %s::uuid[], %s::bool[]) AS new (row_id, profile, fresh) WHERE id = new.row_id",
        [list(moved), [one.id for one in moved.values()], [one.is_new for one in moved.values()]],
    )


def merge_profiles(connection: Connection, merged: Sequence[Person]) -> None:
    """Give the identifiers of merged profiles to those that took them over, and let the old rows point on."""
    if not merged:
        return
    pairs = [[one.id for one in merged], [one.root().id for one in merged]]
    connection.execute(
        "UPDATE cdp_identifier SET profile_id = new.id FROM unnest(%s::uuid[], %s::uuid[]) AS new (old, id)"
        " WHERE profile_id = new.old",
        pairs,
    )
    connection.execute(
        "UPDATE customer_profiles SET merged_into_id = new.id, timestamp = now(), version = version + 1, standing = 0,"
        " identity_graph = '{}', traits = '{}', computed_traits = '{}', registers = '{}', trait_states = '{}',"
        " consent = '{}', due_at = NULL FROM unnest(%s::uuid[], %s::uuid[]) AS new (old, id)"
        " WHERE customer_profiles.id = new.old",
        pairs,
    )


def lock_merged(connection: Connection, profiles: Iterable[UUID]) -> dict[UUID, Person]:
    """Lock profiles that were merged and erased by nobody, to give them back; those that are none are left out."""
    rows = connection.execute(
        "SELECT id, created_at, version FROM customer_profiles"
        " WHERE id = ANY(%s) AND merged_into_id IS NOT NULL AND erased_at IS NULL ORDER BY id FOR UPDATE",
        [sorted(profiles)],
    )
    return {
        row_id: Person(row_id, clock.to_us(created_at), version, revived=True) for row_id, created_at, version in rows
    }


def revive(connection: Connection, people: Iterable[Person]) -> None:
    """Let merged profiles be profiles again."""
    ids = [one.id for one in people]
    if ids:
        connection.execute("UPDATE customer_profiles SET merged_into_id = NULL WHERE id = ANY(%s)", [ids])


def insert_identifiers(
    connection: Connection, identifiers: Iterable[tuple[Identifier, UUID]], now: str
) -> dict[Identifier, int]:
    """Insert new identifiers and return their row ids; Raced when another process was quicker with one."""
    wanted = sorted(identifiers)
    rows = connection.execute(
        "INSERT INTO cdp_identifier (namespace, value, profile_id, origin, created_at, registers, trait_states)"
        " SELECT namespace, value, profile_id, profile_id, %s, '{}', '{}'"
        " FROM unnest(%s::text[], %s::text[], %s::uuid[]) AS new (namespace, value, profile_id)"
        " ORDER BY namespace, value ON CONFLICT DO NOTHING RETURNING id, namespace, value",
        [
            now,
            [one.namespace for one, _ in wanted],
            [one.value for one, _ in wanted],
            [profile for _, profile in wanted],
        ],
    ).fetchall()
    if len(rows) < len(wanted):
        raise Raced("Another process made one of the batch's new identifiers.")
    return {Identifier(namespace, value): row_id for row_id, namespace, value in rows}


def insert_decisions(connection: Connection, decisions: Iterable[Decision], now: str) -> None:
    """Keep the merges, refusals and splits of a batch; each refusal of two identifiers once."""
    copy(
        connection,
        "COPY cdp_identitydecision (kind, reason, detail, profile_id, other_id, source_id, message_id, occurred_at,"
        " decided_at, author) FROM STDIN",
        (
            (
                text(one.kind),
                text(one.reason),
                escaped(encode({"identifiers": one.identifiers})),
                text(str(one.person.root().id)),
                NULL if one.other is None else text(str(_stored(one.other).id)),
                NULL if one.source_id is None else number(one.source_id),
                text(one.message_id),
                instant(one.at_us),
                text(now),
                text(one.author),
            )
            for one in decisions
        ),
    )


def _stored(other: Person) -> Person:
    """Return the other profile as it is stored: one that was made and merged in one batch never was."""
    return other.root() if other.is_new else other
