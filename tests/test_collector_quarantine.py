"""From the wire to the tables: what is bad lies in the dead letters with its reason, what is good is stored."""

import gzip
import json
from collections import Counter

import httpx
import pytest

from tests.collecting import basic
from tests.conftest import copied
from tests.sdks.bed import platform
from tests.test_collector_batches import ALL_BAD, GOOD


@pytest.fixture(scope="module")
def bed(_migrated):
    """Return a platform for all of these tests: each sends ids of its own."""
    with copied(_migrated) as url, platform(url) as bed:
        yield bed


def test_each_bad_event_of_a_batch_is_put_aside_and_the_good_ones_are_stored(bed):
    good = [json.dumps(GOOD | {"messageId": f"m{n}"}).encode() for n in range(2)]
    late = json.dumps(GOOD | {"messageId": "m2", "timestamp": "2099-01-01T00:00:00Z"}).encode()
    bad = [body for _, body in ALL_BAD]
    batch = b'{"batch": [' + b",".join([good[0], *bad, good[1], late]) + b"]}"
    with httpx.Client(base_url=bed.url, headers=basic(bed.key)) as client:
        answer = client.post("/v1/batch", content=gzip.compress(batch), headers={"Content-Encoding": "gzip"})
        assert (answer.status_code, answer.content) == (200, b'{"success": true}')
        for body, reason in ((b'{"userId": "u1"}', "missing_event"), (b'{"event": "a"}', "missing_id")):
            answer = client.post("/v1/track", content=body)
            assert (answer.status_code, answer.json()["code"]) == (400, reason)
        bed.process()
        put_aside = bed.rows("SELECT reason, status FROM cdp_deadletter")
        events = {event["message_id"]: event for event in bed.events() if event["message_id"] not in ("again", "read")}
    expected = Counter(reason for reason, _ in ALL_BAD) + Counter(["missing_event", "missing_id"])
    assert Counter(row["reason"] for row in put_aside) == expected
    assert {row["status"] for row in put_aside} == {"new"}
    assert sorted(events) == ["m0", "m1", "m2"]
    assert events["m2"]["flags"] == ["future_time"]
    assert events["m2"]["original_timestamp"] == "2099-01-01T00:00:00Z"


def test_an_event_sent_again_is_stored_once(bed):
    batch = {"batch": [GOOD | {"messageId": "again"}]}
    with httpx.Client(base_url=bed.url, headers=basic(bed.key)) as client:
        for _ in range(3):
            assert client.post("/v1/batch", json=batch).status_code == 200
        bed.process()
        assert client.post("/v1/batch", json=batch).status_code == 200
        bed.process()
        assert bed.rows("SELECT count(*) FROM event_stream WHERE message_id = 'again'") == [{"count": 1}]


def test_what_was_acknowledged_can_be_read_at_its_position(bed):
    with httpx.Client(base_url=bed.url, timeout=15) as client:
        reader = {"Authorization": f"Bearer {bed.manage('create_api_key', 'reports', '--scopes', 'profiles:read')}"}
        batch = {"batch": [GOOD | {"messageId": "read", "userId": "reader"}]}
        answer = client.post("/v1/batch?position=1", json=batch, headers=basic(bed.key))
        position = answer.headers["x-martech-position"]
        bed.process()
        found = client.get(f"/v1/profiles/user_id:reader?min_position={position}", headers=reader)
        assert (found.status_code, found.json()["computed_traits"]["event_count"]) == (200, 1)
