"""What a batch says of all its events counts for the size of each: a small request fills no disk."""

import json

import msgspec
import pytest

from cdp.log.base import Delivery, Event
from cdp.processing.decode import MAX_EVENT_BYTES, Message, Rejection, decode
from tests.platform import message

IP = "2001:0db8:85a3:0000:0000:8a2e:0370:7334"


def context_of(size):
    return json.dumps({"page": "x" * (size - len('{"page": ""}'))}).encode()


def decoded(body, **delivery):
    return decode(Event("", "m-1", 0, body), Delivery(1, 0, IP, delivery.get("context", b""), b"", []))


def test_an_event_of_the_greatest_size_with_a_context_as_large_passes():
    head = b'{"type":"page","userId":"u1","properties":{"a":"'
    body = head + b"x" * (MAX_EVENT_BYTES - len(head) - 3) + b'"}}'
    assert len(body) == MAX_EVENT_BYTES
    assert isinstance(decoded(body, context=context_of(MAX_EVENT_BYTES - 100)), Message)


def test_traits_in_the_context_count_twice_and_pass():
    head = b'{"type":"identify","userId":"u1","context":{"traits":{"a":"'
    body = head + b"x" * (MAX_EVENT_BYTES - len(head) - 4) + b'"}}}'
    assert len(body) == MAX_EVENT_BYTES
    assert isinstance(decoded(body), Message)


@pytest.mark.parametrize("where", ["context", "integrations"])
def test_an_event_that_its_batch_makes_too_large_is_refused_with_the_reason(where):
    event = Event("", "m-1", 0, b'{"type":"page","userId":"u1"}')
    parts = {"context": b"", "integrations": b""} | {where: context_of(2 * MAX_EVENT_BYTES + 1)}
    found = decode(event, Delivery(1, 0, "", parts["context"], parts["integrations"], []))
    assert isinstance(found, Rejection)
    assert (found.reason, found.message_id) == ("too_large_enriched", "m-1")
    assert f"at most {2 * MAX_EVENT_BYTES} are kept. Send less in the batch's `context`" in found.detail


def test_a_thousand_small_items_with_a_context_of_a_mebibyte_are_put_aside_in_little_room(core):
    items = [message(userId=f"u{number}") for number in range(1000)]
    applied = core.apply(*items, context=context_of(2**20))
    assert (applied.events, applied.rejections) == (0, {"too_large_enriched": 1000})
    [row] = core.rows("SELECT count(*) AS letters, sum(octet_length(delivery)) AS bytes FROM cdp_deadletter")
    assert row["letters"] == 1000
    assert row["bytes"] < 2**20
    first = core.rows("SELECT detail, delivery FROM cdp_deadletter ORDER BY id LIMIT 1")[0]
    assert first["detail"].endswith(" The batch's own `context` of 1048576 bytes is not kept with its events.")
    kept = msgspec.msgpack.decode(first["delivery"], type=Delivery)
    assert (kept.context, json.loads(kept.events[0].body)) == (b"", items[0])


def test_other_letters_keep_a_context_of_usual_size_and_no_larger(core):
    core.apply(b"{", context=context_of(MAX_EVENT_BYTES))
    core.apply(b"{", context=context_of(MAX_EVENT_BYTES + 1))
    rows = core.rows("SELECT delivery FROM cdp_deadletter ORDER BY id")
    kept = [msgspec.msgpack.decode(row["delivery"], type=Delivery).context for row in rows]
    assert [len(one) for one in kept] == [MAX_EVENT_BYTES, 0]


def test_a_large_event_that_shares_a_batch_with_poison_is_stored(core):
    large = message("page", userId="u1", properties={"a": "x" * 30_000})
    poison = b'{"type": "page", "userId": "u1", "properties": {"a": 1e400000}}'
    applied = core.apply(large, poison, context=context_of(MAX_EVENT_BYTES))
    assert (applied.events, applied.rejections) == (1, {"poison": 1})
