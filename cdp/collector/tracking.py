"""The calls of the tracking API: from a request to durable events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from cdp.collector import metrics
from cdp.collector.addresses import Proxies
from cdp.collector.answers import SUCCESS, SUCCESS_BODY, Answer, Refused, answer, other_method
from cdp.collector.bodies import Body, Receive, Room, pass_over
from cdp.collector.flusher import Flusher, Parcel, Positions
from cdp.collector.keys import KeyTable, WriteKey, basic_user
from cdp.collector.messages import (
    MOST_EVENTS,
    Batch,
    Item,
    Request,
    Sender,
    is_plain,
    own_key,
    parcels,
    read_batch,
    read_item,
    read_single,
    read_trace,
    skew,
)
from cdp.collector.pressure import HARD, SOFT, Pressure
from cdp.collector.splitter import Malformed
from cdp.config import Config
from cdp.log.base import Delivery
from cdp.processing.decode import Rejection, decode
from martech.lib import clock

T = TypeVar("T")
Headers = Mapping[bytes, bytes]

# The heads of this many events are read before other requests get their turn.
SLICE = 500
# A larger body is read in a thread: a broken one costs up to a microsecond a byte.
LARGE_BODY = 2**18
# A batch's context is merged into each of its events: a small request must not become gigabytes.
MOST_SPREAD = 64 * 2**20
# Keys that one batch's items may name for themselves; each costs a look-up.
MOST_OWN_KEYS = 100
# What a batch's event takes up until it is in the log, beside its bytes: measured.
HELD_BYTES = 400


class Call(NamedTuple):
    """An endpoint of the tracking API: its name, and the type of its event ("" where items tell themselves)."""

    name: str
    kind: str


_KINDS = ("track", "identify", "page", "screen", "group", "alias")
CALLS: dict[str, Call] = {
    **{f"/v1/{kind}": Call(kind, kind) for kind in _KINDS},
    **{f"/v1/{kind[0]}": Call(kind, kind) for kind in _KINDS},
    "/v1/batch": Call("batch", ""),
    "/v1/b": Call("batch", ""),
    "/v1/import": Call("import", ""),
}
CALLS |= {f"{path}/": call for path, call in CALLS.items()}


class Tracking:
    """Takes tracking calls: who sends, which events, into the log."""

    def __init__(
        self,
        config: Config,
        *,
        partitions: int,
        keys: KeyTable,
        flusher: Flusher,
        pressure: Pressure,
        room: Room,
        proxies: Proxies,
    ) -> None:
        self._config, self._pressure = config, pressure
        self._partitions = partitions
        self._keys, self._flusher, self._room, self._proxies = keys, flusher, room, proxies
        self._skew_us = int(config.collector_clock_skew_seconds * 1_000_000)

    async def take(self, call: Call, scope: Mapping[str, Any], receive: Receive) -> Answer:
        """Answer a tracking call: success once all its events are durable; Refused or RetryableError else."""
        if scope["method"] != "POST":
            return other_method(scope["method"], b"POST, OPTIONS")
        headers = dict(scope["headers"])
        if self._pressure.level >= HARD:
            await pass_over(receive, headers)
            self._pressure.refuse_all()
        body = Body(self._room, self._config.collector_request_bytes)
        try:
            data = await body.read(receive, headers)
            request = Request(call.kind, clock.now_us(), self._proxies.client(scope))
            if b"traceparent" in headers:
                request.trace = read_trace(headers[b"traceparent"])
            if call.kind:
                positions = await self._single(data, request, headers, call)
            else:
                positions = await self._batch(data, request, headers, call, body)
        except Malformed as error:
            raise Refused(400, error.code, error.message) from error
        finally:
            body.release()
        return _accepted(positions) if b"position=1" in scope["query_string"].split(b"&") else SUCCESS

    async def _single(self, data: bytes, request: Request, headers: Headers, call: Call) -> Positions:
        key = await self._header_key(headers)
        item, body_key = await _aside_if_large(read_single, data)
        if key is None:
            key = await self._write_key(body_key)
        _check_call(key, call.name)
        if item.head is not None:
            request.skew_us = skew(item.head.sent_at, request.received_us, self._skew_us)
        found = parcels([(item, _sender(key))], request, self._partitions)
        positions = await self._submit(found, len(data))
        self._refuse_violation(item, found[0][1])
        return positions

    def _refuse_violation(self, item: Item, delivery: Delivery) -> None:
        """Tell the sender of a single call what is wrong with it; the processor quarantines it for the same reason."""
        if is_plain(item, delivery.events[0].kind, self._config.collector_event_bytes):
            return
        verdict = decode(delivery.events[0], delivery, max_bytes=self._config.collector_event_bytes)
        if isinstance(verdict, Rejection):
            raise Refused(400, verdict.reason, verdict.detail)

    async def _batch(self, data: bytes, request: Request, headers: Headers, call: Call, body: Body) -> Positions:
        key = await self._header_key(headers)
        batch = await _aside_if_large(read_batch, data)
        if len(batch.items) > MOST_EVENTS:
            raise Refused(413, "too_many_events", f"A batch may have {MOST_EVENTS} events. Send smaller batches.")
        body.hold(len(data) + HELD_BYTES * len(batch.items))
        if len(batch.items) * (len(batch.context) + len(batch.integrations)) > MOST_SPREAD:
            raise Refused(
                413, "context_too_large",
                f"The batch's context would be repeated in each of its {len(batch.items)} events, "
                f"{MOST_SPREAD // 2**20} MiB together at the most. Send less context, or smaller batches.",
            )  # fmt: skip
        request.context, request.integrations = batch.context, batch.integrations
        # An import's times are history, told by no device's clock.
        if call.name != "import":
            request.skew_us = skew(batch.sent_at, request.received_us, self._skew_us)
        items: list[Item] = []
        for bodies in _slices(batch.items):
            items += map(read_item, bodies)
            await _let_others(batch.items)
        owned = await self._owned(key, batch, items, call)
        found: list[Parcel] = []
        for part in _slices(owned):
            found += parcels(part, request, self._partitions)
            await _let_others(owned)
        if not found:
            return {}
        # Each source and partition has the batch's context once more.
        repeated = (len(found) - 1) * (len(batch.context) + len(batch.integrations))
        body.hold(repeated)
        return await self._submit(found, len(data) + repeated)

    async def _owned(
        self, key: WriteKey | None, batch: Batch, items: list[Item], call: Call
    ) -> list[tuple[Item, Sender | None]]:
        """Say whose each item is: the header's source, else that of the item's own key, else the body's."""
        if key is not None:
            _check_call(key, call.name)
            sender = _sender(key)
            return [(item, sender) for item in items]
        base = await self._write_key(batch.write_key) if batch.write_key else None
        senders = await self._own_senders({own_key(item) for item in items} - {"", batch.write_key}, call)
        if base is not None:
            _check_call(base, call.name)
        elif not senders:
            raise _unauthorised(any(map(own_key, items)))
        fallback = None if base is None else _sender(base)
        owned = [(item, senders.get(own_key(item), fallback)) for item in items]
        metrics.UNATTRIBUTED.inc(sum(sender is None for _, sender in owned))
        return owned

    async def _own_senders(self, keys: set[str], call: Call) -> dict[str, Sender]:
        found = {}
        for own in sorted(keys)[:MOST_OWN_KEYS]:
            key = await self._keys.find(own)
            if isinstance(key, WriteKey):
                _check_call(key, call.name)
                found[own] = _sender(key)
        return found

    async def _submit(self, found: list[Parcel], size: int) -> Positions:
        if self._pressure.level >= SOFT:
            self._pressure.spend(_counts(found), self._keys.quota)
        positions = await self._flusher.submit(found, size)
        for _, delivery in found:
            metrics.events(delivery.source_id).inc(len(delivery.events))
        return positions

    async def _header_key(self, headers: Headers) -> WriteKey | None:
        """Return the write key of the Authorization header, None where it names none; 401 where it is unknown."""
        authorization = headers.get(b"authorization", b"")
        key = self._keys.of_header(authorization)
        if key is None:
            user = basic_user(authorization)
            return await self._write_key(user) if user else None
        if not isinstance(key, WriteKey):
            raise _unauthorised(True)
        return key

    async def _write_key(self, key: str) -> WriteKey:
        found = await self._keys.find(key) if key else None
        if not isinstance(found, WriteKey):
            raise _unauthorised(bool(key))
        return found


