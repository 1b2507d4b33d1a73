"""Batches: one bad event costs no other; what the batch says counts for all."""

import json

import pytest

from cdp.processing.decode import Rejection, decode

pytestmark = pytest.mark.anyio

GOOD = {"type": "track", "event": "Signed Up", "userId": "u1", "messageId": "m1"}
BAD = {
    "malformed": b'{"type": "track", "event": "a", "userId": "u", "properties": {"price": NaN}}',
    "too_large": json.dumps(GOOD | {"properties": {"text": "x" * 40_000}}).encode(),
    "lone_surrogate": rb'{"type": "track", "event": "\ud800", "userId": "u"}',
    "nul_character": rb'{"type": "track", "event": "a\u0000b", "userId": "u"}',
    "unknown_type": b'{"type": "purchase", "userId": "u"}',
    "missing_type": b'{"event": "a", "userId": "u"}',
    "missing_id": b'{"type": "track", "event": "a"}',
    "missing_event": b'{"type": "track", "userId": "u"}',
    "missing_previous_id": b'{"type": "alias", "userId": "u"}',
    "missing_group_id": b'{"type": "group", "userId": "u"}',
    "not_an_object": b"[1, 2]",
    "identifier_too_long": json.dumps(GOOD | {"userId": "u" * 600}).encode(),
    "name_too_long": json.dumps(GOOD | {"event": "e" * 300}).encode(),
    "message_id_too_long": json.dumps(GOOD | {"messageId": "m" * 300}).encode(),
}
DEEP = b'{"type": "track", "event": "a", "userId": "u", "properties": ' + b"[" * 3000 + b"]" * 3000 + b"}"
ALL_BAD = [
    *BAD.items(),
    ("malformed", DEEP),
    ("malformed", b'{"type": "track", "event": "\xff\xfe", "userId": "u"}'),
    ("malformed", b'{"type": "track", "event": "a\x00b", "userId": "u"}'),
    ("malformed", b"{\"type\": 'track'}"),
    ("not_an_object", b"null"),
    ("not_an_object", b'"text"'),
    ("not_an_object", b"17"),
    ("unknown_type", b'{"type": {"a": 1}, "userId": "u"}'),
    ("missing_event", b'{"type": "track", "event": ["a"], "userId": "u"}'),
    ("missing_id", b'{"type": "track", "event": "a", "userId": {"id": 5}, "anonymousId": null}'),
]


def verdict(one):
    found = decode(one.event, one.delivery)
    return found.reason if isinstance(found, Rejection) else "good"


@pytest.mark.parametrize(("reason", "bad"), ALL_BAD)
async def test_a_bad_event_is_logged_as_it_is_and_the_others_with_it(collector, reason, bad):
    good = json.dumps(GOOD).encode()
    answer = await collector.post("/v1/batch", b'{"batch": [' + good + b", " + bad + b" ,\n" + good + b"]}")
    assert (answer.status_code, answer.content) == (200, b'{"success": true}')
    logged = collector.logged()
    assert sorted(one.event.body for one in logged) == sorted([good, good, bad])
    assert sorted(map(verdict, logged)) == sorted(["good", "good", reason])


@pytest.mark.parametrize("bad", [bad for reason, bad in ALL_BAD if reason == "malformed"])
async def test_order_is_kept_where_a_bad_event_forces_the_slow_way(collector, bad):
    items = [json.dumps(GOOD | {"event": f"e{n}"}).encode() for n in range(10)]
    assert (await collector.post("/v1/batch", b'{"batch": [' + b",".join([*items, bad]) + b"]}")).status_code == 200
    assert [one.event.body for one in collector.logged() if one.event.body != bad] == items


async def test_an_unforeseen_time_travels_on_to_the_processor(collector):
    sent = GOOD | {"timestamp": "2099-01-01T00:00:00Z"}
    assert (await collector.post("/v1/batch", {"batch": [sent]})).status_code == 200
    [logged] = collector.logged()
    found = decode(logged.event, logged.delivery)
    assert (found.flags, found.original_timestamp) == (("future_time",), "2099-01-01T00:00:00Z")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"nonsense", b"{}", b"[]", b"null", b'{"batch": null}', b'{"batch": {}}', b'{"batch": "a"}',
        b'{"batch": [{"a": 1]}', b'{"batch": [{"a": 1}', b'{"batch": [{"a": "b}]}', b'{"batch": []} more',
        b'{"batch": [{]}}', b'{"batch" [1]}', b"\xff\xfe",
    ],
)  # fmt: skip
async def test_a_batch_that_cannot_be_taken_apart_is_400(collector, body):
    answer = await collector.post("/v1/batch", body)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
    assert collector.logged() == []


async def test_an_empty_batch_is_fine(collector):
    assert (await collector.post("/v1/batch", {"batch": []})).content == b'{"success": true}'
    assert collector.logged() == []


async def test_many_small_events_are_one_batch(collector):
    items = [{"type": "page", "userId": f"u{n}"} for n in range(6000)]
    assert (await collector.post("/v1/batch", {"batch": items})).status_code == 200
    assert len(collector.logged()) == 6000


async def test_what_the_batch_says_travels_once_for_all(collector):
    context, integrations = {"library": {"name": "x"}, "ip": "1.2.3.4"}, {"All": False}
    await collector.post("/v1/batch", {"batch": [GOOD, GOOD], "context": context, "integrations": integrations})
    delivery = collector.logged()[0].delivery
    assert (json.loads(delivery.context), json.loads(delivery.integrations)) == (context, integrations)
    assert len(delivery.events) == 2


@pytest.mark.parametrize(
    "context", [b"null", b"[]", b'"text"', b"5", rb'{"a": "\ud800"}', b'{"a": NaN}', b'{"a": "\xff"}']
)
async def test_a_context_of_the_batch_that_cannot_be_read_costs_no_event(collector, context):
    body = b'{"context": ' + context + b', "batch": [' + json.dumps(GOOD).encode() + b"]}"
    assert (await collector.post("/v1/batch", body)).status_code == 200
    [logged] = collector.logged()
    assert (logged.delivery.context, verdict(logged)) == (b"", "good")


@pytest.mark.parametrize("message_id", [None, "", 5, ["a"]])
async def test_an_event_without_a_message_id_gets_one(collector, message_id):
    await collector.post("/v1/batch", {"batch": [GOOD | {"messageId": message_id}, GOOD]})
    given, kept = sorted(collector.logged(), key=lambda one: one.message["messageId"] == "m1")
    assert given.event.message_id.startswith("srv-")
    assert len(given.event.message_id) == 36
    assert kept.event.message_id == ""


async def test_a_context_that_would_become_gigabytes_is_refused(collector):
    context = {"text": "x" * 30_000}
    answer = await collector.post("/v1/batch", {"batch": [GOOD] * 2_300, "context": context})
    assert (answer.status_code, answer.json()["code"]) == (413, "context_too_large")
    answer = await collector.post("/v1/batch", {"batch": [GOOD] * 2_200, "context": context})
    assert answer.status_code == 200
