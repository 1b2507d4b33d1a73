"""Which identifiers a message carries."""

import pytest

from cdp.processing.identity import Identifier, anchor_of, clean, collect


@pytest.mark.parametrize(
    "constant",
    ["anonymous", "Guest", "NULL", '"null"', "'undefined'", "[object Object]", "0", "-1", "0000-0000", "---", "", " "],
)
def test_constants_that_mean_nobody_are_blocked(constant):
    assert clean("user_id", constant) == ""


def test_numbers_count_as_their_text_and_truth_values_do_not_count():
    assert clean("user_id", 42) == "42"
    assert clean("user_id", 0) == ""
    assert clean("user_id", True) == ""


def test_identifiers_come_by_priority_and_once():
    external = [{"id": "c1", "type": "crm"}, {"id": "c1", "type": "crm"}, {"id": {}, "type": "x"}, "nonsense"]
    assert collect("u1", "a1", "Ann@Example.com", external) == [
        Identifier("user_id", "u1"),
        Identifier("email", "ann@example.com"),
        Identifier("crm", "c1"),
        Identifier("anonymous_id", "a1"),
    ]


def test_the_anchor_is_the_user_then_the_anonymous_then_the_first_external_id():
    external = [{"id": "c1", "type": "crm"}]
    assert anchor_of(collect("u1", "a1", None, external)) == ("user_id", "u1")
    assert anchor_of(collect(None, "a1", None, external)) == ("anonymous_id", "a1")
    assert anchor_of(collect(None, None, None, external)) == ("crm", "c1")
    assert anchor_of([]) is None
