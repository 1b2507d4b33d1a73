"""What every holder keeps to. A new one adds a line to `ADAPTERS`: how to make it, and how it comes to hold a row."""

import json
from itertools import count
from uuid import uuid4

import pytest
from django.core.files.storage import default_storage

from cdp import holders
from cdp.holders import HOLDERS, MemoryHolder
from cdp.imports.errors import StoredErrors
from cdp.imports.holding import ImportHolder
from cdp.imports.portions import Bad, Portion
from cdp.processing.identity import Identifier

ANN, ANNS_COOKIE, BOB = Identifier("user_id", "ann"), Identifier("anonymous_id", "c-1"), Identifier("user_id", "bob")


def name_in_a_bad_line(_holder, identifier, row):
    portion = Portion(next(numbers), 0, 0, 0, bad=[Bad(1, "missing_id", "", f"{identifier.value},{row}".encode())])
    StoredErrors(default_storage, "imports/1.errors").add(portion)


numbers = count()
ADAPTERS = {
    "memory": (MemoryHolder, lambda holder, identifier, row: holder.hold(identifier, row)),
    "imports": (ImportHolder, name_in_a_bad_line),
}


@pytest.fixture(params=sorted(ADAPTERS))
def adapter(request, settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path
    make, hold = ADAPTERS[request.param]
    holder = make()
    return holder, lambda identifier, row: hold(holder, identifier, row)


def test_every_holder_of_the_registry_is_tested_here():
    assert set(HOLDERS) == set(ADAPTERS)


def test_its_name_is_the_one_it_has_in_the_registry(adapter):
    holder, _ = adapter
    assert HOLDERS.load(holder.name) is type(holder)


def test_who_is_not_known_is_exported_as_nothing_and_erased_as_nothing(adapter):
    holder, hold = adapter
    hold(BOB, {"sent": "Welcome"})
    assert holder.export([ANN]) == {}
    assert holder.erase([ANN]) == 0
    assert holder.export([]) == {}
    assert holder.erase([]) == 0


def test_an_export_is_json_and_holds_the_asked_people_alone(adapter):
    holder, hold = adapter
    hold(ANN, {"sent": "To Ann"})
    hold(ANNS_COOKIE, {"sent": "To a visitor"})
    hold(BOB, {"sent": "To Bob"})
    exported = json.dumps(holder.export([ANN, ANNS_COOKIE]))
    assert "To Ann" in exported
    assert "To a visitor" in exported
    assert "To Bob" not in exported


def test_an_erasure_takes_what_is_asked_once_and_leaves_the_others(adapter):
    holder, hold = adapter
    hold(ANN, {"sent": "One"})
    hold(ANN, {"sent": "Two"})
    hold(BOB, {"sent": "To Bob"})
    assert holder.erase([ANN, ANNS_COOKIE]) == 2
    assert holder.erase([ANN, ANNS_COOKIE]) == 0
    assert holder.export([ANN, ANNS_COOKIE]) == {}
    assert "To Bob" in json.dumps(holder.export([BOB]))


def test_rows_stay_with_their_identifier_through_merges_and_unmerges(adapter):
    holder, hold = adapter
    hold(ANN, {"sent": "To Ann"})
    hold(ANNS_COOKIE, {"sent": "To a visitor"})
    before = holder.export([ANN]), holder.export([ANNS_COOKIE])
    holder.merged(uuid4(), uuid4())
    holder.unmerged({ANNS_COOKIE: uuid4(), BOB: uuid4()})
    assert (holder.export([ANN]), holder.export([ANNS_COOKIE])) == before


def test_what_was_unmerged_is_erased_by_its_identifier(adapter):
    holder, hold = adapter
    hold(ANNS_COOKIE, {"sent": "To a visitor"})
    holder.unmerged({ANNS_COOKIE: uuid4()})
    assert holder.erase([ANNS_COOKIE]) == 1
    assert holder.export([ANNS_COOKIE]) == {}


def test_all_holders_are_told_of_an_unmerge():
    memory, profile = holders.holder("memory"), uuid4()
    memory.hold(ANN, {"sent": "To Ann"})
    try:
        holders.merged(profile, uuid4())
        holders.unmerged({ANN: profile})
        assert memory.profiles == {ANN: profile}
    finally:
        memory.erase([ANN])
