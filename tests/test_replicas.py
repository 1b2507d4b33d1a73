"""Replicas that gossip over a bad network, then heal, against an oracle that knows the whole history.

Each replica is a source and an anchor of its own. What it says it says knowing what it has heard; its state goes to
the others as JSON, which may be lost, come twice and in any order. The oracle has every call with what its sender had
heard by then, and reads the outcome off that history the slow way. Laws alone do not find a set that forgets removals.
"""

import dataclasses
import json

import msgspec
import pytest
from accordsync_core import LocalWriter, conflict, counter, define_schema, lww, set_
from hypothesis import given
from hypothesis import strategies as st

from cdp.processing import policies, registers, states
from cdp.processing.consent import granted
from cdp.processing.states import Tags, lift_tags, seen
from tests.states import SOURCES, TRAITS, consent_of, lifted, plain, shown

REPLICAS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call, and the calls that its sender had heard of."""

    number: int
    source: int
    at: int
    heard: frozenset
    value: object
    order: tuple


class Replica:
    """A source with a clock of its own, which may be wrong, and what it has heard."""

    def __init__(self, trait, source, skew):
        self.trait, self.source, self.clock = trait, source, skew
        self.state, self.heard = {}, frozenset()

    def say(self, number, intent):
        """Say something; what is decided on what was heard is later than all of that. Return the call."""
        decided = isinstance(intent, tuple) and intent[0] != "add"
        self.clock = max(self.clock, registers.newest_us(self.state) if decided else 0) + 1
        value = self.worded(intent)
        message_id = f"{self.source}-{number:03}"
        said = lifted(self.trait, value, at=self.clock, source=self.source, message_id=message_id)
        self.state = registers.apply(self.state, said)
        call = Call(number, self.source, self.clock, self.heard, intent, (self.clock, message_id))
        self.heard |= {call}
        return call

    def worded(self, intent):
        """Return an intent as a message carries it, with what was seen."""
        held = self.state.get(self.trait)
        if self.trait == "union" and intent[0] == "remove":
            return {"$remove": {intent[1]: seen(held.observed(intent[1])) if held else {}}}
        if self.trait == "ask" and isinstance(intent, tuple):
            return {"$value": intent[1], "$observed": seen(held.observed()) if held else {}}
        return {"union": lambda: [intent[1]], "counter": lambda: {"$add": intent}}.get(self.trait, lambda: intent)()

    def packet(self):
        """Return what goes over the network."""
        return msgspec.json.encode(self.state), self.heard

    def hear(self, packet):
        """Take in what came over the network."""
        state, heard = packet
        self.state = registers.combine(self.state, registers.load(state))
        self.heard |= heard

    def read(self):
        """Return what a reader sees here."""
        if self.trait == "consent":
            return {one: granted(consent_of(self.state), *one) for one in CONSENTS}
        if self.trait == "ask":
            standing = {json.dumps(msgspec.json.decode(one.value)) for one in self.standing()}
            return shown(self.state).get(self.trait), standing
        return shown(self.state).get(self.trait)

    def standing(self):
        """Return the values that stand against each other, or the one there is."""
        held = self.state.get(self.trait)
        return held._standing().values() if held else ()


CONSENTS = [("email", ""), ("email", "news"), ("sms", "")]
PROOF = {"form": "signup"}
INTENTS = {
    "newest": st.integers(0, 3),
    "plain": st.integers(0, 3),
    "source_priority": st.integers(0, 3),
    "union": st.tuples(st.sampled_from(["add", "remove"]), st.sampled_from("ab")),
    "counter": st.integers(-5, 5),
    "ask": st.one_of(st.integers(0, 2), st.tuples(st.just("choose"), st.integers(0, 2))),
    "consent": st.sampled_from(
        [{"email": False}, {"email": {"granted": True, "evidence": PROOF}}, {"email": {"topics": {"news": False}}},
         {"email": {"evidence": PROOF, "topics": {"news": True}}}, {"sms": {"granted": True, "evidence": PROOF}},
         {"sms": False}, {"email": {"granted": False, "topics": {"news": False}}}]
    ),
}  # fmt: skip


def newest(calls):
    return max(calls, key=lambda call: call.order).value if calls else None


def by_place(calls):
    def place(call):
        return SOURCES.index(call.source) if call.source in SOURCES else len(SOURCES)

    return max(calls, key=lambda call: (-place(call), call.order)).value if calls else None


def still_there(calls):
    """An element is in where somebody added it and nobody who had heard of that removed it."""
    added = [call for call in calls if call.value[0] == "add"]
    removals = [call for call in calls if call.value[0] == "remove"]
    left = {
        call.value[1]
        for call in added
        if not any(call in removal.heard and removal.value[1] == call.value[1] for removal in removals)
    }
    return sorted(left) or None


def total(calls):
    return sum(call.value for call in calls) if calls else None


def undecided(calls):
    """A source's last value stands unless a choice was made by somebody who had heard of it."""

    def last(call):
        return not any(other.source == call.source and other.order > call.order for other in calls)

    choices = [call for call in calls if isinstance(call.value, tuple)]
    left = [call for call in calls if last(call) and not any(call in choice.heard for choice in choices)]
    values = {call: call.value[1] if isinstance(call.value, tuple) else call.value for call in left}
    return (values[max(left, key=lambda call: call.order)] if left else None), set(map(json.dumps, values.values()))


