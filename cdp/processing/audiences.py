"""Audiences: rules over people as data, made into predicates; their SQL form is in `cdp.processing.audience_sql`.

A rule is one of

    {"all": [RULE, …]}  {"any": [RULE, …]}  {"not": RULE}
    {"trait": "plan", "operator": "equals", "value": "gold"}            a given trait
    {"computed": "total_spent", "operator": "at_least", "value": 100}   a computed trait
    {"event": {"type": "track", "name": "Order Completed", "conditions": […], "window": "30d"},
     "operator": "at_least", "value": 2}                                how often somebody did something
    {"audience": "gold-customers"}                                      who is in another audience

Nothing is evaluated but these. What is asked of events is counted by a computed trait that nobody sees (`Did.key`).
"""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from cdp.processing.conditions import Condition, conditions, instant_of, predicate
from cdp.processing.kinds import DAY_US
from cdp.processing.traits import UnfitTrait, check
from martech.lib.errors import PermanentError

MAX_CLAUSES = 100
MAX_DEPTH = 10
MAX_TIMES = 1_000_000
TIMES = frozenset({"equals", "not_equals", "less", "at_most", "greater", "at_least"})
MATCHES = frozenset({"type", "name", "conditions", "window"})


class UnfitRule(PermanentError):
    """A rule of an audience that cannot be."""

    code = "unfit_rule"


class Cycle(PermanentError):
    """Audiences that are made of one another."""

    code = "audience_cycle"


class All(NamedTuple):
    """Everybody whom all rules mean; without any: everybody."""

    rules: tuple[Rule, ...]


class Any_(NamedTuple):
    """Everybody whom some rule means; without any: nobody."""

    rules: tuple[Rule, ...]


class Not(NamedTuple):
    """Everybody whom a rule does not mean."""

    rule: Rule


class Given(NamedTuple):
    """Whose given traits meet a condition."""

    condition: Condition


class Computed(NamedTuple):
    """Whose computed traits meet a condition."""

    condition: Condition


class Did(NamedTuple):
    """Who did something so often: `kind` "count" of events, under `options` as of a trait's definition."""

    event_type: str
    event_name: str
    options: dict[str, Any]
    condition: Condition

    @property
    def key(self) -> str:
        """What the trait that counts these events is known by, whichever audience asks."""
        said = msgspec.json.encode([self.event_type, self.event_name, self.options], order="sorted")
        return blake2b(said, digest_size=8).hexdigest()


class Member(NamedTuple):
    """Who is in another audience."""

    slug: str


Rule = All | Any_ | Not | Given | Computed | Did | Member
Clause = Given | Computed | Did | Member


@dataclass(slots=True)
class Subject:
    """A person as rules see them: values are as JSON has them, numbers exact.

    `counts` are the numbers of events by `Did.key`, `audiences` those the person is in.
    """

    traits: Mapping[str, Any]
    computed: Mapping[str, Any]
    counts: Mapping[str, int]
    audiences: frozenset[str] | set[str]


Test = Callable[[Subject, int], bool]


def rule(data: Any) -> Rule:
    """Return the rule that JSON data say; UnfitRule and UnfitCondition say what is wrong with it."""
    found = _rule(data, MAX_DEPTH)
    if sum(1 for _ in clauses(found)) > MAX_CLAUSES:
        raise UnfitRule(f"A rule has at most {MAX_CLAUSES} clauses. Make some of it an audience of its own.")
    return found


def _rule(data: Any, depth: int) -> Rule:
    if not depth:
        raise UnfitRule(f"Rules are nested {MAX_DEPTH} deep at most.")
    if not isinstance(data, Mapping):
        raise UnfitRule("A rule is an object: all, any, not, trait, computed, event or audience.")
    named = _KINDS.keys() & data.keys()
    if len(named) != 1:
        raise UnfitRule(
            f"A rule has exactly one of {', '.join(_KINDS)}; this one has {', '.join(sorted(named)) or 'none'}."
        )
    kind = named.pop()
    allowed = {kind} | ({"operator", "value"} if kind in ("trait", "computed", "event") else set())
    if unknown := sorted(map(str, set(data) - allowed)):
        raise UnfitRule(f"A rule of {kind} has no {', '.join(unknown)}.")
    return _KINDS[kind](data, depth)


def _several(make: Callable[[tuple[Rule, ...]], Rule], kind: str) -> Callable[[Mapping[str, Any], int], Rule]:
    def made(data: Mapping[str, Any], depth: int) -> Rule:
        if not isinstance(data[kind], list):
            raise UnfitRule(f"{kind} is a list of rules.")
        return make(tuple(_rule(one, depth - 1) for one in data[kind]))

    return made


