"""Dead letters of an erased person are deleted; where others' letters speak of them, the words are taken out."""

import json

import msgspec
import pytest

from cdp import dead_letters, erased_letters
from cdp.erasing import Person
from cdp.log.base import Delivery, Event
from cdp.models import DeadLetter
from cdp.processing.identity import Identifier
from tests.factories import make_dead_letter, make_source

pytestmark = pytest.mark.django_db
ANN = Person([Identifier("user_id", "7"), Identifier("email", "ann@example.com"), Identifier("crm", "4477881234"),
              Identifier("anonymous_id", "cookie-of-ann")])  # fmt: skip
BOB = {"type": "x", "userId": "bob"}


def letter(body, **fields):
    return make_dead_letter(
        make_source(), body=body if isinstance(body, bytes) else json.dumps(body).encode(), **fields
    )


def left(row):
    """Return the body that is left of a letter; None where nothing is."""
    row = DeadLetter.objects.filter(pk=row.pk).first()
    return row and json.loads(dead_letters.delivery_of(row).events[0].body)


@pytest.mark.parametrize(
    "body",
    [
        {"type": "x", "userId": "7"},
        {"type": "x", "userId": 7},
        {"type": "x", "userId": " 7 "},
        {"type": "x", "anonymousId": "cookie-of-ann", "userId": "bob"},
        {"type": "alias", "userId": "bob", "previousId": "7"},
        {"type": "alias", "userId": "bob", "previousId": "cookie-of-ann"},
        {"type": "identify", "traits": {"email": "Ann@Example.com"}},
        {"type": "track", "userId": "bob", "context": {"traits": {"email": "ann@example.com"}}},
        {"type": "track", "userId": "bob", "context": {"externalIds": [{"type": "crm", "id": 4477881234}]}},
        # What is as long as that is theirs, whatever it is called there.
        {"type": "track", "userId": "ann@example.com"},
        {"type": "group", "userId": "bob", "groupId": "home of ann@example.com"},
        # Nobody can say whose these are.
        b'{"type": "x", "mail": "ann@example.com"',
        b'["ann@example.com"]',
        b'{"type": "x", "mail": "ann@example.com", "half": "\\ud800"}',
        b'{"type": "x", "mail": "ann@example.com", "bad": "\xff"}',
    ],
)
def test_a_letter_that_names_the_person_is_deleted(body):
    row = letter(body)
    assert erased_letters.erase(ANN) == {"dead_letters": 1, "redacted_letters": 0}
    assert left(row) is None


def test_a_letter_that_nobody_can_unpack_is_deleted_where_its_bytes_hold_a_value():
    theirs, others = letter(BOB, delivery=b"\xc1 ann@example.com"), letter(BOB, delivery=b"\xc1 bob@example.com")
    assert erased_letters.erase(ANN)["dead_letters"] == 1
    assert list(DeadLetter.objects.values_list("pk", flat=True)) == [others.pk]
    assert theirs.pk != others.pk


@pytest.mark.parametrize(
    ("said", "after"),
    [
        ({"note": "call ann@example.com, soon"}, {"note": "call [erased], soon"}),
        ({"ANN@EXAMPLE.COM": [{"deep": "Ann@Example.com"}]}, {"[erased]": [{"deep": "[erased]"}]}),
        ({"friend": "7", "total": 7, "price": 7.5}, {"friend": "[erased]", "total": 7, "price": 7.5}),
        ({"ref": 4477881234, "other": 44778812345}, {"ref": "[erased]", "other": 44778812345}),
        ({"note": "joann@example.com and cookie-of-anna"}, {"note": "joann@example.com and cookie-of-anna"}),
    ],
)
def test_what_others_letters_say_is_taken_out_and_all_else_stays(said, after):
    row = letter(BOB | {"properties": said})
    erased_letters.erase(ANN)
    assert left(row) == BOB | {"properties": after}
    assert erased_letters.erase(ANN) == {"dead_letters": 0, "redacted_letters": 0}


