"""What an alias made of an erased user's name: an anonymous id of the same value, in somebody else's profile.

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
_SHARED = """
SELECT DISTINCT i.profile_id FROM cdp_identifier i WHERE i.id = ANY(%(ids)s::bigint[]) AND EXISTS (
    SELECT FROM cdp_identifier other WHERE other.profile_id = i.profile_id AND other.id <> ALL(%(ids)s::bigint[])
)
"""


def take_out(person: Person, found: Mapping[int, Identifier]) -> None:
    """Give anonymous ids that aliases made of a person's user ids (`named`) profiles of their own, and add these.

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
    """Return the anonymous ids that stand for a held person's user ids in others' profiles, by row id.

    Called before their links go.
    """
    values = {one.value for one in person.identifiers if one.namespace == USER_ID}
    known = {one.value for one in person.aliases}
    rows = erasing.select(NAMESAKES, [sorted(values | known), person.profiles]) if values | known else []
    return {
        row_id: Identifier(ANONYMOUS_ID, value)
        for row_id, value, others, said in rows
        if value in known or _is_by_alias(Identifier(ANONYMOUS_ID, value), [row_id, *others], set(said))
    }


def _is_by_alias(name: Identifier, anchors: Sequence[int], said: set[str]) -> bool:
    """Tell whether an alias gave an anonymous id, or its link is of an event that is kept nowhere, which may be one."""
    told = erasing.select(_TOLD, [anchors, json.dumps([name]), sorted(said)])
    if any(by_alias for by_alias, _ in told):
        return True
    lost = said - {message_id for _, message_id in told}
    if not lost:
        return False
    pair = {"namespace": name.namespace, "value": name.value}
    for event in archive.events(anchors=anchors, dropped_only=True):
        if pair in event["identifiers"]:
            if event["event_type"] == "alias":
                return True
            lost.discard(event["message_id"])
    return bool(lost)


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
