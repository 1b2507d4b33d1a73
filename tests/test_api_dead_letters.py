"""Dead letters by REST: looking at them, and giving them back to the log."""

from contextlib import closing
from datetime import timedelta

import msgspec
import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext

from cdp import dead_letters
from cdp.log import open_log
from cdp.log.base import decode_entry
from cdp.models import DeadLetter
from martech.lib import clock
from tests.factories import NOON, make_api_key, make_dead_letter, make_source, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def shop():
    return make_source("shop")


@pytest.fixture
def get(client):
    headers = make_api_key("dead_letters:read")
    return lambda path, **query: client.get(path, query, headers=headers)


@pytest.fixture
def replay(client):
    headers = make_api_key("dead_letters:write")
    return lambda **body: client.post("/v1/dead-letters/replay", body, content_type="application/json", headers=headers)


@pytest.fixture
def arrivals():
    """Return what has been appended to the log since the test began, as (partition, delivery)."""
    with closing(open_log(settings.CONFIG.log_url, partitions=settings.CONFIG.log_partitions)) as log:
        start = {partition: log.newest(partition) for partition in range(log.partitions)}

        def read():
            found = log.read(start, limit=10_000, wait=0.01)
            return [
                (partition, delivery)
                for partition, entries in sorted(found.items())
                for entry in entries
                for delivery in decode_entry(entry.payload).deliveries
            ]

        yield read


def test_a_dead_letter_answers_with_what_the_sender_sent(get, shop):
    letter = make_dead_letter(shop, body=b'{"type":"track","n":1}', message_id="m-1", reason="missing_id")
    body = get(f"/v1/dead-letters/{letter.pk}").json()
    assert body == {
        "id": letter.pk,
        "status": "new",
        "reason": "missing_id",
        "detail": "The event has no usable userId.",
        "source": "shop",
        "message_id": "m-1",
        "received_at": "2026-11-01T12:00:00Z",
        "created_at": "2026-11-01T12:00:00Z",
        "replayed_at": None,
        "attempts": 0,
        "payload": '{\n  "type": "track",\n  "n": 1\n}',
        "payload_json": {"type": "track", "n": 1},
        "truncated": False,
    }


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "{"),
        (b"\xff\xfe", "��"),
        (b'{"a": "\\ud800"}', '{"a": "\\ud800"}'),
        (b'{"a": NaN}', '{"a": NaN}'),
        (b"a\0b", "a�b"),
        (b"[" * 100_000, "[" * 100_000),
        (b"", ""),
    ],
)
def test_a_payload_that_is_no_sound_json_is_text(get, shop, body, text):
    letter = make_dead_letter(shop, body=body)
    answer = get(f"/v1/dead-letters/{letter.pk}").json()
    assert (answer["payload"], answer["payload_json"]) == (text, None)


def test_a_large_payload_is_cut(get, shop):
    letter = make_dead_letter(shop, body=b'"' + b"x" * dead_letters.SHOWN_BYTES + b'"')
    answer = get(f"/v1/dead-letters/{letter.pk}").json()
    assert answer["truncated"] is True
    assert len(answer["payload"]) == dead_letters.SHOWN_BYTES


def test_the_list_is_filtered_and_leaves_payloads_out(get, shop):
    other = make_source("app")
    first = make_dead_letter(shop, reason="missing_id")
    second = make_dead_letter(shop, reason="too_large")
    third = make_dead_letter(other, reason="too_large", status="replayed")

    def ids(**query):
        return [row["id"] for row in get("/v1/dead-letters", **query).json()["results"]]

    assert ids() == [third.pk, second.pk, first.pk]
    assert ids(reason="too_large") == [third.pk, second.pk]
    assert ids(source="shop") == [second.pk, first.pk]
    assert ids(status="new", reason="too_large", source="shop") == [second.pk]
    assert get("/v1/dead-letters", source="nobody").status_code == 400
    assert "payload" not in get("/v1/dead-letters").json()["results"][0]