def allowed(calls):
    def said(purpose, topic):
        for call in calls:
            choice = call.value.get(purpose, {})
            choice = {"granted": choice} if isinstance(choice, bool) else choice
            choice = choice.get("topics", {}) if topic else choice
            if (topic or "granted") in choice:
                yield call.at, choice[topic or "granted"]

    def open_(purpose, topic, unsaid):
        about = list(said(purpose, topic))
        opt_out = max((at for at, given in about if not given), default=-1)
        return any(given and at > opt_out for at, given in about) if about else unsaid

    return {
        (purpose, topic): open_(purpose, "", False) and (not topic or open_(purpose, topic, True))
        for purpose, topic in CONSENTS
    }


ORACLES = {"newest": newest, "plain": newest, "source_priority": by_place, "union": still_there, "counter": total,
           "ask": undecided, "consent": allowed}  # fmt: skip
replica = st.integers(0, REPLICAS - 1)
network = st.one_of(
    st.tuples(st.just("send"), replica, replica),
    # The index of a packet on its way, and whether it stays there to come again; or it is lost.
    st.tuples(st.just("deliver"), st.integers(0, 50), st.booleans()),
    st.tuples(st.just("lose"), st.integers(0, 50), st.none()),
)


def run(trait, steps, skews):
    """Play a history on a bad network, heal it, and compare every replica with the oracle, before and after."""
    replicas = [Replica(trait, number + 1, skew) for number, skew in enumerate(skews)]
    on_the_way, calls = [], []
    for kind, *step in steps:
        if kind == "say":
            calls.append(replicas[step[0]].say(len(calls), step[1]))
        elif kind == "send":
            on_the_way.append((step[1], replicas[step[0]].packet()))
        elif on_the_way:
            index = step[0] % len(on_the_way)
            whom, packet = on_the_way[index]
            if kind == "deliver":
                replicas[whom].hear(packet)
            if kind == "lose" or not step[1]:
                del on_the_way[index]
        for one in replicas:
            assert one.read() == ORACLES[trait](one.heard)
    for _ in range(REPLICAS):
        for one in replicas:
            for other in replicas:
                other.hear(one.packet())
    for one in replicas:
        assert one.heard == set(calls)
        assert one.read() == ORACLES[trait](calls)
        assert one.state == plain(replicas[0].state)


def steps_of(trait):
    return st.lists(st.one_of(st.tuples(st.just("say"), replica, INTENTS[trait]), network), max_size=25)


@pytest.mark.parametrize("trait", TRAITS)
@given(data=st.data())
def test_replicas_come_to_what_the_history_says(trait, data):
    run(trait, data.draw(steps_of(trait)), data.draw(st.tuples(*[st.integers(0, 20)] * REPLICAS)))


HISTORY = [("say", 0, ("add", "a")), ("send", 0, 1), ("deliver", 0, False), ("say", 1, ("remove", "a"))]


def forgets_to_lift(value, origin, version):
    found = lift_tags(value, origin, version)
    return Tags(found.version, found.added)


def forgets_to_join(self, other):
    return Tags(self.version, _join(self, other).added)


_join = Tags.join


