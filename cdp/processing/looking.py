"""Looking at people as a whole: how far evidence sways who is who, and what becomes of everyone whom it does.

A verdict on a link is right where it is right given the accepted links before it, and all of these are its own two
people's. So people are looked at together with those beside them; of those, whoever changes is looked at in turn, and
nobody else has to be, however many hang together by links that were refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from uuid import UUID

from cdp.processing import clusters
from cdp.processing.clusters import BLOCKING, Clusters, Link, Ruleset
from cdp.processing.graph import Pair, Whole
from cdp.processing.identity import Identifier

Load = Callable[[Iterable[UUID]], object]
# How often only those who were swayed are looked at in turn.
NEAR_TURNS = 3


@dataclass(frozen=True, slots=True)
class Brought:
    """What is not stored yet: whose new identifiers are, by profile, and links, which stand in for stored ones."""

    new: Mapping[Identifier, UUID] = field(default_factory=dict)
    links: Mapping[Pair, Link] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Looked:
    """What was looked at: `found` is what the rules make of `links`, `had` what each profile's identifiers were."""

    found: Clusters
    links: dict[Pair, Link]
    had: dict[UUID, set[Identifier]]


def look(
    whole: Whole,
    people: Iterable[UUID],
    load: Load,
    rules: Ruleset,
    *,
    brought: Brought | None = None,
    root: Callable[[UUID], UUID] = lambda profile: profile,
) -> Looked:
    """Return what the rules make of people, by the ids of their profiles, and of everyone whom that sways.

    `load` adds profiles, with what bears on them, to `whole`; `root` says what a stored profile has become part of.
    """
    inside = set(people)
    for turn in count(1):
        view = _View(whole, inside, load, brought or Brought(), root)
        looked = view.looked(rules)
        swayed = view.swayed(looked) - inside
        if not swayed:
            break
        inside |= swayed
        if turn > NEAR_TURNS:
            # Each sways the next one: where that ends is found by ever longer steps.
            inside |= _further(whole, load, root, 2 ** (turn - NEAR_TURNS))
    return looked


def _further(whole: Whole, load: Load, root: Callable[[UUID], UUID], steps: int) -> set[UUID]:
    """Load whom links and unmerges lead to, so many steps on; return everyone who is loaded."""
    for _ in range(steps):
        if not whole.neighbours:
            break
        load({root(one) for one in whole.neighbours})
    return {root(one) for one in whole.inside}


class _View:
    """Some people and those beside them."""

    def __init__(
        self, whole: Whole, inside: set[UUID], load: Load, brought: Brought, root: Callable[[UUID], UUID]
    ) -> None:
        self._whole, self._brought, self._root = whole, brought, root
        load(inside)
        self._around = inside | self._beside(inside)
        load(self._around)
        self._had: dict[UUID, set[Identifier]] = {}
        for one in (*whole.rows, *brought.new):
            if (owner := self._owner(one)) in self._around and owner is not None:
                self._had.setdefault(owner, set()).add(one)

    def _owner(self, identifier: Identifier) -> UUID | None:
        profile = self._whole.of.get(identifier)
        return self._brought.new.get(identifier) if profile is None else self._root(profile)

    def _beside(self, inside: set[UUID]) -> set[UUID]:
        """Return whom links and unmerges lead to; those that stand for nobody hold nothing together."""
        together = [link.pair for pair, link in self._whole.links.items() if pair not in self._brought.links]
        together += [link.pair for link in self._brought.links.values() if link.refused not in BLOCKING]
        found = set[UUID]()
        for ends in (*together, *(one.sides for one in self._whole.unmerges)):
            owners = {owner for one in ends if one not in self._whole.blocked and (owner := self._owner(one))}
            if not owners.isdisjoint(inside):
                found |= owners
        return found

    def looked(self, rules: Ruleset) -> Looked:
        """Derive everyone there is; links to others stay as they are."""
        links = self._whole.links | {
            pair: one
            for pair, one in self._brought.links.items()
            if any(self._owner(end) in self._around for end in pair)
        }
        everyone = set().union(*self._had.values())
        # What the batch itself brought upon blocked identifiers leads to them as stored links do.
        brought = {
            end: one.refused
            for one in links.values()
            if one.refused in BLOCKING and one.pair in self._brought.links
            for end in one.pair
            if end not in everyone
        }
        blocked = brought | self._whole.blocked
        met = {end for pair in links for end in pair}.union(*(one.sides for one in self._whole.unmerges))
        beyond = met - everyone - blocked.keys()
        found = clusters.derive(everyone, links.values(), rules, self._whole.unmerges, blocked=blocked, beyond=beyond)
        return Looked(found, links, self._had)

    def swayed(self, looked: Looked) -> set[UUID]:
        """Return whose verdicts, identifiers or standing change."""
        found, swayed = looked.found, set[UUID | None]()
        for pair, link in looked.links.items():
            why = found.refused[pair]
            if (not why) != (not link.refused) or (why in BLOCKING) != (link.refused in BLOCKING):
                blocked = [one for one in pair if one in found.blocked]
                swayed.update(map(self._owner, blocked if link.refused and blocked else pair))
        for cluster in found.clusters:
            owners = {self._owner(one) for one in cluster}
            if len(owners) > 1 or any(self._had.get(one) != cluster for one in owners if one):
                swayed |= owners
        return {one for one in swayed if one in self._around}
