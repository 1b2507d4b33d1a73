"""Which identifiers are one person: a function of the evidence and the rules, not of the order in which it came.

Pure functions. Links (evidence that two identifiers are one person) are taken in canonical order: source class
(server before browser), time, message id, priority of the namespaces. Each joins two clusters unless the rules,
or a person who took them apart, forbid it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cdp.processing.identity import Identifier

# Why two identifiers were kept apart.
BLOCKED_VALUE, SHARED, UNMERGED = "blocked_value", "shared_identifier", "unmerged"
# An identifier that stands for nobody in particular: what links to it contests no profile.
BLOCKING = frozenset({BLOCKED_VALUE, SHARED})
ANY = "*"


class Namespace(NamedTuple):
    """The rules of a namespace.

    `limit`: how many of its values one person may have; `priority`: of an event's identifiers the smaller joins
    first; `blocked`: values that stand for nobody, in lower case; `shared_after`: how many values of limit-1
    namespaces (user ids) an identifier of this one may be seen with before it counts as shared, 0 for any number.
    """

    limit: int = 5
    priority: int = 50
    blocked: frozenset[str] = frozenset()
    shared_after: int = 10


@dataclass(frozen=True, slots=True)
class Ruleset:
    """A version of all namespaces' rules; `ANY` stands for those without rules of their own."""

    version: int
    namespaces: Mapping[str, Namespace]

    @classmethod
    def of(cls, version: int, namespaces: Mapping[str, Mapping[str, Any]]) -> Ruleset:
        """Return the rules that JSON data say; KeyError, TypeError and ValueError where they say none."""
        return cls(version, {name: _namespace(rules) for name, rules in namespaces.items()})

    def __getitem__(self, namespace: str) -> Namespace:
        return self.namespaces.get(namespace) or self.namespaces[ANY]

    def blocks(self, identifier: Identifier) -> bool:
        """Tell whether an identifier's value stands for nobody."""
        blocked = self[identifier.namespace].blocked
        return bool(blocked) and identifier.value.strip("\"' ").lower() in blocked

    def exceeded(self, *holdings: Mapping[str, Any]) -> str:
        """Return the namespace of which one person would hold too many values, or "".

        Each holding is what a person has: a list or the number of values by namespace.
        """
        for namespace in sorted(set().union(*holdings)):
            if sum(_number(one.get(namespace, 0)) for one in holdings) > self[namespace].limit:
                return namespace
        return ""

    @property
    def has_blocked(self) -> bool:
        """Whether any value is blocked."""
        return any(one.blocked for one in self.namespaces.values())


def _namespace(rules: Mapping[str, Any]) -> Namespace:
    blocked = frozenset(str(value).lower() for value in rules.get("blocked", ()))
    return Namespace(int(rules["limit"]), int(rules["priority"]), blocked, int(rules.get("shared_after", 0)))


def _number(values: Any) -> int:
    return values if isinstance(values, int) else len(values)


DEFAULT = Ruleset(
    1,
    {"user_id": Namespace(1, 0), "email": Namespace(5, 10), "anonymous_id": Namespace(5, 90), ANY: Namespace(5, 50)},
)


class Evidence(NamedTuple):
    """What orders links: the smaller counts first. `at_us` is clamped to receipt, and is receipt for public sources."""

    source_class: int
    at_us: int
    message_id: str


class Link(NamedTuple):
    """The strongest evidence that two identifiers (in order) are one person; `refused` says why they are kept apart."""

    left: Identifier
    right: Identifier
    evidence: Evidence
    source_id: int
    refused: str = ""

    @property
    def pair(self) -> tuple[Identifier, Identifier]:
        """What it is about."""
        return (self.left, self.right)


class Unmerge(NamedTuple):
    """A person's decision that two sets of identifiers are two people: `sides` says which one each belongs to."""

    id: int
    at_us: int
    sides: dict[Identifier, int]


@dataclass(slots=True)
class Clusters:
    """What the rules make of links.

    `clusters` are sets of identifiers; `refused` says by pair why it was kept apart ("" where it was not);
    `blocked` says which identifiers stand for nobody, and why.
    """

    clusters: list[set[Identifier]] = field(default_factory=list)
    refused: dict[tuple[Identifier, Identifier], str] = field(default_factory=dict)
    blocked: dict[Identifier, str] = field(default_factory=dict)

    def contested(self, unmerges: Iterable[Unmerge]) -> set[Identifier]:
        """Return the identifiers whose clusters the rules must look at as a whole when new evidence comes."""
        found = {one for pair, why in self.refused.items() if why and why not in BLOCKING for one in pair}
        return found.union(*(unmerge.sides for unmerge in unmerges))


def order(rules: Ruleset, link: Link) -> tuple[Any, ...]:
    """Return what places a link in canonical order."""
    low, high = sorted((rules[link.left.namespace].priority, rules[link.right.namespace].priority))
    return (*link.evidence, low, high, link.left, link.right)


def paired(one: Identifier, other: Identifier) -> tuple[Identifier, Identifier]:
    """Return a pair in its one order."""
    return (one, other) if one < other else (other, one)