def test_the_letters_own_words_and_what_its_batch_said_are_cleaned_too():
    event = Event("", "ann@example.com/1", 0, json.dumps(BOB).encode())
    delivery = Delivery(1, 2, "10.0.0.1", b'{"page":"/ann@example.com"}', b'{"x":"ann@example.com"}', [event], "t")
    row = letter(BOB, delivery=msgspec.msgpack.encode(delivery), message_id="m/ann@example.com",
                 detail="Why 7? ann@example.com.")  # fmt: skip
    assert erased_letters.erase(ANN) == {"dead_letters": 0, "redacted_letters": 1}
    row.refresh_from_db()
    assert (row.message_id, row.detail) == ("m/[erased]", "Why 7? [erased].")
    cleaned = dead_letters.delivery_of(row)
    assert cleaned.context == b'{"page":"/[erased]"}'
    assert cleaned.integrations == b'{"x":"[erased]"}'
    assert (cleaned.received_us, cleaned.ip, cleaned.trace) == (2, "10.0.0.1", "t")
    assert cleaned.events[0].body == event.body
    assert b"ann@" not in bytes(row.delivery)


def test_a_short_value_that_is_somebody_elses_identifier_says_nothing_of_the_person():
    body = {"type": "x", "anonymousId": "7", "properties": {"me": "7", "friend": "ann@example.com"}}
    row = letter(body)
    assert erased_letters.erase(ANN) == {"dead_letters": 0, "redacted_letters": 1}
    assert left(row) == {"type": "x", "anonymousId": "7", "properties": {"me": "7", "friend": "[erased]"}}


def test_what_somebody_is_identified_by_in_the_batch_counts_for_its_events():
    event = Event("track", "", 0, b'{"event": ""}')
    delivery = Delivery(1, 2, "", b'{"traits":{"email":"ann@example.com"}}', b"", [event])
    row = letter(BOB, delivery=msgspec.msgpack.encode(delivery))
    assert erased_letters.erase(ANN)["dead_letters"] == 1
    assert left(row) is None


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ("o'brien@example.com", rb'{"type":"x","traits":{"email":"o\u0027brien@example.com"}}'),
        ("c2FtcGxlLWlk==", rb'{"type":"x","userId":"c2FtcGxlLWlk\u003d\u003d"}'),
        ("ann+news@example.com", rb'{"type":"x","userId":"ann\u002Bnews@example.com"}'),
        ("a&b-company", rb'{"type":"x","userId":"\u0061&b-company"}'),
        ("jürgen@example.com", '{"type":"x","userId":"JÜRGEN@example.com"}'.encode()),
        ("jürgen@example.com", rb'{"type":"x","userId":"J\u00DCRGEN@example.com"}'),
        ("ţepeş@example.com", rb'{"type":"x","userId":"\u0162epe\u015E@example.com"}'),
        ("ţepeş@example.com", '{"type":"x","userId":"ŢEPEŞ@example.com"}'.encode()),
    ],
)
def test_a_letter_is_found_however_json_writes_the_value(value, body):
    theirs, others = letter(body), letter(rb'{"type":"x","userId":"j\u00fcrgen\u0027s"}')
    person = Person([Identifier("email" if "@" in value else "user_id", value)])
    assert erased_letters.erase(person) == {"dead_letters": 1, "redacted_letters": 0}
    assert (left(theirs), DeadLetter.objects.filter(pk=others.pk).exists()) == (None, True)


def test_what_is_escaped_in_others_letters_is_taken_out():
    row = letter(rb'{"type":"x","userId":"bob","properties":{"note":"to ann\u0040example.com\u0021"}}')
    assert erased_letters.erase(ANN) == {"dead_letters": 0, "redacted_letters": 1}
    assert left(row) == BOB | {"properties": {"note": "to [erased]!"}}
