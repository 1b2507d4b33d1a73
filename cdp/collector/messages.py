"""From a request's body to what goes into the log: which events it holds, whose they are, and where they belong.

Events stay the bytes they came as; only their heads are read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
from msgspec import Raw

from cdp.collector import splitter
from cdp.collector.splitter import Malformed
from cdp.log.base import Delivery, Event, partition_of
from cdp.processing.decode import MAX_DEPTH, MAX_MESSAGE_ID, MAX_NAME, parse_time
from cdp.processing.identity import ANONYMOUS_ID, MAX_VALUE, USER_ID, anchor_of, clean, collect

_EMPTY = Raw(b"")
_OBJECT = (b"", b"{")
# In more bytes there may be a number of more digits than readers take.
PLAIN_BYTES = 4000
# Every body this process may take in parses to fewer; each costs memory and a dead letter.
MOST_EVENTS = 100_000
# W3C Trace Context, version 00; ids of zeros alone name nothing.
_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Head(msgspec.Struct, rename="camel", gc=False):
    """What the collector must know of an event. Any field may hold anything."""

    type: Any = None
    event: Any = None
    name: Any = None
    user_id: Any = None
    anonymous_id: Any = None
    message_id: Any = None
    timestamp: Raw = _EMPTY
    original_timestamp: Raw = _EMPTY
    sent_at: Any = None
    write_key: Any = None
    context: Raw = _EMPTY
    traits: Raw = _EMPTY
    properties: Raw = _EMPTY


class _Context(msgspec.Struct, rename="camel"):
    direct: Any = msgspec.UNSET
    external_ids: Any = msgspec.UNSET
    traits: Raw = _EMPTY


class _Traits(msgspec.Struct):
    email: Any = None


class _Envelope(msgspec.Struct, rename="camel"):
    batch: list[Raw]
    context: Raw = _EMPTY
    integrations: Raw = _EMPTY
    sent_at: Any = None
    write_key: Any = None


class Batch(NamedTuple):
    """A batch request: its items as they came, and what it says of all of them."""

    items: list[bytes]
    context: bytes
    integrations: bytes
    sent_at: Any
    write_key: str


class Item(msgspec.Struct, gc=False):
    """An event, and its head where that can be read."""

    body: bytes
    head: Head | None


class Request(msgspec.Struct, gc=False):
    """What holds for all events of a request. Times are microseconds; `kind` is "" for batches.

    `trace` is its W3C trace context, or "".
    """

    kind: str
    received_us: int
    ip: str
    context: bytes = b""
    integrations: bytes = b""
    skew_us: int = 0
    trace: str = ""


class Sender(msgspec.Struct, gc=False, frozen=True):
    """Whose events they are; `public` sources always get the request's address."""

    source_id: int
    public: bool


_unreadable = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_head = msgspec.json.Decoder(Head).decode
_context = msgspec.json.Decoder(_Context).decode
_traits = msgspec.json.Decoder(_Traits).decode
_envelope = msgspec.json.Decoder(_Envelope).decode


def read_trace(header: bytes) -> str:
    """Return a request's `traceparent`, "" where it is none."""
    return header.decode() if _TRACEPARENT.fullmatch(header) else ""


def read_batch(body: bytes) -> Batch:
    """Return the batch in `body`; Malformed where it is none. Items need not be valid JSON."""
    try:
        read = _envelope(body)
    except _unreadable:
        return _tolerant_batch(body)
    return Batch(
        [bytes(item) for item in read.batch],
        _object(bytes(read.context)),
        _object(bytes(read.integrations)),
        read.sent_at,
        _text(read.write_key),
    )


def _tolerant_batch(body: bytes) -> Batch:
    members = splitter.members(body)
    if not members.get("batch", b"").startswith(b"["):
        raise Malformed("The body has no `batch`: send an object whose `batch` is an array of events.")
    return Batch(
        splitter.items(members["batch"]),
        _object(members.get("context", b"")),
        _object(members.get("integrations", b"")),
        _value(members.get("sentAt", b"null")),
        _text(_value(members.get("writeKey", b"null"))),
    )


def read_item(body: bytes) -> Item:
    """Return the event with its head, None for a head that cannot be read (the processor says why)."""
    try:
        return Item(body, _head(body))
    except _unreadable:
        return Item(body, None)


def read_single(body: bytes) -> tuple[Item, str]:
    """Return a single call's event and its write key; Malformed where not even its brackets match."""
    item = read_item(body)
    if item.head is not None:
        return item, _text(item.head.write_key)
    if not body.lstrip().startswith(b"{"):
        raise Malformed("The body is not a JSON object. Send one event as a JSON object.")
    return item, _text(_value(splitter.members(body).get("writeKey", b"null")))


def is_plain(item: Item, kind: str, max_bytes: int) -> bool:
    """Tell at a glance that a single call is in order; False where `decode` has to look at it.

    Most calls are plain, and this takes a tenth of the time.
    """
    head, body = item.head, item.body
    if head is None or len(body) > min(max_bytes, PLAIN_BYTES) or not body.isascii() or b"\\u0000" in body:
        return False
    return (
        _is_named(head, kind)
        and _is_identified(head)
        and _at_most(head.user_id, MAX_VALUE)
        and _at_most(head.anonymous_id, MAX_VALUE)
        and _at_most(head.message_id, MAX_MESSAGE_ID)
        # Further identifiers may be too long, and what should be an object something else.
        and b'"externalIds"' not in body
        and b'"email"' not in body
        and body.count(b"[") + body.count(b"{") <= MAX_DEPTH
        and all(bytes(value)[:1] in _OBJECT for value in (head.context, head.traits, head.properties))
    )


