"""Keeping erased people out: their identifiers are known by a keyed hash alone, and whatever carries one is dropped.

The way in asks for those identifiers only that belong to nobody: an erased one never does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import psycopg

from cdp.log.base import Delivery, Event
from cdp.processing import accounts
from cdp.processing.decode import Message, Rejection
from cdp.processing.identity import ACCOUNTS, ANONYMOUS_ID, EMAIL, MAX_NAMESPACE, MAX_VALUE, USER_ID, Identifier, clean
from martech.lib import crypto
from martech.lib.errors import ConfigurationError

Connection = psycopg.Connection[Any]

# What an unreadable event may mean by a text in it.
NAMESPACES = (USER_ID, EMAIL, ANONYMOUS_ID)
# Texts of an unreadable event that are looked at.
MOST_TEXTS = 2000
_STRING = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_NUMBER = re.compile(rb"[:\[,]\s*(-?\d+(?:\.\d+)?)")
# A person that nobody can be: its row says by which key the others were hashed.
_CANARY = ("", "")
# What the group ids begin with that stand for those which are kept out.
OTHER = "erased-"
_encode = msgspec.json.Encoder().encode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def of_group(group_id: str) -> Identifier:
    """Return what a group id is kept out as that named an erased person: in a namespace that people's never are in."""
    return Identifier(f"{ACCOUNTS}:{accounts.GROUP_ID}", group_id)


def other_group_id(key: bytes, group_id: str) -> str:
    """Return the group id by which an account is known whose own is kept out: always the same, and says nothing."""
    return f"{OTHER}{digest(key, of_group(group_id)).hex()[:16]}"


def group(decoded: Message | Rejection) -> Identifier | None:
    """Return what the group id of a group call may be kept out as."""
    named = accounts.group_of(decoded) if isinstance(decoded, Message) and decoded.type == "group" else ""
    return of_group(named) if named else None


def exchange_group(key: bytes, message: Message, event: Event) -> Event:
    """Give a group call the group id instead of its own, in the message and in what a dead letter would keep of it."""
    name = {"groupId": msgspec.Raw(_encode(other_group_id(key, accounts.group_of(message))))}
    message.extra = _encode(_members(message.extra) | name)
    return msgspec.structs.replace(event, body=_encode(_members(event.body) | name))


def digest(key: bytes, identifier: Identifier) -> bytes:
    """Return the hash by which an erased identifier is known."""
    return crypto.digest(key, identifier.namespace, identifier.value)


def canary(key: bytes) -> bytes:
    """Return the hash that tells by which key the others were made; written with the first of them."""
    return crypto.digest(key, *_CANARY)


def is_needed(connection: Connection, key: bytes) -> bool:
    """Tell whether anybody is kept out; ConfigurationError where that was written with another key.

    Called when rules are read, which every erasure has processors do anew.
    """
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM cdp_suppressedidentifier), EXISTS (SELECT FROM cdp_suppressedidentifier"
        " WHERE digest = %s)",
        [canary(key)],
    ).fetchone()
    needed, known = row or (False, False)
    if needed and not known:
        raise ConfigurationError(
            "PRIVACY_KEY (or SECRET_KEY, where it is not set) is not the one that erased people were hashed with: they "
            "would come back. Set PRIVACY_KEY to what it was, or to what SECRET_KEY was."
        )
    return bool(needed)


def suppressed(connection: Connection, key: bytes, identifiers: Collection[Identifier]) -> frozenset[Identifier]:
    """Return those of the identifiers that were erased; one query, for any number."""
    if not identifiers:
        return frozenset()
    by_digest = {digest(key, one): one for one in identifiers}
    rows = connection.execute(
        "SELECT digest FROM cdp_suppressedidentifier WHERE digest = ANY(%b)", [sorted(by_digest)]
    ).fetchall()
    return frozenset(by_digest[bytes(found)] for (found,) in rows)


def forget_letters(connection: Connection, ids: Sequence[int]) -> None:
    """Delete dead letters that were given back and turned out to be of an erased person."""
    connection.execute("DELETE FROM cdp_deadletter WHERE id = ANY(%s)", [sorted(ids)])


def carried(decoded: Message | Rejection, event: Event, delivery: Delivery) -> list[Identifier]:
    """Return whom an event may be of, before rules and trust take anything away.

    Of one that could not be read, it is every text in it that may be an identifier: better one event of another
    person lost, which could not be processed anyhow, than an erased person in the dead letters.
    """
    if isinstance(decoded, Message):
        return decoded.identifiers + ([Identifier(USER_ID, decoded.alias_of)] if decoded.alias_of else [])
    return list(dict.fromkeys(_in_unreadable(event.body, delivery.context)))


def _in_unreadable(*bodies: bytes) -> Iterator[Identifier]:
    for body in bodies:
        yield from _external(body)
        for value in texts(body):
            for namespace in NAMESPACES:
                if (cleaned := clean(namespace, value)) and len(cleaned) <= MAX_VALUE:
                    yield Identifier(namespace, cleaned)


def texts(body: bytes) -> Iterable[str]:
    """Return the JSON strings and numbers that stand in bytes which may not be JSON as a whole."""
    found: dict[str, None] = {}
    for match in _STRING.finditer(body):
        try:
            found[json.loads(match[0])] = None
        except ValueError:  # a control character or half an escape: as it stands
            found[match[1].decode("utf-8", "replace")] = None
        if len(found) >= MOST_TEXTS:
            break
    found |= {match[1].decode(): None for _, match in zip(range(MOST_TEXTS), _NUMBER.finditer(body), strict=False)}
    return found


def _external(body: bytes) -> Iterator[Identifier]:
    """Yield the external ids of a body that is JSON at least."""
    try:
        context = msgspec.json.decode(body).get("context") or {}
        for one in context.get("externalIds") or ():
            namespace = one["type"]
            if isinstance(namespace, str) and len(namespace) <= MAX_NAMESPACE:
                yield Identifier(namespace, clean(namespace, one["id"]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError, KeyError, TypeError):
        return