def _condition(named: Any, data: Mapping[str, Any]) -> Condition:
    [one] = conditions([{"property": named, **{key: data[key] for key in ("operator", "value") if key in data}}])
    return one


def _did(data: Mapping[str, Any], depth: int) -> Rule:
    asked = data["event"]
    if not isinstance(asked, Mapping) or (unknown := sorted(map(str, set(asked) - MATCHES))):
        what = f"no {', '.join(unknown)}" if isinstance(asked, Mapping) else "to be an object"
        raise UnfitRule(f"An event has {', '.join(sorted(MATCHES))}, and {what}.")
    matched = {name: asked.get(name, "") for name in ("type", "name")}
    if not all(isinstance(one, str) for one in matched.values()):
        raise UnfitRule("An event's type and name are texts.")
    options = {name: asked[name] for name in ("conditions", "window") if asked.get(name)}
    try:
        check("count", options)
    except UnfitTrait as error:
        raise UnfitRule(str(error)) from error
    times = data.get("value", 1)
    if data.get("operator", "at_least") not in TIMES:
        raise UnfitRule(f"How often is asked by {', '.join(sorted(TIMES))}.")
    if isinstance(times, bool) or not isinstance(times, int) or not 0 <= times <= MAX_TIMES:
        raise UnfitRule(f"How often is a whole number up to {MAX_TIMES:,}.")
    held = Condition("times", data.get("operator", "at_least"), times)
    return Did(matched["type"], matched["name"], options, held)


def _member(data: Mapping[str, Any], depth: int) -> Rule:
    if not isinstance(data["audience"], str) or not data["audience"]:
        raise UnfitRule("An audience is named by its slug.")
    return Member(data["audience"])


_KINDS: dict[str, Callable[[Mapping[str, Any], int], Rule]] = {
    "all": _several(All, "all"),
    "any": _several(Any_, "any"),
    "not": lambda data, depth: Not(_rule(data["not"], depth - 1)),
    "trait": lambda data, depth: Given(_condition(data["trait"], data)),
    "computed": lambda data, depth: Computed(_condition(data["computed"], data)),
    "event": _did,
    "audience": _member,
}


def clauses(one: Rule) -> Iterator[Clause]:
    """Yield the clauses of a rule, in its order."""
    if isinstance(one, All | Any_):
        for part in one.rules:
            yield from clauses(part)
    elif isinstance(one, Not):
        yield from clauses(one.rule)
    else:
        yield one


def test(one: Rule) -> Test:
    """Return what tells whether a rule means a person at an instant (µs)."""
    if isinstance(one, All | Any_):
        parts, every = [test(part) for part in one.rules], all if isinstance(one, All) else any
        return lambda person, at: every(holds(person, at) for holds in parts)
    if isinstance(one, Not):
        inner = test(one.rule)
        return lambda person, at: not inner(person, at)
    return _clause(one)


def _clause(one: Clause) -> Test:
    if isinstance(one, Member):
        return lambda person, at: one.slug in person.audiences
    holds, path = predicate(one.condition), one.condition.path
    if isinstance(one, Did):
        key = one.key
        return lambda person, at: holds(person.counts.get(key, 0), at)
    if isinstance(one, Given):
        return lambda person, at: holds(walk(person.traits, path), at)
    return lambda person, at: holds(walk(person.computed, path), at)


def walk(values: Any, path: Iterable[str]) -> Any:
    """Return the value that a path of names leads to, None where there is none."""
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def due(one: Rule, person: Subject, at_us: int) -> int | None:
    """Return when (µs, after `at_us`) time alone may change a clause on given or computed traits, None if never."""
    found = []
    for clause in clauses(one):
        if isinstance(clause, Given | Computed) and clause.condition.operator == "within":
            values = person.traits if isinstance(clause, Given) else person.computed
            said = instant_of(walk(values, clause.condition.path))
            if said is not None:
                # It begins to hold at the instant itself, and holds no more so many days later.
                found += [when for when in (said, said + clause.condition.value * DAY_US) if when > at_us]
    return min(found, default=None)


def ordered(rules: Mapping[str, Rule]) -> list[str]:
    """Return audiences in an order in which each comes after those it is made of; Cycle names one, UnfitRule."""
    needs = {slug: {one.slug for one in clauses(its) if isinstance(one, Member)} for slug, its in rules.items()}
    for slug, others in needs.items():
        if unknown := sorted(others - rules.keys()):
            raise UnfitRule(f"The audience {slug} is made of {unknown[0]}, which there is not.")
    try:
        return list(graphlib.TopologicalSorter({slug: sorted(needs[slug]) for slug in sorted(needs)}).static_order())
    except graphlib.CycleError as error:
        raise Cycle(f"Audiences cannot be made of one another: {' → '.join(reversed(error.args[1]))}.") from error
