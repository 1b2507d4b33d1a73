"""States of given traits for tests: policies, what lifts to them, and strategies that draw them."""

import json

import msgspec
from hypothesis import strategies as st

from cdp.processing import registers
from cdp.processing.policies import KINDS, Policies, Policy
from cdp.processing.states import Origin

# The sources that a policy of source priority names; a third one is not in it.
SOURCES = (2, 1)
POLICIES = Policies(Policy(kind, kind, SOURCES if kind == "source_priority" else (), 1) for kind in KINDS)
TRAITS = (*KINDS, "consent", "plain")


def lift(trait, value, *, at=1, source=1, message_id="", anchor="", rank=1, policies=POLICIES, refused=()):
    """Return what one identify call does to one trait."""
    origin = Origin(at, rank, message_id or f"{source}-{at}", source, anchor or f"user_id:{source}")
    return policies.lift(json.dumps({trait: value}).encode(), origin, refused_policies=frozenset(refused))


def lifted(trait, value, **fields):
    """Return the registers that it sets; it fits."""
    found = lift(trait, value, **fields)
    assert found.misfits == {}
    return found.registers


def plain(state):
    """Return registers after they went through JSON."""
    return registers.load(msgspec.json.encode(state))


def shown(state):
    """Return the traits that readers see, as plain data."""
    return msgspec.json.decode(msgspec.json.encode(registers.present(state)))


def consent_of(state):
    """Return the consent that readers see, as plain data."""
    return msgspec.json.decode(registers.present_consent(state))


_few = st.integers(0, 3)
_dots = st.dictionaries(st.sampled_from(["1", "2", "3"]), st.tuples(_few, st.just("")).map(list), max_size=2)
_texts = st.lists(st.sampled_from("abc"), max_size=2)
_evidence = st.sampled_from([{}, {"form": "signup"}])
_choice = st.one_of(
    st.just(False),
    st.builds(lambda granted, evidence: {"granted": granted, "evidence": evidence}, st.booleans(), _evidence),
)
_purpose = st.one_of(
    _choice,
    st.builds(
        lambda topics, evidence: {"evidence": evidence, "topics": topics},
        st.dictionaries(st.sampled_from(["news", "offers"]), _choice, max_size=2), _evidence,
    ),
)  # fmt: skip
VALUES = {
    "newest": st.one_of(st.none(), st.integers(0, 3)),
    "plain": st.one_of(st.none(), st.integers(0, 3)),
    "source_priority": st.one_of(st.none(), st.integers(0, 3)),
    "union": st.one_of(
        st.none(),
        _texts,
        st.builds(lambda add, remove: {"$union": add, "$remove": remove}, _texts, _texts),
        st.builds(lambda remove: {"$remove": remove}, st.dictionaries(st.sampled_from("abc"), _dots, max_size=2)),
    ),
    "counter": st.builds(lambda by: {"$add": by}, st.one_of(st.integers(-9, 9), st.sampled_from([0.1, -2.25, 1e20]))),
    "ask": st.one_of(
        st.none(),
        st.integers(0, 3),
        st.builds(lambda value, dots: {"$value": value, "$observed": dots}, st.integers(0, 3), _dots),
    ),
    "consent": st.dictionaries(st.sampled_from(["email", "sms"]), _purpose, max_size=2),
}


@st.composite
def events(draw, trait):
    """Draw an identify call's effect on a trait; the same time and source means the same event."""
    at, source = draw(st.integers(4, 6)), draw(st.sampled_from([1, 2, 3]))
    value = draw(VALUES[trait])
    # The id says what was said, so that two calls are the same only where they say the same.
    return lift(trait, value, at=at, source=source, message_id=f"{source}-{json.dumps(value)}").registers


@st.composite
def states(draw, trait):
    """Draw a state that events built, each counted once."""
    state = {}
    for number, event in enumerate(draw(st.lists(events(trait), max_size=4))):
        # An anchor's pair only grows: no two histories of one anchor are at odds.
        state = registers.apply(state, _of_anchor(event, number) if trait == "counter" else event)
    return state


def _of_anchor(event, number):
    return {
        name: msgspec.structs.replace(held, sums={f"{anchor}-{number}": pair for anchor, pair in held.sums.items()})
        for name, held in event.items()
    }
