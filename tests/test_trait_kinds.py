"""Law 4 for every kind of trait, in a window or not: order, splitting and JSON do not matter."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp.processing.conditions import UnfitCondition, instant_of
from cdp.processing.decode import Message
from cdp.processing.identity import Identifier
from cdp.processing.kinds import DAY_US, KINDS, MOST_COUNTED, text_of, value_of
from cdp.processing.traits import Definition, Folder, UnfitTrait, check

NOW = 1_790_000_000_000_000
WINDOWS = [None, "3d", "5h", "90m"]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.decimals(-100, 100, places=2),
    st.sampled_from(["a", "b", "B", "ä", ""]),
    st.lists(st.integers(), max_size=1),
)
_numbers = iter(range(10**9))


def event(value, at=NOW, name="Ordered", kind="track"):
    properties = raw({"value": value})
    return Message(
        source_id=1, type=kind, name=name, message_id=f"m{next(_numbers)}", anchor=Identifier("user_id", "u"),
        identifiers=[], alias_of="", properties=properties, context=b"{}", extra=b"", occurred_us=at,
        original_timestamp=None, received_us=at, flags=(), id_hash=b"", payload_hash=0,
    )  # fmt: skip


def raw(value):
    return msgspec.json.Encoder(decimal_format="number").encode(value)


def plain(states):
    return msgspec.json.decode(msgspec.json.encode(states))


def folder_of(kind, **options):
    if KINDS[kind].needs_property:
        options = {"property": "value"} | options
    return Folder([Definition(1, "it", kind, "track", "", options, 1)])


def folded(folder, events):
    states = {}
    for one in events:
        folder.fold(states, one)
    return states


def shown(folder, states, now=NOW):
    return msgspec.json.encode(folder.present(states, now))


histories = st.lists(
    st.builds(event, scalars, st.integers(NOW - 5 * DAY_US, NOW + 60_000_000)), min_size=0, max_size=12
)


@pytest.mark.parametrize("kind", KINDS)
@given(
    window=st.sampled_from(WINDOWS),
    history=histories,
    random=st.randoms(),
    parts=st.integers(1, 4),
    later=st.integers(0, 6 * DAY_US),
)
def test_any_order_and_any_split_give_one_value_at_any_instant(kind, window, history, random, parts, later):
    folder = folder_of(kind, **({"window": window} if window else {}))
    whole = folded(folder, history)
    shuffled = random.sample(history, len(history))
    combined = {}
    for start in range(parts):
        combined = folder.combine(plain(folded(folder, shuffled[start::parts])), plain(combined))
        # What has left the window may be dropped at any time.
        combined = folder.live(combined, NOW)
    assert shown(folder, combined, NOW + later) == shown(folder, whole, NOW + later)


@pytest.mark.parametrize("kind", KINDS)
@given(window=st.sampled_from(WINDOWS), history=histories, later=st.integers(0, 6 * DAY_US))
def test_a_value_changes_by_itself_no_earlier_than_it_is_due(kind, window, history, later):
    folder = folder_of(kind, **({"window": window} if window else {}))
    states = folded(folder, history)
    due = folder.due(states, NOW)
    assert due is None or due > NOW
    if due is None or NOW + later < due:
        assert shown(folder, states, NOW + later) == shown(folder, states, NOW)


def test_what_each_kind_makes_of_a_small_history():
    history = [event(value, NOW - ago * DAY_US) for value, ago in [("b", 9), (2, 7), (Decimal("2.5"), 5), ("a", 4),
                                                                   ("a", 3), ("b", 2), (None, 1)]]  # fmt: skip
    said = {kind: json.loads(shown(folder, folded(folder, history))).get("it")
            for kind in KINDS for folder in [folder_of(kind)]}  # fmt: skip
    assert said == {
        "count": 7, "first_time": instant(9), "last_time": instant(1), "days_since": 1, "sum": 4.5, "average": 2.25,
        "minimum": 2, "maximum": 2.5, "first": "b", "last": "b", "most_frequent": "a",
        "unique_list": [2, 2.5, "a", "b"], "unique_count": 4,
    }  # fmt: skip


def instant(days):
    return datetime.fromtimestamp((NOW - days * DAY_US) / 1e6, UTC).isoformat().replace("+00:00", "Z")


def test_a_window_falls_without_an_event():
    folder = folder_of("count", window="2d")
    states = folded(folder, [event(1, NOW), event(1, NOW - DAY_US)])
    assert [json.loads(shown(folder, states, NOW + days * DAY_US)) for days in range(3)] == [{"it": 2}, {"it": 1}, {}]
    assert folder.live(states, NOW + 2 * DAY_US) == {}


def test_unique_values_beyond_the_exact_are_estimated():
    folder = folder_of("unique_count")
    for many in (MOST_COUNTED - 1, 20_000):
        states = folded(folder, [event(number) for number in range(many)])
        assert json.loads(shown(folder, states))["it"] == pytest.approx(many, rel=0.1 if many > MOST_COUNTED else 0)


@given(scalars)
def test_values_come_back_from_what_states_keep(value):
    text = text_of(value)
    assert (text is None) == (value is None or isinstance(value, list))
    if text is not None:
        assert json.loads(raw(value_of(text))) == json.loads(raw(value))


CONDITIONS = [
    ({"operator": "equals", "value": 1}, [1, Decimal("1.0")], [True, "1", 2, None]),
    ({"operator": "equals", "value": 0.1}, [Decimal("0.1")], [Decimal("0.10001")]),
    ({"operator": "not_equals", "value": "a"}, ["b", 1, None], ["a"]),
    ({"operator": "contains", "value": "ol"}, ["gold"], ["silver", None, ["ol"]]),
    ({"operator": "not_contains", "value": "ol"}, ["silver", None], ["gold"]),
    ({"operator": "starts", "value": "go"}, ["gold"], ["ago"]),
    ({"operator": "ends", "value": "go"}, ["ago"], ["gold"]),
    ({"operator": "in", "value": ["a", 2]}, ["a", 2], ["2", None]),
    ({"operator": "not_in", "value": ["a", 2]}, ["2", None], ["a", 2]),
    ({"operator": "exists"}, ["", 0, False], [None]),
    ({"operator": "absent"}, [None], ["", 0, False]),
    ({"operator": "less", "value": 2}, [1], [2, "1", None]),
    ({"operator": "at_most", "value": 2}, [2], [3]),
    ({"operator": "greater", "value": 2.5}, [3], [Decimal("2.5"), True]),
    ({"operator": "at_least", "value": 2.5}, [Decimal("2.5")], [2]),
    ({"operator": "between", "value": [1, 2]}, [1, 2], [3, 0]),
    ({"operator": "before", "value": "2026-01-02"}, ["2026-01-01", "2026-01-01T23:59:59.999999Z"],
     ["2026-01-02", "2026-13-01", "soon", 1]),
    ({"operator": "after", "value": "2026-01-02"}, ["2026-01-02T01:00:00-01:00"], ["2026-01-02T01:00:00+01:00"]),
    ({"operator": "within", "value": 30}, [instant(29), instant(0)], [instant(30), instant(-1)]),
]  # fmt: skip


@pytest.mark.parametrize(("condition", "meet", "fail"), CONDITIONS)
def test_only_events_that_meet_every_condition_count(condition, meet, fail):
    folder = folder_of(
        "count", conditions=[{"property": "value", **condition}, {"property": "x", "operator": "absent"}]
    )
    assert [bool(folded(folder, [event(value)])) for value in meet] == [True] * len(meet)
    assert [bool(folded(folder, [event(value)])) for value in fail] == [False] * len(fail)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T01:00:00", None),
        ("1970-02-30", None),
        ("1970-01-01T24:00:00Z", None),
        ("1970-01-01 00:00:00", None),
        ("0000-01-01", None),
    ],
)
def test_instants_are_read_strictly(text, expected):
    assert instant_of(text) == expected


BAD = [
    ("nothing", {}, "'nothing' is no kind"),
    ("count", {"property": "x"}, "takes no property"),
    ("sum", {}, "needs a property"),
    ("sum", {"property": "a..b"}, "needs a property"),
    ("count", {"windows": "3d"}, "unknown: windows"),
    ("count", {"window": "3w"}, "A window is"),
    ("count", {"window": "401d"}, "A window is"),
    ("count", {"conditions": {}}, "Conditions are a list"),
    ("count", {"conditions": [{"property": "x"}]}, "operator"),
    ("count", {"conditions": [{"property": "x", "operator": "like"}]}, "'like' is no operator"),
    ("count", {"conditions": [{"property": "x", "operator": "less", "value": "2"}]}, "needs a number"),
    ("count", {"conditions": [{"property": "x", "operator": "between", "value": [1]}]}, "needs two numbers"),
]


@pytest.mark.parametrize(("kind", "options", "said"), BAD)
def test_what_a_definition_lacks_is_said(kind, options, said):
    with pytest.raises((UnfitTrait, UnfitCondition), match=said):
        check(kind, options)