def test_the_summary_counts_groups_up_to_a_cap(shop, get, monkeypatch):
    other = make_source("app")
    for number in range(3):
        make_dead_letter(shop, reason="too_large")
        make_dead_letter(shop if number else other, reason="missing_id")
    make_dead_letter(shop, reason="missing_id", status="replayed")
    summary = get("/v1/dead-letters/summary").json()["results"]
    assert [(row["status"], row["reason"], row["source"], row["count"], row["shown"]) for row in summary] == [
        ("new", "too_large", "shop", 3, "3"),
        ("new", "missing_id", "shop", 2, "2"),
        ("new", "missing_id", "app", 1, "1"),
        ("replayed", "missing_id", "shop", 1, "1"),
    ]
    assert [(group.count, group.shown) for group in dead_letters.summary(cap=2)][:2] == [(2, "2+"), (2, "2")]


def test_an_empty_summary_is_empty(get):
    assert get("/v1/dead-letters/summary").json() == {"results": []}


def test_replay_gives_the_letters_back_as_they_came(replay, shop, arrivals):
    letters = [make_dead_letter(shop, body=b'{"n": %d}' % number, log_partition=5) for number in range(3)]
    answer = replay(ids=[letter.pk for letter in letters[:2]])
    assert (answer.status_code, answer.json()) == (200, {"matched": 2, "replayed": 2, "more": False})
    assert arrivals() == [
        (5, msgspec.structs.replace(dead_letters.delivery_of(letter), letter_id=letter.pk)) for letter in letters[:2]
    ]
    rows = DeadLetter.objects.order_by("pk").values_list("status", flat=True)
    assert list(rows) == ["replaying", "replaying", "new"]
    assert DeadLetter.objects.get(pk=letters[0].pk).replayed_at is not None


def test_a_letter_that_is_on_its_way_is_left_alone_for_ten_minutes(replay, shop, arrivals):
    letter = make_dead_letter(shop)
    replay(ids=[letter.pk])
    DeadLetter.objects.update(replayed_at=clock.now() - timedelta(minutes=9))
    assert replay(ids=[letter.pk]).json()["replayed"] == 0
    DeadLetter.objects.update(replayed_at=clock.now() - timedelta(minutes=11))
    assert replay(ids=[letter.pk]).json()["replayed"] == 1
    assert DeadLetter.objects.get().replayed_at > clock.now() - timedelta(minutes=1)
    assert len(arrivals()) == 2


def test_a_processor_that_is_quicker_than_the_replay_has_the_last_word(shop):
    stored, refused, _ = letters = [make_dead_letter(shop) for _ in range(3)]
    DeadLetter.objects.filter(pk=stored.pk).update(status="replayed")
    DeadLetter.objects.filter(pk=refused.pk).update(attempts=1, reason="poison")
    assert dead_letters._give_back(letters) == 3
    rows = DeadLetter.objects.order_by("pk")
    assert [row.status for row in rows] == ["replayed", "new", "replaying"]
    assert all(row.replayed_at for row in rows)


def test_a_letter_is_replayed_once(replay, shop, arrivals):
    letter = make_dead_letter(shop)
    replay(ids=[letter.pk])
    assert replay(ids=[letter.pk]).json() == {"matched": 0, "replayed": 0, "more": False}
    assert len(arrivals()) == 1


def test_replay_by_reason_and_source(replay, shop, arrivals):
    app = make_source("app")
    wanted = make_dead_letter(shop, reason="too_large")
    make_dead_letter(app, reason="too_large")
    make_dead_letter(shop, reason="missing_id")
    assert replay(reason="too_large", source="shop").json()["replayed"] == 1
    assert [delivery.source_id for _partition, delivery in arrivals()] == [shop.pk]
    assert DeadLetter.objects.get(status="replaying").pk == wanted.pk


