"""A profile's timeline by REST."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from django.db import connection

from cdp import partitions, timeline
from cdp.models import Identifier
from tests.factories import NOON, make_api_key, make_event, make_profile, make_source, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def get(client):
    headers = make_api_key("profiles:read")
    return lambda path, **query: client.get(path, query, headers=headers)


@pytest.fixture
def ann():
    return make_profile(("user_id", "user-1"), ("anonymous_id", "anon-1"))


@pytest.fixture
def shop():
    return make_source("shop")


def names(response):
    return [row["name"] for row in response.json()["results"]]


def test_an_event_answers_with_all_that_was_said_of_it(get, ann, shop):
    event_id = make_event(
        ann,
        shop,
        name="Order Completed",
        properties={"total": 12.5},
        context={"ip": "203.0.113.7"},
        message_id="m-1",
        flags=["future_time"],
        ingested_at=datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0),
    )
    row = get(f"/v1/profiles/{ann.pk}/events").json()["results"][0]
    assert row.pop("ingested_at").endswith("T12:00:00Z")
    assert row == {
        "event_id": event_id,
        "event_type": "track",
        "name": "Order Completed",
        "properties": {"total": 12.5},
        "context": {"ip": "203.0.113.7"},
        "identifiers": [{"namespace": "user_id", "value": "user-1"}],
        "occurred_at": "2026-11-01T12:00:00Z",
        "received_at": "2026-11-01T12:00:00Z",
        "message_id": "m-1",
        "source": "shop",
        "flags": ["future_time"],
    }


def test_the_timeline_is_of_all_identifiers_newest_first_a_page_at_a_time(get, ann, shop):
    user, anonymous = ann.identifiers.order_by("id")
    for minute in range(7):
        make_event(ann, shop, minute=minute, name=f"e{minute}", anchor=user if minute % 2 else anonymous)
    for number in range(3):
        make_event(ann, shop, minute=3, name=f"same-{number}", anchor=anonymous)
    make_event(make_profile(("user_id", "user-2")), shop, name="of somebody else")

    found, address = [], "/v1/profiles/user_id:user-1/events?limit=2"
    while address:
        page = get(address)
        found += names(page)
        address = page.json()["next"]
    assert found == ["e6", "e5", "e4", "same-2", "same-1", "same-0", "e3", "e2", "e1", "e0"]


def test_history_moves_with_its_identifier(get, ann, shop):
    anonymous = ann.identifiers.get(namespace="anonymous_id")
    make_event(ann, shop, name="as user")
    make_event(ann, shop, name="as visitor", anchor=anonymous)
    other = make_profile(("user_id", "user-2"))
    Identifier.objects.filter(pk=anonymous.pk).update(profile=other)

    assert names(get(f"/v1/profiles/{ann.pk}/events")) == ["as user"]
    assert names(get(f"/v1/profiles/{other.pk}/events")) == ["as visitor"]


def test_filters_by_type_name_and_time(get, ann, shop):
    for minute, (kind, name) in enumerate([("track", "a"), ("track", "b"), ("page", "a"), ("track", "a")]):
        make_event(ann, shop, minute=minute, event_type=kind, name=name, message_id=f"m{minute}")
    path = f"/v1/profiles/{ann.pk}/events"

    def ids(**query):
        return [row["message_id"] for row in get(path, **query).json()["results"]]

    assert ids(type="track") == ["m3", "m1", "m0"]
    assert ids(name="a") == ["m3", "m2", "m0"]
    assert ids(type="track", name="a") == ["m3", "m0"]
    assert ids(since=(NOON + timedelta(minutes=1)).isoformat()) == ["m3", "m2", "m1"]
    assert ids(until=(NOON + timedelta(minutes=1)).isoformat()) == ["m0"]
    assert get(path, type="nonsense").status_code == 400
    assert get(path, since="yesterday").status_code == 400


def test_what_was_said_keeps_its_digits_and_its_depth(client, ann, shop):
    event_id = make_event(ann, shop)
    deep = "[" * 2000 + "]" * 2000
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE event_stream SET properties = %s WHERE event_id = %s",
            [f'{{"big": 1{"0" * 5000}, "deep": {deep}, "exact": 0.10000000000000000001}}', event_id],
        )
    path = f"/v1/profiles/{ann.pk}/events"
    content = client.get(path, headers=make_api_key("profiles:read")).content
    assert b'"exact": 0.10000000000000000001' in content
    assert b'"big": 1' + b"0" * 5000 in content

    client.force_login(make_user("viewer"))
    assert client.get(path).json()["results"][0]["properties"] == "{•••"


def test_viewers_see_what_happened_and_not_what_was_said(client, ann, shop):
    make_event(ann, shop, name="Signed Up", properties={"plan": "gold"}, context={"ip": "203.0.113.7"})
    client.force_login(make_user("viewer"))
    row = client.get(f"/v1/profiles/{ann.pk}/events").json()["results"][0]
    assert (row["name"], row["properties"], row["context"]) == ("Signed Up", {"plan": "g•••"}, {"ip": "2•••"})
    assert row["identifiers"] == [{"namespace": "user_id", "value": "u•••"}]


@pytest.mark.parametrize("cursor", ["x", "WyIyMDI2LTAxLTAxIiwgIjEiXQ==", "WyIyMDI2LTAxLTAxVDAwOjAwOjAwWiIsICItMSJd"])
def test_a_bad_cursor_is_400(get, ann, cursor):
    response = get(f"/v1/profiles/{ann.pk}/events", cursor=cursor)
    assert (response.status_code, response.json()["code"]) == (400, "bad_cursor")


def scans(node):
    """Yield the scans of a plan, with how many rows each gave."""
    if "Relation Name" in node:
        yield node["Relation Name"], node["Node Type"], node["Actual Rows"] * node["Actual Loops"]
    for inner in node.get("Plans", []):
        yield from scans(inner)


@pytest.mark.parametrize("busy", [True, False])
def test_a_page_reads_no_more_of_each_partition_than_it_shows(ann, shop, busy):
    """For a person who caused a quarter of all events, and for one of many."""
    today = datetime.now(UTC).date()
    with connection.cursor() as cursor:
        raw: psycopg.Connection = cursor.connection
        partitions.ensure(raw, partitions.EVENTS, days=1, today=today - timedelta(days=3), ahead=3)
        cursor.execute(
            """
            INSERT INTO event_stream (ingested_at, profile_id, anchor_id, identifiers, event_type, source_id,
                                      message_id, occurred_at, received_at)
            SELECT now() - n %% 4 * interval '1 day', %s, CASE WHEN n %% 16 < 4 THEN 1 ELSE 1000 + n END,
                   '[]', 'track', %s, n::text, now() - n * interval '1 second', now()
            FROM generate_series(1, 20000) n
            """,
            [ann.pk, shop.pk],
        )
        cursor.execute("ANALYZE event_stream")
        anchors = [1 if busy else 1007, 1008, 1009]
        text, values = timeline.query(anchors, limit=11, before=timeline.Position(datetime.now(UTC), 10**9))
        cursor.execute(timeline.IN_ORDER)
        cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + text.as_string(raw), values)
        plan = cursor.fetchone()[0][0]["Plan"]
    read = [scan for scan in scans(plan) if scan[0].startswith("event_stream")]
    assert {kind for _table, kind, _rows in read} == {"Index Scan"}
    assert sum(rows for _table, _kind, rows in read) <= len(anchors) * (11 + len(read))
