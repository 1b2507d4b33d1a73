"""From rows to messages: fields, types, times and what is left to the properties."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp.imports import values
from cdp.imports.mapping import Mapper, Mapping, UnusableMapping, complete
from cdp.imports.records import Layout
from cdp.imports.values import Times, UnusableValue, reader_of, time_reader, zone_of
from martech.lib.errors import PermanentError


def of_row(cells, header, **mapping):
    names = tuple(header.split(","))
    whole = complete(Mapping(**mapping), Layout("csv", columns=names))
    return json.loads(Mapper(whole, names).of_row(cells))


def of_object(found, **mapping):
    text = found if isinstance(found, bytes) else json.dumps(found).encode()
    return json.loads(Mapper(complete(Mapping(**mapping), Layout("ndjson"))).of_object(text))


def test_columns_called_like_fields_are_those_and_the_rest_are_properties():
    row = ["u1", "Bought", "2019-05-03", "m1", "12.50", ""]
    assert of_row(row, "User ID,event,Timestamp,message_id,total,empty", constants={"type": "track"}) == {
        "type": "track", "userId": "u1", "event": "Bought", "timestamp": "2019-05-03", "messageId": "m1",
        "properties": {"total": "12.50"},
    }  # fmt: skip


def test_the_rest_of_an_identify_call_are_traits_by_whichever_way_it_is_one():
    row = ["u1", "gold", "a@b.c"]
    expected = {"type": "identify", "userId": "u1", "traits": {"plan": "gold", "email": "a@b.c"}}
    assert of_row(row, "user_id,plan,email", constants={"type": "identify"}) == expected
    assert of_row(["identify", *row], "type,user_id,plan,email") == expected


def test_paths_constants_and_what_is_left_out():
    found = of_row(
        ["1", "2", "3", "secret", "k9"],
        "a,b,c,d,card",
        columns={"a": "userId", "b": "properties.cart.size", "c": "context.app.build", "d": "-",
                 "card": "externalIds.loyalty"},
        constants={"type": "track", "event": "Seen", "context.app.name": "shop", "properties.origin": "file"},
        types={"b": "number"},
    )  # fmt: skip
    assert found == {
        "type": "track", "event": "Seen", "userId": "1",
        "properties": {"cart": {"size": 2}, "origin": "file"},
        "context": {"app": {"build": "3", "name": "shop"},
                    "externalIds": [{"id": "k9", "type": "loyalty", "collection": "users"}]},
    }  # fmt: skip


def test_only_what_is_mapped_where_that_is_asked():
    row = ["u1", "Bought", "x"]
    assert of_row(row, "user_id,event,other", only_mapped=True) == {"userId": "u1", "event": "Bought"}


def test_a_cell_counts_before_a_constant():
    columns, constants = {"kind": "event"}, {"type": "track", "event": "Other"}
    assert of_row(["u", "Bought"], "user_id,kind", columns=columns, constants=constants)["event"] == "Bought"
    assert of_row(["u", ""], "user_id,kind", columns=columns, constants=constants)["event"] == "Other"


def test_the_email_of_other_calls_is_an_identifier_in_the_context():
    found = of_row(["a@b.c", "Bought"], "email,event", constants={"type": "track"})
    assert found == {"type": "track", "event": "Bought", "context": {"traits": {"email": "a@b.c"}}}


def test_values_have_the_type_that_is_given():
    types = {"n": "number", "b": "boolean", "j": "json", "t": "time", "x": "text"}
    found = of_row(["1e3", "Yes", '{"a":[1]}', "1556877600", "007"], "n,b,j,t,x", types=types)
    assert found["properties"] == {"n": 1000.0, "b": True, "j": {"a": [1]}, "t": "2019-05-03T10:00:00Z", "x": "007"}


@pytest.mark.parametrize(
    ("kind", "text"),
    [("number", "12,5"), ("number", "nan"), ("number", ""), ("number", "1" * 1001), ("boolean", "maybe"),
     ("json", "{"), ("time", "yesterday"), ("time", "2019"), ("time", "9" * 20)],
)  # fmt: skip
def test_what_is_not_of_its_type_is_said_with_its_column(kind, text):
    with pytest.raises(UnusableValue, match=r"^x: "):
        of_row([text or " "], "x", types={"x": kind})


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6) | st.integers())
def test_a_number_is_kept_to_the_last_digit(number):
    assert bytes(reader_of("number", Times())(f" {number:f} ")) == f"{number:f}".encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2019-05-03T10:00:00+02:00", "2019-05-03T10:00:00+02:00"),
        ("2019-05-03 10:00", "2019-05-03T08:00:00Z"),
        ("2019-01-03 10:00", "2019-01-03T09:00:00Z"),
        ("20190503", "2019-05-02T22:00:00Z"),
        ("1556877600", "2019-05-03T10:00:00Z"),
        ("1556877600123", "2019-05-03T10:00:00.123000Z"),
        ("1556877600123456", "2019-05-03T10:00:00.123456Z"),
        (1556877600, "2019-05-03T10:00:00Z"),
        (1556877600.5, "2019-05-03T10:00:00.500000Z"),
        ("-157766400", "1965-01-01T00:00:00Z"),
    ],
)
def test_times_in_a_zone(text, expected):
    assert time_reader(Times(zone_of("Europe/Berlin")))(text) == expected


def test_times_of_another_form():
    read = time_reader(Times(zone_of("Europe/Berlin"), "%d.%m.%Y %H:%M"))
    assert read("3.5.2019 10:00") == "2019-05-03T08:00:00Z"
    with pytest.raises(UnusableValue, match="of the form"):
        read("2019-05-03")


def test_a_flat_object_is_mapped_by_its_keys():
    body = b'{"uid":7,"when":1556877600,"total":12.500000000000000001,"none":null,"tags":["a"]}'
    found = Mapper(
        complete(
            Mapping(columns={"uid": "userId", "when": "timestamp"}, constants={"type": "track", "event": "X"}),
            Layout("ndjson"),
        )
    ).of_object(body)
    assert b'"total":12.500000000000000001' in found
    assert json.loads(found) == {
        "type": "track", "event": "X", "userId": 7, "timestamp": "2019-05-03T10:00:00Z",
        "properties": {"total": 12.5, "none": None, "tags": ["a"]},
    }  # fmt: skip


def test_an_object_that_is_nearly_a_message_keeps_its_parts():
    found = of_object(
        {"userId": "u", "event": "X", "properties": {"a": {"b": 1}}, "context": {"ip": "::1"}, "extra": 1},
        constants={"type": "track", "properties.a.c": "2"},
    )
    assert found == {
        "type": "track", "userId": "u", "event": "X", "context": {"ip": "::1"},
        "properties": {"a": {"b": 1, "c": "2"}, "extra": 1},
    }  # fmt: skip


def test_external_ids_are_added_to_those_that_are_there():
    context = {"externalIds": [{"id": "e1", "type": "card"}]}
    found = of_object({"context": context, "loyalty": 7, "app": 8},
                      columns={"loyalty": "externalIds.loyalty", "app": "externalIds.app"})  # fmt: skip
    assert [(one["type"], one["id"]) for one in found["context"]["externalIds"]] == [
        ("card", "e1"), ("loyalty", 7), ("app", 8),
    ]  # fmt: skip


def test_a_column_may_be_all_properties():
    columns = {"all": "properties"}
    assert of_row(['{"a":1}', "2"], "all,b", columns=columns, types={"all": "json"})["properties"] == {"a": 1, "b": "2"}
    # Not passed over: the core says that it is no object.
    assert of_row(["x", "2"], "all,b", columns=columns)["properties"] == "x"


def test_messages_need_no_mapping():
    assert complete(Mapping(), Layout("ndjson")).whole
    assert not complete(Mapping(constants={"type": "track"}), Layout("ndjson")).whole


@pytest.mark.parametrize("line", [b"[1]", b"{", b'"x"', b"\xff"])
def test_a_line_that_is_no_object_is_said(line):
    with pytest.raises(UnusableValue, match="no JSON object"):
        of_object(line, constants={"type": "track"})


@pytest.mark.parametrize(
    ("mapping", "complaint"),
    [
        ({"columns": {"a": "user"}}, "There is no field user"),
        ({"columns": {"a": "properties."}}, "There is no field"),
        ({"columns": {"z": "userId"}}, "no column z"),
        ({"columns": {"a": "userId", "b": "userId"}}, "Two columns are mapped to userId"),
        ({"types": {"a": "integer"}}, "There is no type integer"),
        ({"types": {"z": "number"}}, "no column z"),
        ({"constants": {"kind": "track"}}, "There is no field kind"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(mapping, complaint):
    with pytest.raises(UnusableMapping, match=complaint):
        complete(Mapping(**mapping), Layout("csv", columns=("a", "b")))
    with pytest.raises(PermanentError, match="no time zone Mars"):
        values.zone_of("Mars")


def test_bytes_of_another_encoding_are_said():
    with pytest.raises(UnusableValue, match="--encoding") as caught:
        of_row(["na\udcefve"], "x")
    assert caught.value.code == "bad_encoding"
