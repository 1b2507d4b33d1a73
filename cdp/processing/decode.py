"""From a sender's bytes to a message we can process, or the reason why not.

Pure functions. The collector uses them to answer single calls, the processor to take batches from the log.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
from msgspec import UNSET, Raw

from cdp.log.base import Delivery, Event
from cdp.processing import accounts
from cdp.processing.identity import (
    ANONYMOUS_ID,
    MAX_NAMESPACE,
    MAX_VALUE,
    NOBODY,
    USER_ID,
    Identifier,
    anchor_of,
    clean,
    collect,
)
from martech.lib import clock

TYPES = frozenset({"track", "identify", "page", "screen", "group", "alias"})
MAX_EVENT_BYTES = 32 * 2**10
MAX_NAME = 255
# Documented as 100 characters; SDKs exceed it with their prefixes, and a longer id harms nobody.
MAX_MESSAGE_ID = 255
# Readers in many languages stop at some hundreds of levels, and at numbers of some thousands of digits.
MAX_DEPTH = 200
FUTURE_TOLERANCE_US = 5 * 60 * 1_000_000
# PostgreSQL and Python both know the year 1 to 9999; below, only nonsense is found.
EARLIEST_US = clock.to_us(datetime(1, 1, 3))  # noqa: DTZ001 - a zone-less time counts as UTC there


class Rejection(NamedTuple):
    """Why a message cannot be processed: a stable code, and the cause and next step in words."""

    reason: str
    detail: str
    message_id: str = ""


class Wire(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A message as SDKs send it. What a field holds is not believed: everything may be of any type."""

    type: Any = None
    user_id: Any = None
    anonymous_id: Any = None
    message_id: Any = None
    event: Any = None
    name: Any = None
    previous_id: Any = None
    properties: Raw | msgspec.UnsetType = UNSET
    traits: Raw | msgspec.UnsetType = UNSET
    context: Raw | msgspec.UnsetType = UNSET
    timestamp: Any = None
    original_timestamp: Any = None
    # Of the request or of the SDK; the columns of the event say it better.
    sent_at: Raw | msgspec.UnsetType = UNSET
    received_at: Raw | msgspec.UnsetType = UNSET
    write_key: Raw | msgspec.UnsetType = UNSET
    # Kept as they are in `extra`.
    integrations: Raw | msgspec.UnsetType = UNSET
    category: Raw | msgspec.UnsetType = UNSET
    group_id: Raw | msgspec.UnsetType = UNSET
    channel: Raw | msgspec.UnsetType = UNSET
    version: Raw | msgspec.UnsetType = UNSET
    metadata: Raw | msgspec.UnsetType = msgspec.field(name="_metadata", default=UNSET)


EXTRA = {"integrations": "integrations", "category": "category", "group_id": "groupId", "previous_id": "previousId",
         "channel": "channel", "version": "version", "metadata": "_metadata"}  # fmt: skip
TYPE_FIELDS = {"track": {"event"}, "page": {"name"}, "screen": {"name"}}


class ContextHead(msgspec.Struct, rename="camel"):
    """What identity needs of a context."""

    traits: Raw | msgspec.UnsetType = UNSET
    external_ids: Any = None


class EmailHead(msgspec.Struct):
    """What identity needs of traits."""

    email: Any = None


@dataclass(slots=True)
class Message:
    """A message that has passed: what is stored of it and what is folded from it.

    Times are microseconds since 1970; `properties`, `context` and `extra` are JSON objects as bytes
    (`extra` may be b""). `identifiers` are by falling priority; `alias_of` is an alias call's previous id.
    """

    source_id: int
    type: str
    name: str
    message_id: str
    anchor: Identifier
    identifiers: list[Identifier]
    alias_of: str
    properties: bytes
    context: bytes
    extra: bytes
    occurred_us: int
    original_timestamp: str | None
    received_us: int
    flags: tuple[str, ...]
    id_hash: bytes
    payload_hash: int


