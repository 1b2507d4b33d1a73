"""What an alias made of an erased person's name: an anonymous id of the same value, in somebody else's profile.

It goes with the person. The other keeps everything else, as if the alias had never named anybody.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from django.db import connection, transaction

from cdp import archive, erasing, showing, suppressions, unmerging
from cdp.erasing import Person
from cdp.processing.identity import ANONYMOUS_ID, USER_ID, Identifier
from cdp.processing.pipeline import Applied, Pipeline

# Each with its links: the other identifier, and the message that said so.
NAMESAKES = """
SELECT i.id, i.value, coalesce(array_agg(link.other) FILTER (WHERE link.other IS NOT NULL), '{}'),
    coalesce(array_agg(link.message_id) FILTER (WHERE link.other IS NOT NULL), '{}')
FROM cdp_identifier i LEFT JOIN LATERAL (
    SELECT right_id AS other, message_id FROM cdp_edge WHERE left_id = i.id
    UNION ALL SELECT left_id, message_id FROM cdp_edge WHERE right_id = i.id
) AS link ON true
WHERE i.namespace = 'anonymous_id' AND i.value = ANY(%s) AND i.profile_id <> ALL(%s::uuid[])
GROUP BY i.id ORDER BY i.id
"""
_TOLD = """
SELECT DISTINCT event_type = 'alias', message_id FROM event_stream
WHERE anchor_id = ANY(%s::bigint[]) AND identifiers @> %s::jsonb AND (event_type = 'alias' OR message_id = ANY(%s))
"""
_ANCHORED = "SELECT FROM event_stream WHERE anchor_id = %s LIMIT 1"
# By the person's profiles, as an index has them: nothing is deleted yet.
_REFUSED = """
SELECT FROM cdp_identitydecision d
WHERE (d.other_id = ANY(%(profiles)s::uuid[]) OR d.profile_id = ANY(%(profiles)s::uuid[]))
AND d.reason = 'two_identified_people' AND d.detail->'identifiers' @> %(user)s::jsonb AND EXISTS (
    SELECT FROM cdp_identifier i WHERE i.id = ANY(%(others)s::bigint[])
    AND d.detail->'identifiers' @> jsonb_build_array(jsonb_build_array(i.namespace, i.value))
) LIMIT 1
"""
_SHARED = """
SELECT DISTINCT i.profile_id FROM cdp_identifier i WHERE i.id = ANY(%(ids)s::bigint[]) AND EXISTS (
    SELECT FROM cdp_identifier other WHERE other.profile_id = i.profile_id AND other.id <> ALL(%(ids)s::bigint[])
)
"""


def take_out(person: Person, found: Mapping[int, Identifier]) -> None:
    """Give anonymous ids that aliases made of a person's values (`named`) profiles of their own, and add these.

    The person's own rows are deleted by then: the rules make others anew as if neither had ever been. The caller's
    transaction deletes what was added.
    """
    ids, names = list(found), frozenset(found.values())
    erasing.note_beside(person, ids)
    # Without them nothing holds the ids in other people's profiles.
    for what in ("edges", "unmerge_sides"):
        erasing.count(erasing.DELETIONS[what], [ids] * erasing.DELETIONS[what].count("%s"))
    shared = [row[0] for row in erasing.select(_SHARED, {"ids": ids})]
    if shared:
        _part(shared, names)
    alone = erasing.select("SELECT DISTINCT profile_id FROM cdp_identifier WHERE id = ANY(%s::bigint[])", [ids])
    person.anchors = sorted({*person.anchors, *ids})
    person.aliases = sorted({*person.aliases, *names})
    person.profiles = sorted({*person.profiles, *(row[0] for row in alone)})


def named(person: Person) -> dict[int, Identifier]:
    """Return the anonymous ids that stand for a held person in others' profiles, by row id.

    Called before their links go.
    """
    values = {one.value for one in person.identifiers}
    known = {one.value for one in person.aliases}
    rows = erasing.select(NAMESAKES, [sorted(values | known), person.profiles]) if values | known else []
    return {
        row_id: Identifier(ANONYMOUS_ID, value)
        for row_id, value, others, said in rows
        if value in known or _is_by_alias(person, Identifier(ANONYMOUS_ID, value), row_id, others, set(said))
    }


def _is_by_alias(person: Person, name: Identifier, row_id: int, others: Sequence[int], said: set[str]) -> bool:
    """Tell whether an alias gave an anonymous id; where the event of a link is kept nowhere, whether one may have."""
    anchors = [row_id, *others]
    told = erasing.select(_TOLD, [anchors, json.dumps([name]), sorted(said)])
    if any(by_alias for by_alias, _ in told):
        return True
    lost = said - {message_id for _, message_id in told}
    if not lost:
        return False
    pair = {"namespace": name.namespace, "value": name.value}
    is_visitor = bool(erasing.select(_ANCHORED, [row_id]))
    for event in archive.events(anchors=anchors, dropped_only=True):
        is_visitor |= event["anchor_id"] == row_id
        if pair in event["identifiers"]:
            if event["event_type"] == "alias":
                return True
            lost.discard(event["message_id"])
    # Whoever has events of their own was somebody before, or without, an alias.
    return bool(lost) and (not is_visitor or _is_refused(person, name, others))


def _is_refused(person: Person, name: Identifier, others: Sequence[int]) -> bool:
    """Tell whether a decision says that an alias of one of the others named the user of this name."""
    values = {"profiles": person.profiles, "user": json.dumps([(USER_ID, name.value)]), "others": list(others)}
    return bool(erasing.select(_REFUSED, values))


def _part(profiles: Collection[UUID], leaving: frozenset[Identifier]) -> None:
    """Make the people anew whose profiles hold some of the identifiers, without these."""
    connection.ensure_connection()
    applied = Pipeline(suppressions.key()).look_at_all(
        connection.connection, sorted(profiles), reason="erasure", tells_splits=False, leaving=leaving
    )
    unmerging.tell(applied)
    transaction.on_commit(partial(showing.show, _without(applied, leaving)), robust=True)


def _without(applied: Applied, leaving: frozenset[Identifier]) -> Applied:
    """Leave out what is erased before anybody could read it."""
    gone: set[Any] = {profile for one, profile in applied.moved if one in leaving}
    applied.documents = [one for one in applied.documents if one[0] not in gone]
    applied.moved = [one for one in applied.moved if one[0] not in leaving]
    return applied