@pytest.mark.parametrize("mutant", ["lift", "join"])
def test_a_set_that_forgets_removals_is_caught(monkeypatch, mutant):
    run("union", HISTORY, (0, 0, 0))
    if mutant == "lift":
        # The laws hold of it all the same: a set that only grows is a set.
        monkeypatch.setitem(policies._LIFTS, "union", forgets_to_lift)
    else:
        monkeypatch.setattr(Tags, "join", forgets_to_join)
    with pytest.raises(AssertionError):
        run("union", HISTORY, (0, 0, 0))


# accordsync-core has the newest value, counters, sets and conflicts; it has no source priority and no consent.
SCHEMA = define_schema({"p": {"newest": lww(), "counter": counter(), "union": set_(), "ask": conflict()}})


class Pair:
    """One replica of ours and one of accordsync's, which say and hear the same."""

    def __init__(self, trait, number, skew):
        self.trait, self.wall = trait, skew
        self.ours = Replica(trait, number + 1, 0)
        self.theirs = LocalWriter(SCHEMA, f"n{number}", lambda: self.wall)

    def say(self, intent):
        """Say the same in both, at the time of accordsync's clock."""
        self.wall += 1
        # With accordsync every value is a choice over what its writer saw.
        value = self.ours.worded(("choose", intent) if self.trait == "ask" else intent)
        write = {
            "newest": lambda: self.theirs.assign("p:1", self.trait, intent),
            "ask": lambda: self.theirs.assign("p:1", self.trait, intent),
            "counter": lambda: self.theirs.inc("p:1", self.trait, intent),
            "union": lambda: (self.theirs.add if intent[0] == "add" else self.theirs.remove)(
                "p:1", self.trait, intent[1]
            ),
        }
        clock = write[self.trait]().hlc
        said = lifted(self.trait, value, at=clock.wall * 10**6 + clock.counter, source=self.ours.source,
                      message_id=clock.encode().split(":")[-1])  # fmt: skip
        self.ours.state = registers.apply(self.ours.state, said)

    def packet(self):
        return self.ours.packet(), self.theirs.replica.ops()

    def hear(self, packet):
        ours, theirs = packet
        self.ours.hear(ours)
        for op in theirs:
            self.theirs.receive(op)

    def agree(self):
        theirs = (self.theirs.replica.read("p:1") or {}).get(self.trait)
        if self.trait == "ask":
            values = [one["value"] for one in theirs.get("conflicted", [theirs])] if theirs else []
            return {json.dumps(one) for one in values} == self.ours.read()[1]
        return (theirs or None) == (self.ours.read() or None)


@pytest.mark.parametrize("trait", ["newest", "counter", "union", "ask"])
@given(data=st.data())
def test_accordsync_comes_to_the_same(trait, data):
    intents = st.integers(0, 2) if trait == "ask" else INTENTS[trait]
    steps = data.draw(st.lists(st.one_of(st.tuples(st.just("say"), replica, intents), network), max_size=25))
    pairs = [Pair(trait, number, data.draw(st.integers(0, 20))) for number in range(REPLICAS)]
    on_the_way = []
    for kind, *step in steps:
        if kind == "say":
            pairs[step[0]].say(step[1])
        elif kind == "send":
            on_the_way.append((step[1], pairs[step[0]].packet()))
        elif kind == "deliver" and on_the_way:
            whom, packet = on_the_way[step[0] % len(on_the_way)]
            pairs[whom].hear(packet)
        assert all(one.agree() for one in pairs)
    for _ in range(REPLICAS):
        for one in pairs:
            for other in pairs:
                other.hear(one.packet())
    assert all(one.agree() for one in pairs)
    assert len({one.theirs.replica.snapshot() for one in pairs}) == 1


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 3)), max_size=20), st.randoms())
def test_a_capped_set_still_combines(said, random):
    parts = [
        lifted("union", {"$union": [str(number)], "$remove": [str(number + 1)]}, at=at, source=source)
        for at, (number, source) in enumerate(said)
    ]
    forward, shuffled = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "MOST_ELEMENTS", 5)
        for part in parts:
            forward = registers.combine(forward, part)
        for part in random.sample(parts + parts, 2 * len(parts)):
            shuffled = registers.combine(part, shuffled)
    assert forward == shuffled
    assert all(len(held.added.keys() | held.removed.keys()) <= 5 for held in forward.values())
