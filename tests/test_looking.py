"""However many people hang together: only those whom evidence sways are looked at, and all is as from scratch."""

from itertools import pairwise
from random import Random
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from cdp.processing import looking
from cdp.processing.clusters import ANY, Evidence, Link, Namespace, Ruleset, Unmerge, derive, paired
from cdp.processing.graph import Row, Whole
from cdp.processing.identity import Identifier
from cdp.processing.looking import look

STRICT = Ruleset(
    1,
    {
        "user_id": Namespace(1, 0),
        "email": Namespace(2, 10, shared_after=3),
        "anonymous_id": Namespace(3, 90, shared_after=3),
        ANY: Namespace(5, 50),
    },
)
names = [
    Identifier(space, f"{space[0]}{number}") for space in ("user_id", "email", "anonymous_id") for number in range(8)
]


def step(random):
    """Return a change of the world, drawn evenly: strategies repeat themselves too much to hang people together."""
    kind = random.choices(("say", "unsay", "unmerge", "lift"), (15, 2, 2, 1))[0]
    if kind == "say":
        return kind, tuple(random.sample(names, 2)), random.randint(0, 1), random.randint(0, 30)
    if kind == "unmerge":
        return kind, random.choice(names), random.randint(1, 3)
    return kind, random.randint(0, 50)


class World:
    """All people in memory, as PostgreSQL would hold them."""

    def __init__(self, rules=STRICT):
        self.rules = rules
        self.links, self.unmerges, self.of, self.blocked = {}, {}, {}, {}
        self.ids, self.loaded = {}, set()

    def step(self, number, change, *rest):
        touched = getattr(self, change)(number, *rest)
        if touched:
            self.look(touched)

    def say(self, number, pair, source_class, at):
        link = Link(*paired(*pair), Evidence(source_class, at, f"m{number}"), 1)
        held = self.links.get(link.pair)
        if held and held.evidence <= link.evidence:
            return set()
        for one in pair:
            self.of.setdefault(one, uuid4())
        # Stored before it is looked at: its ends are looked at whatever it says.
        self.links[link.pair] = link
        return {self.of[one] for one in pair}

    def unsay(self, number, index):
        if not self.links:
            return set()
        link = self.links.pop(sorted(self.links)[index % len(self.links)])
        return {self.of[one] for one in link.pair}

    def unmerge(self, number, one, taken):
        mine = sorted(other for other in self.of if self.of[other] == self.of.get(one))
        if len(mine) < 2:
            return set()
        self.unmerges[number] = Unmerge(
            number, number, {other: int(at < min(taken, len(mine) - 1)) for at, other in enumerate(mine)}
        )
        return {self.of[one]}

    def lift(self, number, index):
        if not self.unmerges:
            return set()
        unmerge = self.unmerges.pop(sorted(self.unmerges)[index % len(self.unmerges)])
        return {self.of[one] for one in unmerge.sides}

    def look(self, people):
        whole = Whole()
        looked = look(whole, people, lambda some: self.load(whole, some), self.rules)
        self.loaded = whole.inside
        everyone = {one for had in looked.had.values() for one in had}
        free = set(looked.had)
        for pair, why in looked.found.refused.items():
            self.links[pair] = self.links[pair]._replace(refused=why)
        for cluster in sorted((one for one in looked.found.clusters if one & everyone), key=sorted):
            mine = sorted(free & {self.of[one] for one in cluster})
            profile = mine[0] if mine else uuid4()
            free.discard(profile)
            for one in cluster:
                self.of[one] = profile
                self.blocked.pop(one, None)
                if why := looked.found.blocked.get(one):
                    self.blocked[one] = why

    def load(self, whole, profiles):
        fresh = set(profiles) - whole.inside
        whole.inside |= fresh
        mine = {one for one, profile in self.of.items() if profile in fresh}
        whole.rows |= {one: Row(self.ids.setdefault(one, len(self.ids)), self.of[one], None) for one in mine}
        links = {pair: one for pair, one in self.links.items() if not mine.isdisjoint(pair)}
        whole.links |= links
        unmerges = {one.id: one for one in self.unmerges.values() if not mine.isdisjoint(one.sides)}
        whole.unmerges = list(({one.id: one for one in whole.unmerges} | unmerges).values())
        met = {end for pair in links for end in pair}.union(*(one.sides for one in unmerges.values()))
        whole.of |= {one: self.of[one] for one in met | mine}
        whole.blocked |= {one: self.blocked[one] for one in met if one in self.blocked}
        for one in whole.blocked.keys() & whole.rows.keys():
            del whole.blocked[one]
        whole.neighbours = {self.of[one] for one in whole.of if one not in whole.blocked} - whole.inside

    def clusters(self):
        found = {}
        for one, profile in self.of.items():
            found.setdefault(profile, set()).add(one)
        return {frozenset(one) for one in found.values()}


def as_from_scratch(world):
    found = derive(world.of, world.links.values(), world.rules, list(world.unmerges.values()))
    assert world.clusters() == {frozenset(one) for one in found.clusters}
    assert {pair: one.refused for pair, one in world.links.items()} == found.refused
    assert world.blocked == found.blocked


@given(st.integers(min_value=0), st.integers(1, 80))
def test_looking_at_whom_evidence_sways_is_looking_at_everyone(seed, steps):
    random, world = Random(seed), World()
    for number in range(steps):
        world.step(number, *step(random))
        as_from_scratch(world)


def test_a_row_in_which_each_sways_the_next_takes_few_turns(monkeypatch):
    """Hundreds of users and devices in a row, of which two make a pair: another first device parts all the others."""
    rules = Ruleset(1, {"user_id": Namespace(1, 0), "anonymous_id": Namespace(1, 90), ANY: Namespace(5, 50)})
    world, turns = World(rules), []
    row = [Identifier(space, f"{number:03}") for number in range(150) for space in ("user_id", "anonymous_id")]
    for number, pair in enumerate(pairwise(row)):
        world.step(number, "say", pair, 1, number)
    as_from_scratch(world)
    monkeypatch.setattr(looking.clusters, "derive", lambda *given, **more: turns.append(1) or derive(*given, **more))
    world.step(5000, "say", (Identifier("anonymous_id", "another"), row[0]), 0, 0)
    as_from_scratch(world)
    assert world.of[row[1]] == world.of[row[2]] != world.of[row[0]]
    assert len(turns) < 15
