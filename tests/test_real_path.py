"""What senders send, by the real core, as the API and the admin then tell it."""

import json
from contextlib import closing

import pytest
from django.conf import settings
from django.db import connection

from cdp.log import open_log
from cdp.log.base import Delivery, Event, decode_entry
from cdp.models import DeadLetter, Source
from cdp.processing.pipeline import Pipeline, arrive
from martech.lib import clock
from tests.factories import make_api_key, make_source, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def get(client):
    headers = make_api_key("all")
    return lambda path, **query: client.get(path, query, headers=headers).json()


def process(*deliveries):
    """Take deliveries through the core, in the transaction of the test."""
    arrivals = [arrive(event, delivery, 1, "1-0") for delivery in deliveries for event in delivery.events]
    return Pipeline().apply(connection.connection, arrivals)


def send(source, *messages):
    """Process messages as an SDK sends them."""
    events = [Event("", "", 0, json.dumps(message).encode()) for message in messages]
    return process(Delivery(source.pk, clock.now_us(), "", b"", b"", events))


def test_a_visitor_who_logs_in_is_one_profile_with_one_timeline(get):
    shop = make_source("shop")
    send(
        shop,
        {"type": "page", "anonymousId": "anon-1", "name": "Home", "messageId": "m-1",
         "timestamp": "2026-11-01T10:00:00Z"},
        {"type": "identify", "userId": "user-1", "anonymousId": "anon-1", "messageId": "m-2",
         "timestamp": "2026-11-01T10:01:00Z", "traits": {"email": "Ann@Example.com", "name": "Ann Archer"}},
        {"type": "track", "userId": "user-1", "event": "Order Completed", "messageId": "m-3",
         "timestamp": "2026-11-01T10:02:00Z", "properties": {"total": 19.99}},
    )  # fmt: skip
    profile = get("/v1/profiles/user_id:user-1")
    assert get("/v1/profiles/anonymous_id:anon-1")["id"] == profile["id"]
    assert profile["identifiers"] == [
        {"namespace": "user_id", "value": "user-1"},
        {"namespace": "anonymous_id", "value": "anon-1"},
        {"namespace": "email", "value": "ann@example.com"},
    ]
    assert profile["traits"]["name"] == "Ann Archer"
    assert profile["computed_traits"]["event_count"] == 3
    events = get(f"/v1/profiles/{profile['id']}/events")["results"]
    assert [(row["event_type"], row["name"], row["message_id"]) for row in events] == [
        ("track", "Order Completed", "m-3"),
        ("identify", "", "m-2"),
        ("page", "Home", "m-1"),
    ]
    assert events[0]["properties"] == {"total": 19.99}
    assert events[1]["identifiers"] == [
        {"namespace": "user_id", "value": "user-1"},
        {"namespace": "email", "value": "ann@example.com"},
        {"namespace": "anonymous_id", "value": "anon-1"},
    ]


def test_a_refused_event_is_replayed_after_the_rules_were_mended_and_counts_once(client, get):
    shop = make_source("shop", rules={"refused_calls": ["track"]})
    send(shop, {"type": "track", "userId": "user-1", "event": "Clicked", "messageId": "m-1"})
    assert [row["reason"] for row in get("/v1/dead-letters")["results"]] == ["refused_call"]
    letter = DeadLetter.objects.get()
    with closing(open_log(settings.CONFIG.log_url, partitions=settings.CONFIG.log_partitions)) as log:
        start = {partition: log.newest(partition) for partition in range(log.partitions)}
        client.force_login(make_user("operator"))
        for status in ("new", "new"):  # as if the first replay had crashed between append and mark
            DeadLetter.objects.update(status=status)
            body = {"ids": [letter.pk]}
            client.post("/v1/dead-letters/replay", body, content_type="application/json")
        entries = [entry for found in log.read(start, limit=10, wait=1).values() for entry in found]
    source = Source.objects.get()
    source.rules = {}
    source.save()
    for entry in entries:
        process(*decode_entry(entry.payload).deliveries)
    assert len(entries) == 2
    assert [(row["id"], row["status"]) for row in get("/v1/dead-letters")["results"]] == [(letter.pk, "replayed")]
    assert [row["message_id"] for row in get("/v1/profiles/user_id:user-1/events")["results"]] == ["m-1"]
    assert get("/v1/profiles/user_id:user-1")["computed_traits"]["event_count"] == 1


def test_two_people_who_do_not_merge_leave_a_decision(get):
    shop = make_source("shop")
    send(shop, {"type": "identify", "userId": "user-1", "anonymousId": "anon-1", "messageId": "m-1"})
    send(shop, {"type": "identify", "userId": "user-2", "anonymousId": "anon-1", "messageId": "m-2"})
    decisions = get("/v1/identity-decisions", profile="user_id:user-1")["results"]
    assert [row["kind"] for row in decisions] == ["refusal"]
    assert get("/v1/profiles/user_id:user-1")["id"] != get("/v1/profiles/user_id:user-2")["id"]
