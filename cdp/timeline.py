"""A person's timeline: the events of their identifiers, newest first, a page at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection, transaction
from psycopg import sql

COLUMNS = (
    "event_id", "event_type", "name", "properties", "context", "identifiers",
    "occurred_at", "received_at", "ingested_at", "message_id", "source", "flags",
)  # fmt: skip
JSON_COLUMNS = ("properties", "context")
# The planner knows an average anchor only, and would sort all that the busiest ones ever did.
IN_ORDER = "SET LOCAL enable_sort = off"
_COLUMNS = sql.SQL(
    "event.event_id, event.event_type, event.name, event.properties, event.context, event.identifiers,"
    " event.occurred_at, event.received_at, event.ingested_at, event.message_id, source.name, event.flags"
)
# Each anchor's newest are read in the order of its index, in every partition, and no further than the page.
_PAGE = sql.SQL(
    """
    SELECT {columns}
    FROM unnest(%(anchors)s::bigint[]) AS anchor (id)
    CROSS JOIN LATERAL (
        SELECT * FROM event_stream WHERE anchor_id = anchor.id{conditions}
        ORDER BY occurred_at DESC, event_id DESC LIMIT %(limit)s
    ) AS event
    LEFT JOIN cdp_source AS source ON source.id = event.source_id
    ORDER BY event.occurred_at DESC, event.event_id DESC LIMIT %(limit)s
    """
)
# Group calls have an index by the account that they name.
_GROUP_CALLS = sql.SQL(
    """
    SELECT {columns}
    FROM (
        SELECT * FROM event_stream WHERE event_type = 'group' AND extra->>'groupId' = %(group)s{conditions}
        ORDER BY occurred_at DESC, event_id DESC LIMIT %(limit)s
    ) AS event
    LEFT JOIN cdp_source AS source ON source.id = event.source_id
    ORDER BY event.occurred_at DESC, event.event_id DESC
    """
)


class Position(NamedTuple):
    """Where a page ended."""

    occurred_at: datetime
    event_id: int


class Filter(NamedTuple):
    """Which events are wanted: `since` is included, `until` is not; "" and None mean any."""

    event_type: str = ""
    name: str = ""
    since: datetime | None = None
    until: datetime | None = None


_CONDITIONS = {
    "event_type": "event_type = %(event_type)s",
    "name": "name = %(name)s",
    "since": "occurred_at >= %(since)s",
    "until": "occurred_at < %(until)s",
}


def page(
    anchors: Iterable[int], *, limit: int, before: Position | None = None, wanted: Filter | None = None
) -> list[dict[str, Any]]:
    """Return up to `limit` events of the identifiers `anchors`, newest first, that come after the position `before`.

    `identifiers` are a list of namespace and value. What the sender said (`JSON_COLUMNS`) is JSON as text, its
    numbers as exact as they were sent; see `decoded`.
    """
    return _fetched(*query(anchors, limit=limit, before=before, wanted=wanted))


def _fetched(text: sql.Composed, values: dict[str, Any]) -> list[dict[str, Any]]:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(IN_ORDER)
        cursor.execute(text, values)
        return [_row(row) for row in cursor.fetchall()]


def query(
    anchors: Iterable[int], *, limit: int, before: Position | None = None, wanted: Filter | None = None
) -> tuple[sql.Composed, dict[str, Any]]:
    """Return the query of a page and its values."""
    conditions, given = _conditions(before, wanted or Filter())
    return _PAGE.format(columns=_COLUMNS, conditions=conditions), {"anchors": list(anchors), "limit": limit, **given}


def _conditions(before: Position | None, wanted: Filter) -> tuple[sql.Composed, dict[str, Any]]:
    given = {name: value for name, value in wanted._asdict().items() if value}
    conditions = [_CONDITIONS[name] for name in given]
    if before:
        conditions.append("(occurred_at, event_id) < (%(occurred_at)s, %(event_id)s)")
        given |= before._asdict()
    return sql.SQL("").join(sql.SQL(f" AND {condition}") for condition in conditions), given


def _row(values: Sequence[Any]) -> dict[str, Any]:
    row = dict(zip(COLUMNS, values, strict=True))
    pairs = json.loads(row["identifiers"])
    return row | {"identifiers": [{"namespace": namespace, "value": value} for namespace, value in pairs]}


def of_profile(
    profile_id: UUID, *, limit: int, before: Position | None = None, wanted: Filter | None = None
) -> list[dict[str, Any]]:
    """Return a page of a profile's timeline."""
    from cdp.models import Identifier

    anchors = Identifier.objects.filter(profile_id=profile_id).values_list("id", flat=True)
    return page(anchors, limit=limit, before=before, wanted=wanted)


def of_account(
    group_id: str, *, limit: int, before: Position | None = None, wanted: Filter | None = None
) -> list[dict[str, Any]]:
    """Return a page of an account's timeline: the group calls that name it."""
    conditions, given = _conditions(before, wanted or Filter())
    text = _GROUP_CALLS.format(columns=_COLUMNS, conditions=conditions)
    return _fetched(text, {"group": group_id, "limit": limit, **given})


def decoded(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a page with what the sender said as Python data, as text where Python cannot read it."""
    return row | {name: data(row[name]) for name in JSON_COLUMNS}


def data(text: str) -> Any:
    """Return JSON as Python data, as text where Python cannot read it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # numbers of more digits, nesting deeper than Python goes
        return text
