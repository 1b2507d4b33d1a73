"""A dry run of a replay says what would become of letters, by the real core, and leaves nothing behind."""

import json

import psycopg
import pytest
from django.db import connection

from cdp import dead_letters, rehearsal
from cdp.models import DeadLetter, Identifier, Profile
from cdp.rehearsal import Rehearsal
from tests.factories import make_dead_letter, make_source
from tests.test_real_path import send


@pytest.fixture
def shop(db):
    return make_source("shop")


def click(number=1, **fields):
    return {"type": "track", "userId": f"u{number}", "event": "Clicked", "messageId": f"m-{number}", **fields}


def letter(shop, message, **fields):
    return make_dead_letter(shop, body=json.dumps(message).encode(), **fields)


def rehearse(**options):
    return rehearsal.rehearse(dead_letters.matching(), **options)


def counts():
    with connection.cursor() as cursor:
        cursor.execute("SELECT (SELECT count(*) FROM event_stream), (SELECT count(*) FROM event_duplicate)")
        return *cursor.fetchone(), Profile.objects.count(), Identifier.objects.count()


def test_each_fate_is_counted_and_nothing_is_left(shop):
    send(shop, click(1))
    for message in (
        click(1),
        click(2),
        click(2),
        {"type": "shout", "userId": "u1"},
        {"type": "page"},
        {"type": "page"},
    ):
        letter(shop, message)
    before = counts(), list(DeadLetter.objects.order_by("pk").values())
    assert rehearse() == Rehearsal(6, 1, 2, {"missing_id": 2, "unknown_type": 1}, False)
    assert (counts(), list(DeadLetter.objects.order_by("pk").values())) == before


def test_the_rules_of_now_count(shop):
    letter(shop, click())
    shop.rules = {"refused_calls": ["track"]}
    shop.save()
    assert rehearse() == Rehearsal(1, 0, 0, {"refused_call": 1}, False)


def test_a_message_of_an_earlier_portion_would_be_a_repeat(shop, monkeypatch):
    monkeypatch.setattr(rehearsal, "CHUNK", 2)
    for message in (
        click(1),
        {"type": "page"},
        click(1),
        {"type": "page"},
        click(2),
        click(2),
        click(1, event="Other"),
    ):
        letter(shop, message)
    told = []
    assert rehearse(progress=told.append) == Rehearsal(7, 3, 2, {"missing_id": 2}, False)
    assert told == [2, 2, 2, 1]


def test_it_stops_at_its_limit_and_leaves_out_what_is_not_to_be_replayed(shop):
    for number in range(3):
        letter(shop, click(number))
    letter(shop, click(9), status="replayed")
    assert rehearse(limit=2) == Rehearsal(2, 2, 0, {}, True)
    assert rehearse() == Rehearsal(3, 3, 0, {}, False)


def test_poison_is_found(shop):
    make_dead_letter(shop, body=b'{"type":"page","userId":"u1","properties":{"a":1e400000}}')
    letter(shop, click())
    assert rehearse() == Rehearsal(2, 1, 0, {"poison": 1}, False)


@pytest.mark.usefixtures("own_database")
def test_people_that_others_hold_make_it_wait_only_briefly(monkeypatch, database_url):
    monkeypatch.setattr(rehearsal, "LOCK_SECONDS", 0.1)
    shop = make_source("shop")
    with psycopg.connect(database_url, autocommit=True) as holder:
        letter(shop, click())
        Profile.objects.create(timestamp="2026-11-01T00:00Z", created_at="2026-11-01T00:00Z",
                               identity_graph={"user_id": ["u1"]})  # fmt: skip
        Identifier.objects.create(namespace="user_id", value="u1", profile=Profile.objects.get(),
                                  created_at="2026-11-01T00:00Z")  # fmt: skip
        with holder.transaction():
            holder.execute("SELECT 1 FROM customer_profiles FOR UPDATE")
            with pytest.raises(rehearsal.Busy, match="The letters cannot be tried now"):
                rehearse()
        assert rehearse() == Rehearsal(1, 1, 0, {}, False)
    assert DeadLetter.objects.get().status == "new"
