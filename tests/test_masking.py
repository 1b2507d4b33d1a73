"""What viewers see in place of personal data."""

import pytest

from cdp import masking


@pytest.mark.parametrize(
    ("clear", "masked"),
    [
        ("ann@example.com", "a•••@e•••.com"),
        ("ann@localhost", "a•••@l•••"),
        ("ann.b@mail.example.co.uk", "a•••@m•••.uk"),
        ("user-1234", "u•••"),
        ("u1", "•••"),
        ("", "•••"),
        ("@", "•••"),
        ("@twitter", "@•••"),
    ],
)
def test_a_text_keeps_too_little_to_know_it_by(clear, masked):
    assert masking.text(clear) == masked


@pytest.mark.parametrize(
    "name",
    ["email", "workEmail", "phone_number", "name", "first_name", "lastName", "FullName", "homeAddress", "ip", "IBAN"],
)
def test_traits_that_say_who_someone_is_are_personal(name):
    assert masking.is_personal(name)


@pytest.mark.parametrize(
    "name", ["plan_name", "planName", "plan", "total_spent", "event_count", "shipping", "", "日本"]
)
def test_other_traits_are_not(name):
    assert not masking.is_personal(name)


def test_personal_traits_are_masked_by_name_at_any_depth_and_by_look():
    assert masking.traits(
        {
            "email": "ann@example.com",
            "plan": "gold",
            "seats": 3,
            "phone": 4915112345678,
            "address": {"city": "Berlin", "since": [2020, True, None]},
            "note": "call ann@example.com or +49 151 1234567 today",
            "tags": ["new", "bob@example.org"],
        }
    ) == {
        "email": "a•••@e•••.com",
        "plan": "gold",
        "seats": 3,
        "phone": "•••",
        "address": {"city": "B•••", "since": ["•••", True, None]},
        "note": "call a•••@e•••.com or ••• today",
        "tags": ["new", "b•••@e•••.org"],
    }


def test_an_event_keeps_its_form_and_loses_what_it_said():
    row = {
        "event_id": 7,
        "event_type": "track",
        "name": "Order Completed",
        "properties": {"total": 12.5, "coupon": None, "items": [{"sku": "a-1"}], "gift": False},
        "context": {"ip": "203.0.113.7"},
        "identifiers": {"user_id": "user-1", "email": ["ann@example.com"]},
        "message_id": "m-1",
        "source": "shop",
    }
    assert masking.event(row) == {
        "event_id": 7,
        "event_type": "track",
        "name": "Order Completed",
        "properties": {"total": "•••", "coupon": None, "items": [{"sku": "•••"}], "gift": False},
        "context": {"ip": "2•••"},
        "identifiers": {"user_id": "u•••", "email": ["a•••@e•••.com"]},
        "message_id": "m-1",
        "source": "shop",
    }


def test_a_document_keeps_what_the_platform_computed():
    document = {
        "id": "x",
        "identifiers": [{"namespace": "email", "value": "ann@example.com"}],
        "traits": {"name": "Annabel", "plan": "gold"},
        "computed_traits": {"event_count": 3, "last_seen": "2026-11-01T10:00:00Z"},
        "consent": {
            "email": {"granted": True, "at": "2026-11-01T10:00:00Z", "evidence": {"ip": "10.1.2.3"}, "topics": {}},
        },
        "version": 4,
    }
    assert masking.document(document) == {
        "id": "x",
        "identifiers": [{"namespace": "email", "value": "a•••@e•••.com"}],
        "traits": {"name": "A•••", "plan": "gold"},
        "computed_traits": {"event_count": 3, "last_seen": "2026-11-01T10:00:00Z"},
        "consent": {
            "email": {"granted": True, "at": "2026-11-01T10:00:00Z", "evidence": {"ip": "1•••"}, "topics": {}},
        },
        "version": 4,
    }


@pytest.mark.parametrize("harmless", ["2026-11-01T10:00:00Z", "gold", "v1.2.3", "12 seats", "a-1234567890-b"])
def test_dates_versions_and_ids_are_not_taken_for_telephone_numbers(harmless):
    assert masking.prose(harmless) == harmless
