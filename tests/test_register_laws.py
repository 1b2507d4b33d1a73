"""Given traits under every merge policy are the same in any order, grouping and number, and after JSON."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp.processing import registers
from cdp.processing.consent import granted
from cdp.processing.policies import Policies, Policy
from tests.states import POLICIES, TRAITS, VALUES, consent_of, events, lift, plain, shown, states


@pytest.mark.parametrize("trait", TRAITS)
@given(data=st.data())
def test_states_combine_in_any_order_grouping_and_number(trait, data):
    a, b, c = (data.draw(states(trait)) for _ in range(3))
    combine = registers.combine
    assert combine(a, b) == combine(b, a)
    assert combine(a, combine(b, c)) == combine(combine(a, b), c)
    assert combine(a, a) == a
    assert combine(a, combine(a, b)) == combine(a, b)
    assert combine(a, {}) == combine({}, a) == a


@pytest.mark.parametrize("trait", TRAITS)
@given(data=st.data())
def test_states_are_worth_the_same_after_json(trait, data):
    a, b = (data.draw(states(trait)) for _ in range(2))
    assert plain(a) == a
    assert registers.combine(plain(a), plain(b)) == registers.combine(a, b)
    assert (shown(plain(a)), consent_of(plain(a))) == (shown(a), consent_of(a))


@pytest.mark.parametrize("trait", [one for one in TRAITS if one != "counter"])
@given(data=st.data())
def test_applying_is_combining_but_for_counters(trait, data):
    a, b = (data.draw(states(trait)) for _ in range(2))
    assert registers.apply(a, b) == registers.combine(a, b)


@pytest.mark.parametrize("trait", TRAITS)
@given(data=st.data())
def test_any_order_and_any_split_into_batches_give_one_state(trait, data):
    history = data.draw(st.lists(events(trait), max_size=8))
    whole = {}
    for event in history:
        whole = registers.apply(whole, event)
    shuffled = data.draw(st.permutations(history))
    cut = data.draw(st.integers(0, len(history)))
    held = {}
    for part in (shuffled[:cut], shuffled[cut:]):
        delta = {}
        for event in part:
            delta = registers.apply(delta, event)
        held = registers.apply(plain(held), plain(delta))
    assert held == whole


@pytest.mark.parametrize("trait", TRAITS)
@given(data=st.data())
def test_split_and_merged_again_is_as_before(trait, data):
    anchors = [data.draw(states(trait)) for _ in range(3)]
    whole = {}
    for state in anchors:
        whole = registers.combine(whole, state)
    part = registers.combine(anchors[0], anchors[2])
    assert registers.combine(part, anchors[1]) == whole


LEVELS = [
    Policies([Policy("t", kind, (2,), version)])
    for version, kind in enumerate(("newest", "union", "counter", "ask", "source_priority", "newest"), 1)
]
FITTING = {"union": ["a"], "counter": {"$add": 1}}


@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(1, 5), st.sampled_from([1, 2])), max_size=6), st.randoms())
def test_a_later_policy_stands_above_an_earlier_one_in_any_order(history, random):
    def event(level, at, source):
        policies = Policies() if level < 0 else LEVELS[level]
        value = FITTING.get(policies.of("t"), f"{level} {at} {source}")
        return lift("t", value, at=at, source=source, policies=policies).registers

    lifts = [event(*one) for one in history]
    expected, got = {}, {}
    for one in lifts:
        expected = registers.combine(expected, one)
    for one in random.sample(lifts + lifts, 2 * len(lifts)):
        got = registers.combine(plain(got), one)
    assert got == expected
    if history:
        assert getattr(got["t"], "version", 0) == max(level for level, _, _ in history) + 1


@given(st.lists(VALUES["consent"], max_size=8), st.data())
def test_consent_is_granted_only_where_an_opt_in_with_evidence_is_strictly_later(history, data):
    times = [data.draw(st.integers(0, 5)) for _ in history]
    state = {}
    for at, said in zip(times, history, strict=True):
        state = registers.combine(state, lift("consent", said, at=at, message_id=repr(said)).registers)
    for purpose in ("email", "sms"):
        whole = _naive([(at, *_own(said[purpose])) for at, said in zip(times, history, strict=True) if purpose in said])
        assert granted(consent_of(state), purpose) is whole
        for topic in ("news", "offers"):
            about = [
                (at, *one) for at, said in zip(times, history, strict=True) for one in _topic(said, purpose, topic)
            ]
            assert granted(consent_of(state), purpose, topic) is (whole and (_naive(about) or not _counted(about)))


def _own(said):
    return (said, False) if isinstance(said, bool) else (said.get("granted"), bool(said.get("evidence")))


def _topic(said, purpose, topic):
    whole = said.get(purpose)
    if isinstance(whole, dict) and topic in whole.get("topics", {}):
        granted, proven = _own(whole["topics"][topic])
        yield granted, proven or bool(whole.get("evidence"))


def _counted(said):
    return [one for one in said if one[1] is False or (one[1] is True and one[2])]


def _naive(said):
    """Say what the history of (time, granted, proven) comes to, the slow way."""
    opt_ins = [at for at, given, proven in said if given is True and proven]
    return any(all(at > other for other, given, _ in said if given is False) for at in opt_ins)


def test_every_policy_is_covered_by_the_laws():
    assert set(VALUES) == set(TRAITS)
    assert {POLICIES.of(trait) for trait in TRAITS} == {"newest", "source_priority", "union", "counter", "ask"}