_wire = msgspec.json.Decoder(Wire)
_context = msgspec.json.Decoder(ContextHead)
_email = msgspec.json.Decoder(EmailHead)
_object = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.Encoder().encode
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{\]}]')
_LONG_NUMBER = re.compile(rb"[0-9]{4000}")
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def decode(event: Event, delivery: Delivery, *, max_bytes: int = MAX_EVENT_BYTES) -> Message | Rejection:
    """Return the message in `event`, or why it cannot be processed. Never raises."""
    body = event.body
    if len(body) > max_bytes:
        return Rejection("too_large", f"The event has {len(body)} bytes; at most {max_bytes} are taken. Send less.",
                         event.message_id)  # fmt: skip
    try:
        wire, unknown = _read(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _unreadable(body, error, event.message_id)
    message_id = _message_id(event, wire)
    try:
        message = _message(event, delivery, wire, unknown, message_id)
    except _Refused as refused:
        return Rejection(refused.reason, refused.detail, message_id[:MAX_MESSAGE_ID])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _unreadable(body, error, message_id[:MAX_MESSAGE_ID])
    size = len(message.properties) + len(message.context) + len(message.extra)
    # Twice, so that what we add ourselves never costs an event that was taken.
    if size > 2 * max_bytes:
        return Rejection(
            "too_large_enriched",
            f"With what its batch says of all its events, the event has {size} bytes; at most {2 * max_bytes} are kept."
            " Send less in the batch's `context` and `integrations`.",
            message_id,
        )
    return message


class _Refused(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail


def _read(body: bytes) -> tuple[Wire, dict[str, Raw]]:
    if not body.isascii():
        body.decode()
    if b"\\u0000" in body and _NUL.search(body):
        raise msgspec.DecodeError("NUL")
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _depth(body) > MAX_DEPTH:
        raise RecursionError
    if len(body) > 4000 and _LONG_NUMBER.search(body):
        _check_numbers(body)
    try:
        return _wire.decode(body), {}
    except msgspec.ValidationError:
        # An unknown field, which is kept, or not an object at all.
        fields = _object.decode(body)
        known = {name: value for name, value in fields.items() if name in _WIRE_NAMES}
        return _wire.decode(_encode(known)), {name: fields[name] for name in fields.keys() - known.keys()}


def _depth(body: bytes) -> int:
    """Return how deeply arrays and objects are nested."""
    depth = deepest = 0
    for token in _TOKEN.findall(body):
        if token in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif token in (b"]", b"}"):
            depth -= 1
    return deepest


def _check_numbers(body: bytes) -> None:
    """Refuse a number that Python itself would not read."""
    try:
        json.loads(body)
    except ValueError as error:
        raise msgspec.DecodeError(str(error)) from error


_WIRE_NAMES = frozenset(field.encode_name for field in msgspec.structs.fields(Wire))


def _unreadable(body: bytes, error: Exception, message_id: str) -> Rejection:
    """Name what makes a body unreadable."""
    if b"\\u0000" in body and _NUL.search(body):
        return Rejection("nul_character", "A string holds the character U+0000, which cannot be stored. Remove it.",
                         message_id)  # fmt: skip
    if isinstance(error, msgspec.ValidationError):
        return Rejection("not_an_object", f"The event is not an object of the expected form: {error}.", message_id)
    if isinstance(error, RecursionError):
        return Rejection("malformed", "The event is nested too deeply. Flatten it.", message_id)
    if b"\\u" in body and _LONE_SURROGATE.search(body):
        return Rejection("lone_surrogate", r"A string holds half of a surrogate pair (\ud800–\udfff). Remove it.",
                         message_id)  # fmt: skip
    return Rejection("malformed", f"The event is not valid JSON: {error}.", message_id)


def _message_id(event: Event, wire: Wire) -> str:
    given = wire.message_id
    if isinstance(given, str) and given:
        return given
    return event.message_id or f"srv-{uuid4().hex}"


def _message(event: Event, delivery: Delivery, wire: Wire, unknown: dict[str, Raw], message_id: str) -> Message:
    kind = _type(event, wire)
    context = _merged(delivery.context, wire.context, "context")
    properties = _properties(kind, wire, context)
    identifiers, alias_of = _identifiers(kind, wire, properties, context)
    anchor = anchor_of(identifiers)
    if anchor is None and kind == "group" and accounts.concerns_nobody(context):
        anchor = NOBODY
    if anchor is None:
        raise _Refused("missing_id", "The event has no usable userId, anonymousId, email or externalIds. Send one.")
    account = _account(wire, context) if kind == "group" else []
    _check_lengths([*identifiers, *account], message_id)
    occurred_us, original, flags = _times(event, delivery, wire)
    if delivery.ip and b'"ip"' not in context:
        context = _with_ip(context, delivery.ip)
    return Message(
        source_id=delivery.source_id, type=kind, name=_name(kind, wire), message_id=message_id, anchor=anchor,
        identifiers=identifiers, alias_of=alias_of, properties=properties, context=context,
        extra=_extra(kind, wire, unknown, delivery), occurred_us=occurred_us, original_timestamp=original,
        received_us=delivery.received_us, flags=flags, id_hash=id_hash(delivery.source_id, message_id),
        payload_hash=_payload_hash(kind, wire, unknown),
    )  # fmt: skip


def _type(event: Event, wire: Wire) -> str:
    kind = event.kind or wire.type
    if kind is None or kind == "":
        raise _Refused("missing_type", "The event has no `type`. Send one of " + ", ".join(sorted(TYPES)) + ".")
    if not isinstance(kind, str) or kind not in TYPES:
        raise _Refused(
            "unknown_type", f"The type {str(kind)[:80]!r} is not known. Send one of " + ", ".join(sorted(TYPES))
        )
    return kind


def _name(kind: str, wire: Wire) -> str:
    given = wire.event if kind == "track" else wire.name if kind in {"page", "screen"} else ""
    if kind == "track" and (not isinstance(given, str) or not given):
        raise _Refused("missing_event", "The track call has no `event`. Send the event's name as a text.")
    name = given if isinstance(given, str) else ""
    if len(name) > MAX_NAME:
        raise _Refused("name_too_long", f"The name has {len(name)} characters; at most {MAX_NAME} are taken.")
    return name


def _check_lengths(identifiers: list[Identifier], message_id: str) -> None:
    for namespace, value in identifiers:
        if len(value) > MAX_VALUE or len(namespace) > MAX_NAMESPACE:
            raise _Refused(
                "identifier_too_long", f"The identifier {namespace[:80]} is longer than {MAX_VALUE} characters."
            )
    if len(message_id) > MAX_MESSAGE_ID:
        raise _Refused("message_id_too_long", f"messageId has {len(message_id)} characters; at most {MAX_MESSAGE_ID}.")


def _json_object(raw: Raw | msgspec.UnsetType, field: str) -> bytes:
    """Return a JSON object's bytes, `{}` for what is absent or null."""
    if raw is UNSET:
        return b"{}"
    data = bytes(raw).strip()
    if data == b"null":
        return b"{}"
    if not data.startswith(b"{"):
        raise _Refused("not_an_object", f"`{field}` is not an object. Send an object or leave it out.")
    return data


def _merged(batch: bytes, own: Raw | msgspec.UnsetType, field: str) -> bytes:
    """Merge a batch's context into an item's: what the item says itself counts."""
    mine = _json_object(own, field)
    if not batch:
        return mine
    return batch if mine == b"{}" else _encode(_batch_object(batch) | _object.decode(mine))


@lru_cache(maxsize=8)
def _batch_object(batch: bytes) -> dict[str, Raw]:
    return _object.decode(batch)


def _with_ip(context: bytes, ip: str) -> bytes:
    head = b'{"ip":"' + ip.encode() + b'"'
    rest = context[1:].lstrip()
    return head + (b"" if rest.startswith(b"}") else b",") + rest


def _properties(kind: str, wire: Wire, context: bytes) -> bytes:
    """Return the properties; of identify and group the traits, where RudderStack sends them in the context."""
    if kind not in {"identify", "group"}:
        return _json_object(wire.properties, "properties")
    if kind == "identify" and wire.traits is UNSET and b'"traits"' in context:
        return _json_object(_context.decode(context).traits, "context.traits")
    return _json_object(wire.traits, "traits")


def _identifiers(kind: str, wire: Wire, properties: bytes, context: bytes) -> tuple[list[Identifier], str]:
    external, email = None, None
    if b'"externalIds"' in context or b'"traits"' in context:
        head = _context.decode(context)
        external = head.external_ids
        if head.traits is not UNSET and bytes(head.traits)[:1] == b"{":
            email = _email.decode(head.traits).email
    if kind == "identify" and b'"email"' in properties:
        email = _email.decode(properties).email
    if kind == "alias":
        return _alias(wire, external)
    identifiers = collect(wire.user_id, wire.anonymous_id, email, external)
    return identifiers, ""


def _account(wire: Wire, context: bytes) -> list[Identifier]:
    """Return what a group call names its account by, the group id first."""
    group = _group(wire)
    if not group:
        raise _Refused("missing_group_id", "The group call has no usable `groupId`. Send one.")
    named = _context.decode(context).external_ids if b'"externalIds"' in context else None
    return [Identifier(accounts.GROUP_ID, group), *accounts.external(named)]


def _group(wire: Wire) -> str:
    return "" if wire.group_id is UNSET else clean(accounts.GROUP_ID, msgspec.json.decode(wire.group_id))


def _alias(wire: Wire, external: object) -> tuple[list[Identifier], str]:
    user, previous = clean(USER_ID, wire.user_id), clean(ANONYMOUS_ID, wire.previous_id)
    if not user:
        raise _Refused("missing_id", "The alias call has no usable `userId`. Send the id to keep.")
    if not previous:
        raise _Refused("missing_previous_id", "The alias call has no usable `previousId`. Send the id to join.")
    return collect(user, previous, None, external), previous


def _extra(kind: str, wire: Wire, unknown: dict[str, Raw], delivery: Delivery) -> bytes:
    """Return what else the message said at its top level, so that nothing of it is lost."""
    kept: dict[str, Any] = dict(unknown)
    for attribute, name in EXTRA.items():
        value = getattr(wire, attribute)
        if value is not UNSET and value is not None:
            kept[name] = value
    if kind == "group":  # As we keep it: an account's timeline is found by it.
        kept["groupId"] = _group(wire)
    for name in ("event", "name"):
        value = getattr(wire, name)
        if value is not None and name not in TYPE_FIELDS.get(kind, ()):
            kept[name] = value
    if wire.properties is not UNSET and kind in {"identify", "group"}:
        kept["properties"] = wire.properties
    if wire.traits is not UNSET and kind not in {"identify", "group"}:
        kept["traits"] = wire.traits
    if delivery.integrations and "integrations" not in kept:
        kept["integrations"] = Raw(delivery.integrations)
    return _encode(kept) if kept else b""


def _times(event: Event, delivery: Delivery, wire: Wire) -> tuple[int, str | None, tuple[str, ...]]:
    """Return when it happened (corrected and clamped), the time as sent, and what was remarkable."""
    given = wire.timestamp if wire.timestamp is not None else wire.original_timestamp
    if given is None:
        return delivery.received_us, None, ()
    parsed = parse_time(given)
    raw = str(given)[:100]
    if parsed is None:
        return delivery.received_us, raw, ("unreadable_time",)
    flags = ("corrected_time",) if event.skew_us else ()
    occurred = parsed + event.skew_us
    latest = delivery.received_us + FUTURE_TOLERANCE_US
    if occurred > latest:
        return latest, raw, (*flags, "future_time")
    if occurred < EARLIEST_US:
        return EARLIEST_US, raw, (*flags, "past_time")
    return occurred, raw, flags


def parse_time(value: object) -> int | None:
    """Return ISO 8601 text, or seconds or milliseconds since 1970, in microseconds; None if unreadable."""
    try:
        if isinstance(value, str):
            return clock.to_us(datetime.fromisoformat(value))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            # Milliseconds from about 1973 on; seconds until the year 5138.
            return int(value * 1000 if abs(value) >= 1e11 else value * 1_000_000)
    except (ValueError, OverflowError):
        pass
    return None


def id_hash(source_id: int, message_id: str) -> bytes:
    """Return the 16 bytes by which a repeated message of a source is found."""
    return blake2b(message_id.encode("utf-8", "replace"), digest_size=16, key=source_id.to_bytes(4, "big")).digest()


def _payload_hash(kind: str, wire: Wire, unknown: dict[str, Raw]) -> int:
    """Return 8 bytes, as a signed number, of what the message says: not of when or how often it was sent."""
    parts: list[Any] = [
        kind, wire.user_id, wire.anonymous_id, wire.event, wire.name, wire.previous_id, wire.timestamp,
        wire.original_timestamp, wire.properties, wire.traits, wire.group_id, wire.context,
    ]  # fmt: skip
    data = _encode([None if part is UNSET else part for part in parts])
    return int.from_bytes(blake2b(data, digest_size=8).digest(), signed=True)