def test_lists_and_replays_are_filtered_by_message_and_time(get, replay, shop, arrivals):
    early = make_dead_letter(shop, message_id="m-1", received_at=NOON - timedelta(hours=1))
    late = make_dead_letter(shop, message_id="m-2")

    def ids(**query):
        return [row["id"] for row in get("/v1/dead-letters", **query).json()["results"]]

    noon = NOON.isoformat()
    assert (ids(message_id="m-1"), ids(since=noon), ids(until=noon)) == ([early.pk], [late.pk], [early.pk])
    assert replay(until=noon).json()["replayed"] == 1
    assert replay(since=noon, message_id="m-1").json()["matched"] == 0
    assert [row.status for row in DeadLetter.objects.order_by("pk")] == ["replaying", "new"]
    assert len(arrivals()) == 1


def test_a_dry_run_says_what_would_become_of_them(replay, shop, arrivals):
    make_dead_letter(shop, reason="too_large", body=b'{"type":"page","userId":"u1"}')
    assert replay(reason="too_large", dry_run=True).json() == {
        "matched": 1, "would_store": 1, "would_repeat": 0, "would_reject": {}, "more": False,
    }  # fmt: skip
    assert arrivals() == []
    assert DeadLetter.objects.get().status == "new"


def test_a_replay_of_everything_must_be_meant(replay):
    response = replay()
    assert response.status_code == 400
    assert response.json()["message"] == "Say which: `ids`, `reason`, `source`, `message_id`, `since`, `until`."


def test_a_replay_that_stops_at_its_limit_says_so(shop, arrivals):
    for _ in range(3):
        make_dead_letter(shop)
    assert dead_letters.replay(dead_letters.matching(), limit=2) == dead_letters.Replayed(2, 2, True)
    assert dead_letters.replay(dead_letters.matching(), limit=2) == dead_letters.Replayed(1, 1, False)
    assert len(arrivals()) == 3


def test_large_letters_are_appended_in_portions(shop, arrivals, monkeypatch):
    monkeypatch.setattr(dead_letters, "REPLAY_BYTES", 1000)
    for _ in range(5):
        make_dead_letter(shop, body=b'"' + b"x" * 600 + b'"')
    with CaptureQueriesContext(connection) as captured:
        dead_letters.replay(dead_letters.matching())
    assert len([query for query in captured if query["sql"].strip().startswith("UPDATE")]) == 3
    assert len(arrivals()) == 5


def test_a_partition_that_is_no_longer_there_is_replaced(shop, arrivals):
    make_dead_letter(shop, log_partition=4000, message_id="m-1")
    make_dead_letter(shop, log_partition=None, message_id="m-1")
    dead_letters.replay(dead_letters.matching())
    assert len({partition for partition, _delivery in arrivals()}) == 1


def test_a_log_that_is_away_leaves_the_letters_new(replay, shop, settings):
    from dataclasses import replace

    make_dead_letter(shop)
    settings.CONFIG = replace(settings.CONFIG, log_url="redis://127.0.0.1:1/0")
    response = replay(reason="missing_id")
    assert (response.status_code, response.json()["code"]) == (503, "log_unavailable")
    assert int(response.headers["Retry-After"]) >= 1
    assert DeadLetter.objects.get().status == "new"


def test_viewers_see_reasons_and_no_payloads(client, shop):
    letter = make_dead_letter(shop, body=b'{"email": "ann@example.com"}', detail="Bad address ann@example.com.")
    client.force_login(make_user("viewer"))
    answer = client.get(f"/v1/dead-letters/{letter.pk}")
    assert "ann@" not in answer.text
    assert (answer.json()["payload"], answer.json()["payload_json"]) == ("•••", None)
    assert answer.json()["detail"] == "Bad address a•••@e•••."
    assert client.get("/v1/dead-letters").json()["results"][0]["detail"] == "Bad address a•••@e•••."
    body = {"ids": [letter.pk]}
    assert client.post("/v1/dead-letters/replay", body, content_type="application/json").status_code == 403
    client.force_login(make_user("operator"))
    assert client.get(f"/v1/dead-letters/{letter.pk}").json()["payload_json"] == {"email": "ann@example.com"}
    assert client.post("/v1/dead-letters/replay", body, content_type="application/json").json()["replayed"] == 1