def derive(
    identifiers: Iterable[Identifier],
    links: Iterable[Link],
    rules: Ruleset,
    unmerges: Sequence[Unmerge] = (),
    *,
    blocked: Mapping[Identifier, str] | None = None,
    beyond: Set[Identifier] = frozenset(),
) -> Clusters:
    """Return the clusters of identifiers (those of the links and sides included).

    `blocked` are identifiers known to stand for nobody, not all of whose links are given. `beyond` are those of
    people who are not looked at: they are in no cluster, and what is refused of links to them stands.
    """
    links = list(links)
    everyone = set(identifiers).union(*(link.pair for link in links), *(one.sides for one in unmerges)) - beyond
    blocked = _blocked(everyone, links, rules) | dict(blocked or {})
    forest = _Forest(rules, unmerges)
    for unmerge in sorted(unmerges, key=lambda one: (one.at_us, sorted(one.sides.items()))):
        _hold_together(forest, unmerge, blocked.keys() | beyond)
    refused = {}
    for link in sorted(links, key=lambda one: order(rules, one)):
        if not beyond.isdisjoint(link.pair):
            refused[link.pair] = link.refused
            continue
        why = blocked.get(link.left) or blocked.get(link.right)
        refused[link.pair] = why or forest.join(link.left, link.right)
    return Clusters(forest.clusters(everyone), refused, blocked)


def shared(links: Iterable[Link], rules: Ruleset) -> set[Identifier]:
    """Return the identifiers that are seen with too many values of a limit-1 namespace: a kiosk's cookie, say.

    The values of each namespace count alone: one person may have a user id and a customer number.
    """
    owners: dict[tuple[Identifier, str], set[str]] = {}
    for link in links:
        for one, other in (link.pair, link.pair[::-1]):
            if rules[one.namespace].limit != 1 and rules[other.namespace].limit == 1 and not rules.blocks(other):
                owners.setdefault((one, other.namespace), set()).add(other.value)
    return {one for (one, _), found in owners.items() if 0 < rules[one.namespace].shared_after < len(found)}


def _blocked(identifiers: Iterable[Identifier], links: Sequence[Link], rules: Ruleset) -> dict[Identifier, str]:
    found = dict.fromkeys(shared(links, rules), SHARED)
    if rules.has_blocked:
        found |= {one: BLOCKED_VALUE for one in identifiers if rules.blocks(one)}
    return found


def _hold_together(forest: _Forest, unmerge: Unmerge, without: Set[Identifier]) -> None:
    """Join what a person said to be one side, as far as the rules and other people's decisions let it."""
    for side in sorted(set(unmerge.sides.values())):
        heads: list[Identifier] = []
        for one in sorted(one for one, its in unmerge.sides.items() if its == side and one not in without):
            if not any(not forest.join(head, one) for head in heads):
                heads.append(one)


class _Forest:
    """Clusters that grow: union-find, each root with what its cluster holds and on which sides of unmerges it is."""

    def __init__(self, rules: Ruleset, unmerges: Sequence[Unmerge]) -> None:
        self._rules = rules
        self._parents: dict[Identifier, Identifier] = {}
        self._held: dict[Identifier, dict[str, int]] = {}
        self._sides: dict[Identifier, dict[int, int]] = {}
        for number, unmerge in enumerate(unmerges):
            for identifier, side in unmerge.sides.items():
                self._sides.setdefault(identifier, {})[number] = side

    def root(self, identifier: Identifier) -> Identifier:
        """Return what stands for an identifier's cluster."""
        path = []
        while (parent := self._parents.get(identifier, identifier)) != identifier:
            path.append(identifier)
            identifier = parent
        for one in path:
            self._parents[one] = identifier
        return identifier

    def join(self, left: Identifier, right: Identifier) -> str:
        """Make two clusters one, or return why they stay two."""
        one, other = self.root(left), self.root(right)
        if one == other:
            return ""
        mine, theirs = self._holding(one), self._holding(other)
        if why := forbidden(self._rules, (mine, theirs), (self._sides.get(one, {}), self._sides.get(other, {}))):
            return why
        if sum(mine.values()) < sum(theirs.values()):
            one, other, mine, theirs = other, one, theirs, mine
        self._parents[other] = one
        self._held[one] = {name: mine.get(name, 0) + theirs.get(name, 0) for name in mine.keys() | theirs.keys()}
        if other in self._sides:
            self._sides[one] = self._sides.get(one, {}) | self._sides[other]
        return ""

    def _holding(self, root: Identifier) -> dict[str, int]:
        return self._held.get(root) or {root.namespace: 1}

    def clusters(self, identifiers: Iterable[Identifier]) -> list[set[Identifier]]:
        """Return the clusters of identifiers."""
        found: dict[Identifier, set[Identifier]] = {}
        for identifier in identifiers:
            found.setdefault(self.root(identifier), set()).add(identifier)
        return list(found.values())


def forbidden(
    rules: Ruleset, holdings: tuple[Mapping[str, Any], Mapping[str, Any]], sides: tuple[Mapping[int, int], ...]
) -> str:
    """Return why two clusters may not be one, "" where they may.

    `holdings` are their values by namespace, `sides` the sides of unmerges that they are on.
    """
    mine, theirs = sides
    if any(theirs.get(number, side) != side for number, side in mine.items()):
        return UNMERGED
    exceeded = rules.exceeded(*holdings)
    return f"limit_{exceeded}" if exceeded else ""
