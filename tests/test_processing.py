"""What a batch of events becomes: rows, profiles, traits, dead letters."""

from datetime import UTC, datetime

import pytest

from martech.lib import clock
from tests.platform import message


def test_an_event_becomes_a_row_and_a_profile(core):
    sent = message(
        userId="u1", event="Order Completed", properties={"total": 12.50, "sku": "a\tb\\c\n"},
        context={"library": {"name": "x"}}, timestamp="2026-01-02T03:04:05.678+01:00", integrations={"All": True},
        extra1=1,
    )  # fmt: skip
    applied = core.apply(sent)
    assert (applied.events, applied.duplicates, applied.rejections) == (1, 0, {})
    row = core.events()[0]
    profile = core.profile("user_id:u1")
    assert row["profile_id"] == profile["id"]
    assert row["event_type"] == "track"
    assert row["name"] == "Order Completed"
    assert row["properties"] == {"total": 12.5, "sku": "a\tb\\c\n"}
    assert row["context"] == {"library": {"name": "x"}}
    assert row["extra"] == {"integrations": {"All": True}, "extra1": 1}
    assert row["identifiers"] == [["user_id", "u1"]]
    assert row["message_id"] == sent["messageId"]
    assert row["occurred_at"] == datetime(2026, 1, 2, 2, 4, 5, 678000, UTC)
    assert row["original_timestamp"] == "2026-01-02T03:04:05.678+01:00"
    assert profile["identity_graph"] == {"user_id": ["u1"]}
    assert profile["computed_traits"] == {
        "event_count": 1,
        "first_seen": "2026-01-02T02:04:05.678000Z",
        "last_seen": "2026-01-02T02:04:05.678000Z",
        "total_spent": 12.5,
    }
    assert profile["version"] == 1


def test_sums_are_exact_decimals(core):
    core.apply(*[message(userId="u1", event="Order Completed", properties={"total": 0.1}) for _ in range(10)])
    core.apply(message(userId="u1", event="Order Completed", properties={"total": 12345678901234567.89}))
    core.apply(b'{"type":"track","userId":"u1","event":"Order Completed","properties":{"total":1e-20}}')
    rows = core.rows("SELECT computed_traits->'total_spent' #>> '{}' AS total FROM customer_profiles")
    assert rows[0]["total"] == "12345678901234569.00000000000000000001"


@pytest.mark.parametrize("total", ["true", '"12"', "null", "[]", "1e500", "1e-500"])
def test_what_is_no_usable_number_is_not_summed(core, total):
    core.apply(
        b'{"type":"track","userId":"u1","event":"Order Completed","messageId":"a","properties":{"total":%b}}'
        % total.encode()
    )
    assert "total_spent" not in core.profile("user_id:u1")["computed_traits"]
    assert core.letters() == []


def test_given_traits_go_by_time_and_not_by_arrival(core):
    core.apply(
        message("identify", userId="u1", traits={"plan": "new", "city": "Bonn"}, timestamp="2026-02-02T00:00:00Z")
    )
    core.apply(message("identify", userId="u1", traits={"plan": "old", "age": 40}, timestamp="2026-01-01T00:00:00Z"))
    assert core.profile("user_id:u1")["traits"] == {"plan": "new", "city": "Bonn", "age": 40}
    core.apply(message("identify", userId="u1", traits={"city": None}, timestamp="2026-03-03T00:00:00Z"))
    assert core.profile("user_id:u1")["traits"] == {"plan": "new", "age": 40}


def test_rudder_sends_traits_in_the_context(core):
    core.apply(message("identify", userId="u1", context={"traits": {"email": "Ann@Example.com", "name": "Ann"}}))
    assert core.profile("email:ann@example.com")["traits"] == {"email": "Ann@Example.com", "name": "Ann"}
    assert core.events()[0]["properties"] == {"email": "Ann@Example.com", "name": "Ann"}


def test_a_batch_context_is_merged_into_each_item(core):
    core.apply(
        message(userId="u1", context={"page": 1}),
        message(userId="u1"),
        context=b'{"page":0,"app":{"v":2}}',
        ip="1.2.3.4",
    )
    assert [row["context"] for row in core.events()] == [
        {"page": 1, "app": {"v": 2}, "ip": "1.2.3.4"},
        {"page": 0, "app": {"v": 2}, "ip": "1.2.3.4"},
    ]


def test_repeated_messages_are_dropped_within_and_across_batches(core):
    one, two, three = message(userId="u1"), message(userId="u1"), message(userId="u1")
    core.apply(one)
    applied = core.apply(one, two, three, three)
    assert (applied.events, applied.duplicates) == (2, 2)
    core.pipeline.forget()
    assert core.apply(one, two, three).duplicates == 3
    assert len(core.events()) == 3
    assert core.profile("user_id:u1")["computed_traits"]["event_count"] == 3


def test_a_message_id_used_again_for_something_else_is_kept_and_flagged(core):
    core.apply(message(userId="u1", messageId="same", event="A"))
    for _ in range(2):
        core.apply(message(userId="u1", messageId="same", event="B"))
    first, second = core.events()
    assert (first["name"], first["message_id"], first["flags"]) == ("A", "same", [])
    assert (second["name"], second["flags"]) == ("B", ["reused_message_id"])
    assert second["message_id"].startswith("same#")


def test_two_sources_may_use_the_same_message_id(core):
    other = core.source("server")
    core.apply(message(userId="u1", messageId="same"))
    core.apply(message(userId="u1", messageId="same"), source=other)
    assert len(core.events()) == 2


