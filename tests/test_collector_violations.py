"""A single call that breaks a rule: its sender is told, and the event is kept for the dead letters."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp.collector.messages import Request, Sender, is_plain, parcels, read_item
from cdp.processing.decode import Rejection, decode

CASES = [
    ("track", {"userId": "u1"}, "missing_event"),
    ("track", {"userId": "u1", "event": ""}, "missing_event"),
    ("track", {"event": "a"}, "missing_id"),
    ("track", {"event": "a", "userId": "undefined", "anonymousId": None}, "missing_id"),
    ("track", {"event": "a\0", "userId": "u1"}, "nul_character"),
    ("track", {"event": "a", "userId": "u1", "properties": {"text": "x" * 40_000}}, "too_large"),
    ("track", {"event": "a", "userId": "u1", "properties": [1]}, "not_an_object"),
    ("identify", {}, "missing_id"),
    ("identify", {"userId": "u1", "traits": "none"}, "not_an_object"),
    ("page", {"userId": "u1", "name": "n" * 300}, "name_too_long"),
    ("screen", {"userId": "u" * 600}, "identifier_too_long"),
    ("group", {"userId": "u1"}, "missing_group_id"),
    ("alias", {"userId": "u1"}, "missing_previous_id"),
    ("alias", {"previousId": "a1"}, "missing_id"),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("call", "message", "reason"), CASES)
async def test_the_reason_is_the_code_and_the_event_is_logged(collector, call, message, reason):
    answer = await collector.post(f"/v1/{call}", message)
    assert (answer.status_code, answer.json()["code"]) == (400, reason)
    [logged] = collector.logged()
    assert logged.message == message
    assert decode(logged.event, logged.delivery).reason == reason


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (rb'{"event": "\ud800", "userId": "u"}', "lone_surrogate"),
        (b'{"event": "a", "userId": "u", "properties": ' + b"[" * 3000 + b"]" * 3000 + b"}", "malformed"),
        (b'{"event": "\xff", "userId": "u"}', "malformed"),
        (b'{"event": "a", "userId": "u", "properties": {"price": NaN}}', "malformed"),
    ],
)
async def test_what_strict_json_is_not_is_logged_as_it_is_if_its_brackets_match(collector, body, reason):
    answer = await collector.post("/v1/track", body)
    assert (answer.status_code, answer.json()["code"]) == (400, reason)
    assert [one.event.body for one in collector.logged()] == [body]


@pytest.mark.anyio
async def test_such_a_body_may_still_name_its_key(collector):
    body = rb'{"writeKey": "wk_browser", "event": "\ud800", "userId": "u"}'
    assert (await collector.post("/v1/track", body, key=None)).json()["code"] == "lone_surrogate"
    assert [one.delivery.source_id for one in collector.logged()] == [2]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"[]", b"[{}]", b"5", b'{"event": "a"', b'{"event": "a}', b"{]", b"{} {}"]
)
async def test_what_is_no_object_at_all_is_not_logged(collector, body):
    answer = await collector.post("/v1/track", body)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
    assert collector.logged() == []


DEEP = json.loads("[" * 220 + "0" + "]" * 220)
# Stands for a number of more digits than Python itself writes.
LONG = "a long number"
odd = st.sampled_from(
    [
        None, "", "a", "u1", "undefined", "x" * 300, "y" * 600, 0, 5, 1.5, True, [], {}, {"a": 1}, "é", "\0",
        {"deep": DEEP}, {"long": LONG},
    ]
)  # fmt: skip
external = st.lists(st.fixed_dictionaries({"id": odd, "type": odd}), max_size=2)
PLAIN = {"userId": "u1", "anonymousId": "a1", "event": "Signed Up", "messageId": "m1", "properties": {"total": 1}}
changes = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("userId", "anonymousId", "event", "name", "messageId", "previousId", "properties"), odd)
    | {
        "context": odd | st.fixed_dictionaries({}, optional={"externalIds": odd | external, "traits": odd}),
        "traits": odd | st.fixed_dictionaries({}, optional={"email": odd}),
    },
)
one_or_two = changes.map(lambda found: dict(list(found.items())[:2]))


@given(change=one_or_two, kind=st.sampled_from(["track", "identify", "page", "screen", "group", "alias"]))
def test_what_looks_plain_is_good(change, kind):
    body = json.dumps(PLAIN | change).encode().replace(f'"{LONG}"'.encode(), b"1" * 5000)
    item = read_item(body)
    if is_plain(item, kind, 6000):
        [(_, delivery)] = parcels([(item, Sender(1, False))], Request(kind, 1, ""), 8)
        assert not isinstance(decode(delivery.events[0], delivery, max_bytes=6000), Rejection)