def _is_named(head: Head, kind: str) -> bool:
    if kind == "track":
        return type(head.event) is str and 0 < len(head.event) <= MAX_NAME
    if kind == "identify":  # RudderStack's traits, in the context, are for `decode`.
        return bytes(head.traits)[:1] == b"{"
    return kind in {"page", "screen"} and _at_most(head.name, MAX_NAME)


def _is_identified(head: Head) -> bool:
    if type(head.user_id) is str and _partition_by(USER_ID, head.user_id, 1) == 0:
        return True
    return type(head.anonymous_id) is str and _partition_by(ANONYMOUS_ID, head.anonymous_id, 1) == 0


def _at_most(value: object, length: int) -> bool:
    return value is None or (type(value) is str and len(value) <= length)


def own_key(item: Item) -> str:
    """Return the write key that an item of a batch names itself, or ""."""
    return "" if item.head is None else _text(item.head.write_key)


def skew(sent_at: object, received_us: int, threshold_us: int) -> int:
    """Return what to add to the client's times: how far its clock was off when it sent, 0 up to the threshold."""
    sent = None if sent_at is None else parse_time(sent_at)
    if sent is None or abs(received_us - sent) <= threshold_us:
        return 0
    return received_us - sent


def parcels(
    senders: Iterable[tuple[Item, Sender | None]], request: Request, partitions: int
) -> list[tuple[int, Delivery]]:
    """Sort events into deliveries, one for each partition, source and address; keeps the order of what it sorts.

    Items without a sender are left out.
    """
    found: dict[tuple[int, int, str], Delivery] = {}
    for item, sender in senders:
        if sender is None:
            continue
        event = _event(item, request)
        partition = partition_for(item, request, event.message_id, partitions)
        ip = request.ip if sender.public or _is_direct(item, request.context) else ""
        key = (partition, sender.source_id, ip)
        delivery = found.get(key)
        if delivery is None:
            found[key] = Delivery(
                sender.source_id, request.received_us, ip, request.context, request.integrations, [event],
                request.trace,
            )  # fmt: skip
        else:
            delivery.events.append(event)
    return [(key[0], delivery) for key, delivery in found.items()]


def _event(item: Item, request: Request) -> Event:
    head = item.head
    if head is None:
        return Event(request.kind, _new_id(), request.skew_us, item.body)
    given = head.message_id
    message_id = "" if type(given) is str and given else _new_id()
    skew_us = request.skew_us
    # RudderStack's SDKs correct the time themselves and say so by sending both.
    if skew_us and _is_given(head.original_timestamp) and _is_given(head.timestamp):
        skew_us = 0
    return Event(request.kind, message_id, skew_us, item.body)


def _is_given(value: Raw) -> bool:
    return bytes(value) not in (b"", b"null", b'""')


def _new_id() -> str:
    return f"srv-{uuid4().hex}"


def _is_direct(item: Item, batch_context: bytes) -> bool:
    """Tell whether the event asks for the sender's address although its source is a server."""
    context = b"" if item.head is None else bytes(item.head.context)
    if b'"direct"' not in context and b'"direct"' not in batch_context:
        return False
    own = _read_context(context)
    return (_read_context(batch_context) if own.direct is msgspec.UNSET else own).direct is True


def partition_for(item: Item, request: Request, message_id: str, partitions: int) -> int:
    """Return where the event keeps its order: by its anchor, as processing finds it, else by its message id."""
    head = item.head
    if head is None:
        return partition_of(message_id, partitions)
    if type(head.user_id) is str:
        found = _partition_by(USER_ID, head.user_id, partitions)
        if found >= 0:
            return found
    if type(head.anonymous_id) is str and not _has_external(head, request):
        found = _partition_by(ANONYMOUS_ID, head.anonymous_id, partitions)
        if found >= 0 and not clean(USER_ID, head.user_id):
            return found
    return _partition_by_all(head, request, message_id, partitions)


def _has_external(head: Head, request: Request) -> bool:
    return b'"externalIds"' in bytes(head.context) or b'"externalIds"' in request.context


def _partition_by_all(head: Head, request: Request, message_id: str, partitions: int) -> int:
    own, batch = _read_context(head.context), _read_context(request.context)
    external = batch.external_ids if own.external_ids is msgspec.UNSET else own.external_ids
    email = _email(head.traits) if (request.kind or head.type) == "identify" else None
    if email is None:
        email = _email(own.traits if bytes(own.traits) else batch.traits)
    anchor = anchor_of(collect(head.user_id, head.anonymous_id, email, external))
    given = head.message_id if type(head.message_id) is str and head.message_id else message_id
    return partition_of(given if anchor is None else str(anchor), partitions)


@lru_cache(maxsize=65536)
def _partition_by(namespace: str, value: str, partitions: int) -> int:
    """Return the partition of an identifier, -1 for a value that identifies nobody."""
    usable = clean(namespace, value)
    return partition_of(f"{namespace}:{usable}", partitions) if usable else -1


def _read_context(context: Raw | bytes) -> _Context:
    try:
        return _context(context)
    except _unreadable:
        return _Context()


def _email(traits: Raw) -> Any:
    try:
        return _traits(traits).email
    except _unreadable:
        return None


def _object(value: bytes) -> bytes:
    """Return a batch's own object where it can be read, else b"": the items count without it."""
    if not value.startswith(b"{"):
        return b""
    try:
        value.decode()
        msgspec.json.decode(value)
    except _unreadable:
        return b""
    return value


def _value(value: bytes) -> Any:
    try:
        return msgspec.json.decode(value)
    except _unreadable:
        return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