def _unauthorised(given: bool) -> Refused:
    if given:
        return Refused(401, "unknown_write_key", "The write key is not known, or its source is switched off. Check it.")
    return Refused(401, "missing_write_key", "Send the write key as Basic user name, or as `writeKey` in the body.")


def _check_call(key: WriteKey, call: str) -> None:
    if key.refuses(call):
        raise Refused(
            403, "refused_call", f"This source may not call {call}. Use a server's source or change its rules."
        )


def _sender(key: WriteKey) -> Sender:
    return Sender(key.source_id, key.public)


def _counts(found: list[Parcel]) -> dict[int, int]:
    """Return the number of events by source."""
    counts: dict[int, int] = {}
    for _, delivery in found:
        counts[delivery.source_id] = counts.get(delivery.source_id, 0) + len(delivery.events)
    return counts


def _accepted(positions: Positions) -> Answer:
    token = ",".join(f"{partition}.{position}" for partition, position in sorted(positions.items()))
    return answer(200, SUCCESS_BODY, headers=[(b"x-martech-position", token.encode())])


async def _aside_if_large(read: Callable[[bytes], T], data: bytes) -> T:
    return await asyncio.to_thread(read, data) if len(data) > LARGE_BODY else read(data)


def _slices(found: list[T]) -> list[list[T]]:
    return [found] if len(found) <= SLICE else [found[start : start + SLICE] for start in range(0, len(found), SLICE)]


async def _let_others(found: list[Any]) -> None:
    if len(found) > SLICE:
        await asyncio.sleep(0)