def test_the_future_is_clamped_and_flagged_and_the_raw_time_kept(core):
    received = clock.now_us()
    core.apply(message(userId="u1", timestamp="2099-01-01T00:00:00Z"), received_us=received)
    row = core.events()[0]
    assert row["occurred_at"] == clock.from_us(received + 300_000_000)
    assert (row["flags"], row["original_timestamp"]) == (["future_time"], "2099-01-01T00:00:00Z")


def test_an_unreadable_time_is_the_time_of_receipt(core):
    received = clock.now_us()
    core.apply(message(userId="u1", timestamp="yesterday"), message(userId="u1"), received_us=received)
    assert [row["occurred_at"] for row in core.events()] == [clock.from_us(received)] * 2
    assert [row["flags"] for row in core.events()] == [["unreadable_time"], []]


BAD = {
    "malformed": b'{"type": "track", "userId": "u1", "event": ',
    "not_an_object": b"[1, 2]",
    "unknown_type": b'{"type": "trakc", "userId": "u1"}',
    "missing_type": b'{"userId": "u1"}',
    "missing_id": b'{"type": "page", "userId": "null", "anonymousId": null}',
    "missing_event": b'{"type": "track", "userId": "u1"}',
    "missing_group_id": b'{"type": "group", "userId": "u1"}',
    "missing_previous_id": b'{"type": "alias", "userId": "u1"}',
    "nul_character": b'{"type": "page", "userId": "u1", "properties": {"a": "x\\u0000y"}}',
    "lone_surrogate": b'{"type": "page", "userId": "u1", "properties": {"a": "\\ud800"}}',
    "too_large": b'{"type": "page", "userId": "u1", "properties": {"a": "' + b"x" * 40_000 + b'"}}',
    "identifier_too_long": b'{"type": "page", "userId": "' + b"x" * 600 + b'"}',
    "name_too_long": b'{"type": "page", "userId": "u1", "name": "' + b"x" * 300 + b'"}',
    "message_id_too_long": b'{"type": "page", "userId": "u1", "messageId": "' + b"x" * 300 + b'"}',
    # Only PostgreSQL notices these.
    "poison": b'{"type": "page", "userId": "u1", "properties": {"a": 1e400000}}',
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_event_is_put_aside_with_its_reason_and_the_good_ones_are_stored(core, reason):
    applied = core.apply(message(userId="u1"), BAD[reason], message(userId="u2"))
    assert applied.events == 2
    assert applied.rejections == {reason: 1}
    assert core.letters() == [reason]
    assert len(core.events()) == 2


@pytest.mark.parametrize(
    "value",
    [b"[" * 201 + b"]" * 201, b'{"a":' * 201 + b"1" + b"}" * 201, b"1" * 5000],
    ids=["arrays", "objects", "digits"],
)
def test_what_readers_could_not_read_again_is_put_aside(core, value):
    core.apply(b'{"type":"identify","userId":"u1","traits":{"a":' + value + b"}}", message(userId="u1"))
    assert core.letters() == ["malformed"]
    assert len(core.events()) == 1


def test_long_texts_of_digits_and_brackets_are_texts(core):
    text = "[" * 300 + "1" * 5000
    core.apply(message("identify", userId="u1", traits={"a": text, "b": [[[1]]] * 100}))
    assert core.profile("user_id:u1")["traits"] == {"a": text, "b": [[[1]]] * 100}


def test_every_bad_event_at_once(core):
    good = [message(userId=f"u{number % 7}") for number in range(50)]
    mixed = [*good[:20], *BAD.values(), *good[20:]]
    applied = core.apply(*mixed)
    assert applied.events == 50
    assert sorted(core.letters()) == sorted(BAD)
    counts = core.rows("SELECT (computed_traits->>'event_count')::int AS n FROM customer_profiles ORDER BY n")
    assert sum(row["n"] for row in counts) == 50


def test_an_escaped_backslash_before_u0000_is_no_nul(core):
    core.apply(b'{"type":"page","userId":"u1","properties":{"a":"\\\\u0000"}}')
    assert core.events()[0]["properties"] == {"a": "\\u0000"}


def test_a_browser_source_sets_no_email_and_no_consent(core):
    browser = core.source("browser")
    core.apply(
        message("identify", userId="u1", traits={"email": "evil@example.com", "name": "Ann", "consent": True}),
        source=browser,
    )
    profile = core.profile("user_id:u1")
    assert profile["identity_graph"] == {"user_id": ["u1"]}
    assert profile["traits"] == {"name": "Ann"}
    assert core.profile("email:evil@example.com") is None


def test_a_source_may_be_trusted_with_more(core):
    browser = core.source("browser", {"refused_namespaces": [], "refused_traits": []})
    core.apply(message("identify", userId="u1", traits={"email": "ann@example.com"}), source=browser)
    assert core.profile("email:ann@example.com")["traits"] == {"email": "ann@example.com"}


def test_events_of_a_source_that_may_set_no_identifier_are_put_aside(core):
    browser = core.source("browser")
    core.apply(message("identify", traits={"email": "evil@example.com"}), source=browser)
    assert core.letters() == ["missing_id"]


def test_state_lives_on_the_anchor_and_the_profile_is_the_combination(core):
    core.apply(message("page", anonymousId="a1"), message("page", anonymousId="a1"))
    core.apply(message("identify", userId="u1", anonymousId="a1"))
    core.apply(message(userId="u1"))
    states = core.rows("SELECT namespace, trait_states->>'1.1' AS count FROM cdp_identifier ORDER BY namespace")
    assert [(row["namespace"], row["count"]) for row in states] == [("anonymous_id", "2"), ("user_id", "2")]
    assert core.profile("user_id:u1")["trait_states"]["1.1"] == 4
