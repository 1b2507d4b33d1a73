"""Finding accounts: by id or by what they are called, with their members. Every way uses an index.

A person's membership is the combination of their identifiers' memberships, as their traits are of their traits: the
earliest call joins, of role and leaving the newest counts, whichever identifier it named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import reduce
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from django.db import connection
from msgspec import Raw

from cdp import lookup, profiles
from cdp.models import Account, AccountIdentifier
from cdp.processing.accounts import GROUP_ID, Membership, load_membership

_SELECT = """
SELECT a.id, coalesce(names.found, '[]'), a.traits::text, a.version, now(), a.created_at, a.timestamp
FROM cdp_account a CROSS JOIN LATERAL (
    SELECT json_agg(json_build_object('namespace', i.namespace, 'value', i.value)
                    ORDER BY i.namespace <> 'group_id', i.namespace COLLATE "C", i.value)::text AS found
    FROM cdp_accountidentifier i WHERE i.account_id = a.id
) AS names
"""
# A person may belong by several identifiers: the first of these stands for them. In the order of the unique index.
_MEMBERS = """
WITH page AS (
    SELECT i.id, i.profile_id FROM cdp_accountmember m JOIN cdp_identifier i ON i.id = m.identifier_id
    WHERE m.account_id = %(account)s AND m.identifier_id < %(before)s AND NOT EXISTS (
        SELECT FROM cdp_identifier earlier JOIN cdp_accountmember also ON also.identifier_id = earlier.id
        WHERE earlier.profile_id = i.profile_id AND earlier.id < i.id AND also.account_id = m.account_id
    )
    ORDER BY m.identifier_id DESC LIMIT %(limit)s
)
SELECT page.id, page.profile_id, m.register::text
FROM page JOIN cdp_identifier i ON i.profile_id = page.profile_id
JOIN cdp_accountmember m ON m.identifier_id = i.id AND m.account_id = %(account)s
ORDER BY page.id DESC
"""
_OF_PROFILE = """
WITH page AS (
    SELECT DISTINCT a.created_at, a.id FROM cdp_identifier i JOIN cdp_accountmember m ON m.identifier_id = i.id
    JOIN cdp_account a ON a.id = m.account_id
    WHERE i.profile_id = %(profile)s{before} ORDER BY a.created_at DESC, a.id DESC LIMIT %(limit)s
)
SELECT page.created_at, page.id, m.register::text
FROM page JOIN cdp_accountmember m ON m.account_id = page.id
JOIN cdp_identifier i ON i.id = m.identifier_id AND i.profile_id = %(profile)s
ORDER BY page.created_at DESC, page.id DESC
"""
_LAST = 2**63 - 1


class Member(NamedTuple):
    """A person who belongs to an account: their first identifier that does is where they stand in its list."""

    identifier_id: int
    profile_id: UUID
    membership: Membership


class Belonging(NamedTuple):
    """An account that a person belongs to: `created_at` is the account's, by which a person's are listed."""

    created_at: datetime
    account_id: UUID
    membership: Membership


def by_reference(reference: str) -> UUID | None:
    """Return the id of the account an address names: by its id, or by `namespace:value` of what it is called."""
    namespace, colon, value = reference.partition(":")
    if colon:
        return by_identifier(namespace, value)
    try:
        return Account.objects.filter(pk=UUID(reference)).values_list("pk", flat=True).first()
    except ValueError:
        return None


def by_identifier(namespace: str, value: str) -> UUID | None:
    """Return the id of the account that is called so."""
    if "\0" in namespace + value:  # no text of PostgreSQL's holds one
        return None
    named = AccountIdentifier.objects.filter(namespace=namespace, value=value)
    return named.values_list("account_id", flat=True).first()


def search(text: str, *, limit: int, prefix: bool) -> list[UUID]:
    """Return the ids of up to `limit` accounts that are called `text`, or so that it begins where `prefix` is set."""
    exact = by_reference(text)
    return lookup.owners(AccountIdentifier, "account_id", text, exact, limit=limit, prefix=prefix)


def group_id(account_id: UUID) -> str:
    """Return the group id by which calls name an account."""
    rows = AccountIdentifier.objects.filter(account_id=account_id, namespace=GROUP_ID)
    return rows.values_list("value", flat=True).first() or ""


def document(account_id: UUID) -> bytes | None:
    """Return an account's JSON document."""
    return documents([account_id]).get(account_id)


def documents(ids: Iterable[UUID]) -> dict[UUID, bytes]:
    """Return the JSON documents of accounts by id."""
    return {row[0]: _document(row) for row in _rows(_SELECT + " WHERE a.id = ANY(%s)", [list(ids)])}


def newest(*, limit: int, before: tuple[datetime, UUID] | None = None) -> list[tuple[datetime, UUID, bytes]]:
    """Return up to `limit` accounts, newest first, that come after the position `before`: position and document."""
    where = " WHERE (a.created_at, a.id) < (%s, %s)" if before else ""
    rows = _rows(_SELECT + where + " ORDER BY a.created_at DESC, a.id DESC LIMIT %s", [*(before or ()), limit])
    return [(row[5], row[0], _document(row)) for row in rows]


def members(account_id: UUID, *, limit: int, before: int | None = None) -> list[Member]:
    """Return up to `limit` people of an account, newest first, those who left too, after the identifier `before`."""
    values = {"account": account_id, "before": _LAST if before is None else before, "limit": limit}
    return [Member(*one, found) for one, found in _combined(_rows(_MEMBERS, values))]


def of_profile(profile_id: UUID, *, limit: int, before: tuple[datetime, UUID] | None = None) -> list[Belonging]:
    """Return up to `limit` accounts that a person belongs or belonged to, newest first, after the position `before`."""
    values: dict[str, Any] = {"profile": profile_id, "limit": limit}
    if before:
        values |= {"created_at": before[0], "id": before[1]}
    query = _OF_PROFILE.format(before=" AND (a.created_at, a.id) < (%(created_at)s, %(id)s)" if before else "")
    return [Belonging(*one, found) for one, found in _combined(_rows(query, values))]


def _combined(rows: Iterable[Sequence[Any]]) -> list[tuple[tuple[Any, Any], Membership]]:
    """Return what the memberships of one person's identifiers come to, in the order of the rows."""
    found: dict[tuple[Any, Any], list[Membership]] = {}
    for first, second, register in rows:
        found.setdefault((first, second), []).append(load_membership(register))
    return [(one, reduce(Membership.combine, held)) for one, held in found.items()]


def _document(row: Sequence[Any]) -> bytes:
    account_id, identifiers, traits, version, as_of, created_at, updated_at = row
    return msgspec.json.encode(
        {
            "id": account_id,
            "identifiers": msgspec.json.decode(identifiers),
            "traits": Raw(traits.encode()),
            "version": version,
            "as_of": profiles.timestamp(as_of),
            "created_at": profiles.timestamp(created_at),
            "updated_at": profiles.timestamp(updated_at),
        }
    )


def _rows(query: str, values: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return cursor.fetchall()
