"""The slow way of taking a batch apart gives what strict JSON reading gives, and more."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp.collector import messages, splitter
from cdp.collector.splitter import Malformed

texts = st.text() | st.sampled_from(['"', "\\", '\\"', "[", "]}", "{", ",", ":", "\u2028", "é", "\0"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(texts, values, max_size=4)
layouts = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])


@given(items=st.lists(values, max_size=6), rest=objects, layout=layouts)
def test_items_and_members_are_those_of_strict_reading(items, rest, layout):
    body = json.dumps(rest | {"batch": items}, **layout).encode()
    members = splitter.members(body)
    assert {name: json.loads(value) for name, value in members.items()} == rest | {"batch": items}
    assert [json.loads(item) for item in splitter.items(members["batch"])] == items


@given(
    items=st.lists(values, max_size=6),
    context=st.none() | objects,
    integrations=st.none() | objects,
    sent_at=texts | st.none() | st.integers(-(2**63), 2**64 - 1),
    write_key=texts,
    layout=layouts,
)
def test_both_ways_read_the_same_batch(items, context, integrations, sent_at, write_key, layout):
    sent = {"batch": items, "context": context, "sentAt": sent_at, "integrations": integrations, "writeKey": write_key}
    body = json.dumps(sent, **layout).encode()
    assert messages.read_batch(body) == messages._tolerant_batch(body)


@given(body=st.binary(max_size=60) | st.text('{}[]",:\\a 1', max_size=40).map(str.encode))
def test_whatever_comes_it_cuts_or_refuses(body):
    try:
        parts = splitter.items(body)
    except Malformed:
        return
    for part in parts:
        assert part in body


@pytest.mark.parametrize("depth", [10_000, 500_000])
def test_depth_is_no_matter(depth):
    deep = b"[" * depth + b"]" * depth
    assert splitter.items(b"[1, " + deep + b', {"a": 2}]') == [b"1", deep, b'{"a": 2}']


@pytest.mark.parametrize("body", [b"[1, 2, ]", b"[1,, 2]", b"[,1,2]"])
def test_parts_that_are_nothing_are_passed_over(body):
    assert splitter.items(body) == [b"1", b"2"]


@pytest.mark.parametrize(
    "body", [b"", b"1", b"{}", b"[1", b"1]", b"[1]]", b"[1] 2", b'["]', b'["a\\"]', b"[{]}", b"[}"]
)
def test_what_does_not_match_is_malformed(body):
    with pytest.raises(Malformed):
        splitter.items(body)


@pytest.mark.parametrize("body", [b"[]", b"{1}", b'{"a"}', b'{"a" 1}', b"{a: 1}"])
def test_what_is_no_object_has_no_members(body):
    with pytest.raises(Malformed):
        splitter.members(body)


def test_of_equal_names_the_last_counts_as_in_strict_reading():
    assert splitter.members(b'{"a": 1, "b": 2, "a": 3}') == {"a": b"3", "b": b"2"}
