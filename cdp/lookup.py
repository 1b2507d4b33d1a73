"""Finding profiles: by id, by an identifier, or by the beginning of one. Every way uses an index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import Model, QuerySet

from cdp import profiles
from cdp.models import Identifier

# Merges point on to the profile that stayed; a chain longer than this is a loop, which only a fault could make.
MAX_MERGES = 64
# How many namespaces a search for a bare value looks into: external ids may have any.
MAX_NAMESPACES = 50

_NAMESPACES = """
WITH RECURSIVE found AS (
    (SELECT namespace FROM {table} ORDER BY namespace LIMIT 1)
    UNION ALL
    SELECT (SELECT namespace FROM {table} WHERE namespace > found.namespace ORDER BY namespace LIMIT 1)
    FROM found WHERE found.namespace IS NOT NULL
)
SELECT namespace FROM found WHERE namespace IS NOT NULL LIMIT %s
"""
_SURVIVOR = """
WITH RECURSIVE chain AS (
    SELECT id, merged_into_id, 0 AS depth FROM customer_profiles WHERE id = %s
    UNION ALL
    SELECT next.id, next.merged_into_id, depth + 1
    FROM chain JOIN customer_profiles next ON next.id = chain.merged_into_id WHERE depth < %s
)
SELECT id FROM chain WHERE merged_into_id IS NULL
"""


def by_reference(reference: str) -> UUID | None:
    """Return the id of the profile an address names: by its id, or by `namespace:value` of one of its identifiers."""
    namespace, colon, value = reference.partition(":")
    if colon:
        return by_identifier(namespace, value)
    try:
        return survivor(UUID(reference))
    except ValueError:
        return None


def by_identifier(namespace: str, value: str) -> UUID | None:
    """Return the id of the profile that holds an identifier."""
    if "\0" in namespace + value:  # no text of PostgreSQL's holds one
        return None
    named = Identifier.objects.filter(namespace=namespace, value=value)
    return named.values_list("profile_id", flat=True).first()


def survivor(profile_id: UUID) -> UUID | None:
    """Return the id of that profile, or of the one that it was merged into."""
    row = _rows(_SURVIVOR, [profile_id, MAX_MERGES])
    return row[0][0] if row else None


def document(profile_id: UUID) -> bytes | None:
    """Return a profile's JSON document."""
    return documents([profile_id]).get(profile_id)


def documents(ids: Iterable[UUID]) -> dict[UUID, bytes]:
    """Return the JSON documents of profiles by id."""
    rows = _rows(profiles.SELECT + " WHERE p.id = ANY(%s)", [list(ids)])
    return {row[0]: profiles.from_row(row) for row in rows}


def newest(*, limit: int, before: tuple[datetime, UUID] | None = None) -> list[tuple[datetime, UUID, bytes]]:
    """Return up to `limit` profiles, newest first, that come after the position `before`: position and document."""
    where = " WHERE p.merged_into_id IS NULL" + (" AND (p.created_at, p.id) < (%s, %s)" if before else "")
    order = " ORDER BY p.created_at DESC, p.id DESC LIMIT %s"
    rows = _rows(profiles.SELECT + where + order, [*(before or ()), limit])
    return [(row[6], row[0], profiles.from_row(row)) for row in rows]


def search(text: str, *, limit: int, prefix: bool) -> list[UUID]:
    """Return the ids of up to `limit` profiles with an identifier that is `text`, or begins so where `prefix` is set.

    `text` is a value of any namespace, `namespace:value`, or a profile's id.
    """
    exact = by_reference(text)
    return owners(Identifier, "profile_id", text, exact, limit=limit, prefix=prefix)


def owners(model: type[Model], owner: str, text: str, exact: UUID | None, *, limit: int, prefix: bool) -> list[UUID]:
    """Return up to `limit` owners of identifiers that `text` names, after the `exact` one.

    `owner` is their column in the table of `model`, which has a unique index of namespace and value.
    """
    if not text or "\0" in text:
        return []
    found = [exact] if exact else []
    for namespace in (row[0] for row in _rows(_NAMESPACES.format(table=model._meta.db_table), [MAX_NAMESPACES])):
        for value in {text, text.removeprefix(f"{namespace}:")}:
            found += _in_namespace(model, namespace, value, prefix=prefix).values_list(owner, flat=True)[:limit]
    return list(dict.fromkeys(found))[:limit]


def _in_namespace(model: type[Model], namespace: str, value: str, *, prefix: bool) -> QuerySet[Any]:
    named = model._default_manager.filter(namespace=namespace)
    if prefix:
        # As a range, which is what the unique index (compared by code point) can answer.
        return named.filter(value__gte=value, value__lte=value + "\U0010ffff").order_by("namespace", "value")
    return named.filter(value=value)


def _rows(query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return cursor.fetchall()
