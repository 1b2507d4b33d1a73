"""A dead letter that was given back is settled in the transaction that processes its event, however often it comes."""

import json

import msgspec
import pytest

from cdp.log.base import Delivery
from cdp.processing.failures import LEAST
from cdp.processing.pipeline import arrive
from cdp.processing.traits import Folder
from tests.platform import message


@pytest.fixture
def refused(core):
    """Put a track call aside and return what gives it back; the source may call track again after `mend`."""
    core.source_id = core.source("server", {"refused_calls": ["track"]})
    core.apply(message(userId="u1", messageId="m-1"), source=core.source_id)
    return core


def mend(core):
    core.connection.execute("UPDATE cdp_source SET rules = '{}'")
    core.connection.execute("UPDATE cdp_definitionversion SET version = version + 1")


def letters(core):
    return core.rows("SELECT * FROM cdp_deadletter ORDER BY id")


def give_back(core, *rows):
    """Process letters as if a replay had appended them."""
    arrivals = []
    for row in rows:
        delivery = msgspec.msgpack.decode(row["delivery"], type=Delivery)
        delivery = msgspec.structs.replace(delivery, letter_id=row["id"])
        arrivals.append(arrive(delivery.events[0], delivery, 0, "9-0"))
    with core.writer.transaction():
        return core.pipeline.apply(core.writer, arrivals)


def test_a_letter_that_is_stored_is_replayed(refused):
    mend(refused)
    assert give_back(refused, *letters(refused)).events == 1
    assert [(row["status"], row["attempts"]) for row in letters(refused)] == [("replayed", 0)]
    assert [row["message_id"] for row in refused.events()] == ["m-1"]


def test_given_back_twice_it_is_stored_once_and_stays_one_row(refused):
    [letter] = letters(refused)
    mend(refused)
    applied = give_back(refused, letter, letter)
    assert (applied.events, applied.duplicates) == (1, 1)
    assert give_back(refused, letter).duplicates == 1
    assert [row["status"] for row in letters(refused)] == ["replayed"]
    assert len(refused.events()) == 1


def test_a_letter_that_is_refused_again_stays_the_same_row_with_the_new_reason(refused):
    [letter] = letters(refused)
    refused.connection.execute("UPDATE cdp_deadletter SET status = 'replaying'")
    refused.connection.execute(
        "UPDATE cdp_source SET kind = 'browser', rules = '{\"refused_namespaces\": [\"user_id\"]}'"
    )
    refused.connection.execute("UPDATE cdp_definitionversion SET version = version + 1")
    assert give_back(refused, letter).rejections == {"missing_id": 1}
    [after] = letters(refused)
    assert (after["status"], after["reason"], after["attempts"]) == ("new", "missing_id", 1)
    assert after["detail"].startswith("The source may set none of the event's identifiers.")
    assert {name: after[name] for name in ("id", "delivery", "log_position", "created_at")} == {
        name: letter[name] for name in ("id", "delivery", "log_position", "created_at")
    }


def test_a_copy_that_is_refused_after_the_first_was_stored_changes_nothing(refused):
    [letter] = letters(refused)
    mend(refused)
    give_back(refused, letter)
    refused.connection.execute("UPDATE cdp_source SET rules = %s", [json.dumps({"refused_calls": ["track"]})])
    refused.connection.execute("UPDATE cdp_definitionversion SET version = version + 1")
    assert give_back(refused, letter).rejections == {"refused_call": 1}
    assert [(row["status"], row["attempts"]) for row in letters(refused)] == [("replayed", 0)]


def test_a_letter_whose_row_is_gone_gets_a_new_one(refused):
    [letter] = letters(refused)
    refused.connection.execute("DELETE FROM cdp_deadletter")
    give_back(refused, letter)
    [after] = letters(refused)
    assert (after["status"], after["reason"], after["delivery"]) == ("new", "refused_call", letter["delivery"])


def test_of_a_batch_some_come_back_for_good_and_others_not(refused):
    refused.apply(message(userId="u2", messageId="m-2"), b'{"type":"shout"}', source=refused.source_id)
    mend(refused)
    applied = give_back(refused, *letters(refused))
    assert (applied.events, applied.rejections) == (2, {"unknown_type": 1})
    assert [(row["status"], row["attempts"]) for row in letters(refused)] == [
        ("replayed", 0), ("replayed", 0), ("new", 1),
    ]  # fmt: skip


def test_one_that_postgresql_cannot_write_comes_back_to_its_row(core):
    core.apply(b'{"type": "page", "userId": "u1", "properties": {"a": 1e400000}}', message(userId="u2"))
    applied = give_back(core, *letters(core))
    assert (applied.events, applied.rejections) == (0, {"poison": 1})
    assert [(row["status"], row["reason"], row["attempts"]) for row in letters(core)] == [("new", "poison", 1)]


def test_a_new_letter_of_the_same_batch_is_a_row_of_its_own(refused):
    [letter] = letters(refused)
    delivery = msgspec.structs.replace(
        msgspec.msgpack.decode(letter["delivery"], type=Delivery), letter_id=letter["id"]
    )
    other = msgspec.structs.replace(delivery, letter_id=0)
    arrivals = [arrive(delivery.events[0], one) for one in (delivery, other)]
    with refused.writer.transaction():
        refused.pipeline.apply(refused.writer, arrivals)
    assert [row["attempts"] for row in letters(refused)] == [1, 0]


def test_letters_that_fail_again_by_an_error_of_our_own_do_not_halt_the_processor(core, monkeypatch):
    pages = [message("page", userId="u1") for _ in range(2 * LEAST)]
    core.source_id = core.source("server", {"refused_calls": ["page"]})
    core.apply(*pages, source=core.source_id)
    mend(core)
    monkeypatch.setattr(Folder, "fold", lambda *_: 1 // 0)
    assert give_back(core, *letters(core)).rejections == {"processing_error": 2 * LEAST}
    assert {(row["status"], row["reason"], row["attempts"]) for row in letters(core)} == {
        ("new", "processing_error", 1)
    }
