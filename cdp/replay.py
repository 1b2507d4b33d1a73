"""A replay: people built from `event_stream` and the archive alone, in a shadow, and compared with the truth.

Everything is read in one snapshot, so processors that run meanwhile do no harm; nothing is written here, but by
`cdp.repair`. Each event is read once: from its table where that still stands, else from the archive. The states of
anchors are built for so many identifiers at a time; the evidence of who is who is held whole, about 1 KiB a pair of
identifiers.

What is compared: identifiers with the events that name them, links with the evidence of events, clusters and
verdicts with what the rules of now make of that evidence (a person's unmerges are facts), the registers and trait
states of every anchor with its events, and of every profile with its identifiers, as they are kept and as readers see
them. Versions, ids and times of writing are not state.
"""

from __future__ import annotations

import decimal
import gc
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import psycopg

from cdp import history
from cdp.history import Filter
from cdp.processing import accounts, clusters, registers, shadow
from cdp.processing.clusters import Evidence, Link, Unmerge, paired
from cdp.processing.identity import Identifier
from cdp.processing.people import Delta
from cdp.processing.shadow import Shadow
from cdp.processing.states import State
from martech.lib import clock

IDENTIFIERS_PER_PASS = 200_000
EXAMPLES = 10
# Kinds of differences, in the order in which they are told.
STATES = "trait states"
KINDS = (
    "missing identifiers", "superfluous identifiers", "links", "verdicts", "clusters", "registers", STATES,
    "traits", "computed traits", "consent", "identity graphs", "accounts",
)  # fmt: skip

Advance = Callable[[int], object]
_encode = msgspec.json.Encoder().encode
_shown = msgspec.json.Encoder(decimal_format="number").encode
_exact = msgspec.json.Decoder(float_hook=decimal.Decimal).decode


class Difference(NamedTuple):
    """Something that PostgreSQL holds and events say otherwise."""

    kind: str
    where: str
    held: Any
    rebuilt: Any


@dataclass(slots=True)
class Report:
    """What a replay read and found.

    Before `history_starts` events were dropped: identifiers that are older are `not_comparable`. `outdated` are those
    with traits that were kept by another merge policy than that of now.
    """

    events: int = 0
    archived: int = 0
    identifiers: int = 0
    profiles: int = 0
    accounts: int = 0
    links: int = 0
    not_comparable: int = 0
    outdated: int = 0
    history_starts: datetime | None = None
    most: int = EXAMPLES
    differences: Counter[str] = field(default_factory=Counter)
    examples: list[Difference] = field(default_factory=list)

    def differ(self, kind: str, where: object, held: Any, rebuilt: Any) -> None:
        """Count a difference, and keep the first of each kind as examples."""
        self.differences[kind] += 1
        if self.differences[kind] <= self.most:
            self.examples.append(Difference(kind, str(where), held, rebuilt))

    def document(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return {
            **{name: getattr(self, name) for name in REPORTED},
            "differences": {kind: self.differences[kind] for kind in KINDS},
            "examples": [one._asdict() for one in self.examples],
        }


REPORTED = (
    "events",
    "archived",
    "identifiers",
    "profiles",
    "accounts",
    "links",
    "not_comparable",
    "outdated",
    "history_starts",
)


def shown(value: Any) -> str:
    """Return a report or a part of it as JSON, numbers as exact as they are."""
    return _shown(value).decode()


def verify(
    *, per_pass: int = IDENTIFIERS_PER_PASS, most: int = EXAMPLES, advance: Advance = lambda events: None
) -> Report:
    """Build everything from events and compare it; `advance` hears how many events were read."""
    with history.snapshot() as reading, without_collection():
        report = Report(most=most, history_starts=history.starts(reading))
        comparison = Comparison(reading, report)
        for low, high in history.ranges(reading.session, per_pass):
            comparison.one_pass(low, high, advance)
        comparison.people()
        comparison.profiles()
        comparison.accounts()
        return report


@contextmanager
def without_collection() -> Iterator[None]:
    """Spare Python the search for cycles: there are none, and it would walk over millions of objects many times."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass(slots=True)
class Suspects:
    """What differs, for whoever mends it; `anchors` are row ids, of the last pass alone."""

    anchors: set[int] = field(default_factory=set)
    # By pair what is to be kept of it; None: no event says so.
    links: dict[shadow.Pair, Link | None] = field(default_factory=dict)
    verdicts: set[shadow.Pair] = field(default_factory=set)
    # Profiles that are not what their identifiers say, and those that are not the people whom the rules make.
    states: set[UUID] = field(default_factory=set)
    clusters: set[UUID] = field(default_factory=set)
    accounts: set[str] = field(default_factory=set)
    # Row ids that events have as their anchor, of no identifier; identifiers that no event names.
    strays: set[int] = field(default_factory=set)
    superfluous: set[Identifier] = field(default_factory=set)


class Comparison:
    """A replay of everything, or of some, while it goes on."""

    def __init__(self, reading: history.Reading, report: Report) -> None:
        self.reading, self.report = reading, report
        self.suspects = Suspects()
        self.shadow = Shadow(reading.rules)
        # Identifiers that began before the history did: not all that made them is there.
        self.older: set[Identifier] = set()
        # Those that no event is anchored to: other events must name them.
        self.unanchored: set[Identifier] = set()
        # What is older may have been named by events that an erasure took.
        self.erased_at = history.last_erasure(reading)
        self.clusters: list[set[Identifier]] = []

    def one_pass(self, low: int, high: int, advance: Advance, members: frozenset[int] | None = None) -> None:
        """Build the states of a range of anchors, or of those of it in `members`, and compare them."""
        names = history.names(self.reading.session, low, high, members)
        self.suspects.anchors = set()
        self.shadow.begin(names)
        for rows, archived in history.rows(self.reading, low, high, Filter(anchors=members)):
            self.shadow.fold(rows)
            self.report.archived += len(rows) if archived else 0
            advance(len(rows))
        self.shadow.end()
        self.report.events = self.shadow.events
        self.report.identifiers += len(names)
        chosen, values = (_IN_RANGE, [low, high]) if members is None else (_AMONG, [sorted(members)])
        self._compare_anchors(names, history.stream(self.reading.session, _STATES + chosen, values))
        for anchor in self.shadow.deltas.keys() - names.keys():
            self.suspects.strays.add(anchor)
            self.report.differ("missing identifiers", f"anchor {anchor}", None, "the anchor of events")

    def _compare_anchors(self, names: Mapping[int, Identifier], rows: Iterable[tuple[Any, ...]]) -> None:
        start = self.report.history_starts
        for row_id, created_at, held, states in rows:
            name = names[row_id]
            if start is None or created_at < start:
                self.older.add(name)
                self.report.not_comparable += 1
                continue
            delta = self.shadow.deltas.get(row_id)
            if delta is None:
                delta = Delta()
                if self.erased_at is None or created_at > self.erased_at:
                    self.unanchored.add(name)
            same = self._compare_registers(name, held, delta.registers)
            if not self._compare(STATES, name, states, delta.states) or not same:
                self.suspects.anchors.add(row_id)

    def _compare(self, kind: str, where: object, held: str | bytes, rebuilt: Any) -> bool:
        """Compare what PostgreSQL holds, as JSON, with what it should be; return whether it is."""
        if kind == STATES:
            rebuilt = self.reading.rules.folder.live(rebuilt, self.reading.now_us)
        encoded = _encode(rebuilt)
        # So it is where there is nothing, which is often.
        if encoded == (held.encode() if isinstance(held, str) else held):
            return True
        was, would = _exact(held), _exact(encoded)
        if kind == STATES:
            # Those whose definitions are gone are nobody's to say.
            folder = self.reading.rules.folder
            known = {key: state for key, state in was.items() if key in folder.kinds}
            was = folder.live(known, self.reading.now_us)
        if was != would:
            self.report.differ(kind, where, was, would)
        return bool(was == would)

    def _compare_registers(self, name: Identifier, held: str, rebuilt: registers.Registers) -> bool:
        encoded = _encode(rebuilt)
        if held.encode() == encoded or _exact(held) == _exact(encoded):
            return True
        # A merge policy was changed since: the older state shows until something new is said.
        given = registers.load(held)
        aged = {one for one in given.keys() & rebuilt.keys() if _level(given[one]) != _level(rebuilt[one])}
        left = {one: state for one, state in given.items() if one not in aged}
        self.report.outdated += bool(aged)
        self._compare("registers", name, _encode(left), {one: rebuilt[one] for one in rebuilt if one not in aged})
        return False

    def people(self) -> None:
        """Compare links, verdicts and clusters with what the rules make of the evidence in events."""
        held = {link.pair: link for link in _links(self.reading.session)}
        built = self._built(held, self.shadow.links)
        unmerges = _unmerges(self.reading.session)
        found = clusters.derive((), built.values(), self.reading.rules.identity, unmerges)
        self.report.links, self.clusters = len(built), found.clusters
        self._compare_links(held, built, found.refused)
        for name in self.unanchored.difference(*built):
            self.suspects.superfluous.add(name)
            self.report.differ("superfluous identifiers", name, "an identifier", "no event names it")

    def links(self, pairs: Collection[shadow.Pair]) -> None:
        """Compare the links of some pairs alone, whose anchors were passed."""
        ends = set(chain(*pairs))
        ids = [row_id for row_id, name in self.shadow.names.items() if name in ends]
        held = {link.pair: link for link in _links(self.reading.session, ids)}
        built = self._built(held, {pair: self.shadow.links[pair] for pair in pairs if pair in self.shadow.links})
        self._compare_links(
            {pair: held[pair] for pair in held.keys() & pairs}, {pair: built[pair] for pair in built.keys() & pairs}, {}
        )

    def _built(
        self, held: Mapping[shadow.Pair, Link], said: Mapping[shadow.Pair, tuple[Evidence, int]]
    ) -> dict[shadow.Pair, Link]:
        """Return the links that events make; what began before the history did is taken as it is."""
        built = {pair: Link(*pair, *given) for pair, given in said.items()}
        for pair, link in held.items():
            if not self.older.isdisjoint(pair):
                built[pair] = min(link, built.get(pair, link), key=lambda one: one.evidence)
        return built

    def _compare_links(
        self, held: dict[shadow.Pair, Link], built: dict[shadow.Pair, Link], refused: dict[shadow.Pair, str]
    ) -> None:
        for pair in held.keys() | built.keys():
            was, would = held.get(pair), built.get(pair)
            evidence = [None if one is None else list(one.evidence) for one in (was, would)]
            if evidence[0] != evidence[1]:
                self.suspects.links[pair] = would and would._replace(refused=was.refused if was else "")
                self.report.differ("links", _pair(pair), *evidence)
            elif was is not None and was.refused != refused.get(pair, was.refused):
                self.suspects.verdicts.add(pair)
                self.report.differ("verdicts", _pair(pair), was.refused, refused[pair])

    def profiles(self) -> None:
        """Compare every profile with its identifiers: who they are, and the combination of their states."""
        of = {one: number for number, cluster in enumerate(self.clusters) for one in cluster}
        holders: dict[int, dict[UUID, list[str]]] = {}
        for profile, rows in _grouped(history.stream(self.reading.session, _PROFILES, [])):
            self.report.profiles += 1
            # A profile of nobody, such as an erased one, is joined with one row of nothing.
            members = {Identifier(row[8], row[9]): row[10:] for row in rows if row[8] is not None}
            for number, its in self._people_in(profile, members, of).items():
                holders.setdefault(number, {})[profile] = its
            if not self._compare_state(f"profile {profile}", rows[0][1:], members):
                self.suspects.states.add(profile)
        self._compare_holders(holders)

    def _people_in(
        self, profile: UUID, members: Iterable[Identifier], of: dict[Identifier, int]
    ) -> dict[int, list[str]]:
        """Compare whom a profile holds with the clusters, and return the ones it holds identifiers of.

        An identifier without links is a cluster by itself.
        """
        people: dict[int, list[str]] = {}
        alone = []
        for name in members:
            number = of.get(name)
            if number is None:
                alone.append([str(name)])
            else:
                people.setdefault(number, []).append(str(name))
        if len(people) + len(alone) > 1:
            rebuilt = sorted([*map(sorted, people.values()), *alone])
            self.suspects.clusters.add(profile)
            self.report.differ("clusters", f"profile {profile}", sorted(chain(*rebuilt)), rebuilt)
        return people

    def _compare_holders(self, holders: dict[int, dict[UUID, list[str]]]) -> None:
        """Compare the clusters with who holds them."""
        for number, cluster in enumerate(self.clusters):
            profiles, names = holders.get(number, {}), sorted(map(str, cluster))
            held = {f"profile {profile}": its for profile, its in profiles.items()}
            if len(held) > 1:
                self.suspects.clusters.update(profiles)
                self.report.differ("clusters", ", ".join(held), held, names)
            for name in sorted(set(names).difference(*held.values())):
                self.report.differ("missing identifiers", name, None, "an identifier that events name")

    def _compare_state(self, where: str, held: Sequence[Any], members: Mapping[Identifier, Sequence[str]]) -> bool:
        """Compare a profile with its identifiers; return whether it is their combination."""
        folder = self.reading.rules.folder
        given: registers.Registers = {}
        states: dict[str, Any] = {}
        graph: dict[str, list[str]] = {}
        for name, (its_registers, its_states) in members.items():
            given = registers.combine(given, registers.load(its_registers))
            states = folder.combine(states, msgspec.json.decode(its_states))
            graph.setdefault(name.namespace, []).append(name.value)
        known = {key: state for key, state in states.items() if key in folder.kinds}
        # In a list: each of them is told.
        same = [
            self._compare("registers", where, held[0], given),
            self._compare(STATES, where, held[1], known),
            self._compare("traits", where, held[2], registers.present(given)),
            self._compare("computed traits", where, held[3], folder.present(states, clock.to_us(held[6]))),
            self._compare("consent", where, held[5], registers.present_consent(given)),
            self._compare("identity graphs", where, _sorted(held[4]), {one: sorted(graph[one]) for one in graph}),
        ]
        return all(same)

    def group_calls(self, advance: Advance, per_pass: int) -> None:
        """Read the group calls of all anchors alone."""
        for low, high in history.ranges(self.reading.session, per_pass):
            self.shadow.begin(history.names(self.reading.session, low, high))
            for rows, _archived in history.rows(self.reading, low, high, Filter(event="group")):
                self.shadow.fold(rows)
                advance(len(rows))

    def accounts(self) -> None:
        """Compare accounts, who belongs to them and what they are called with what group calls say."""
        held = {}
        for group, created_at, *columns in self.reading.session.execute(_ACCOUNTS):
            if self.report.history_starts and created_at >= self.report.history_starts:
                held[group] = (self.erased_at is not None and created_at <= self.erased_at, columns)
        built, names = self.shadow.accounts, names_of_accounts(self.shadow.accounts)
        self.report.accounts = len(held)
        for group, (is_older, columns) in held.items():
            delta = built.get(group, accounts.Delta())
            where = f"account {accounts.GROUP_ID}:{group}"
            same = [self._compare("accounts", f"{where}, members", columns[2], _texts(delta.members))]
            # Of those that a person who was erased may have told of, no more is known.
            if not is_older:
                same += [
                    self._compare("accounts", f"{where}, registers", columns[0], delta.registers),
                    self._compare("accounts", f"{where}, traits", columns[1], registers.present(delta.registers)),
                    self._compare("accounts", f"{where}, names", columns[3], _texts(names.get(group, {}))),
                ]
            if not all(same):
                self.suspects.accounts.add(group)
        if self.report.not_comparable == 0:
            for group in built.keys() - held.keys():
                self.suspects.accounts.add(group)
                self.report.differ("accounts", f"account {accounts.GROUP_ID}:{group}", None, "the account of events")


def names_of_accounts(built: Mapping[str, accounts.Delta]) -> dict[str, dict[Identifier, accounts.Evidence]]:
    """Return by group id what else its account is called, with the evidence that won the name."""
    won: dict[Identifier, tuple[accounts.Evidence, str]] = {}
    for group, delta in built.items():
        for name, evidence in delta.names.items():
            won[name] = min((evidence, group), won.get(name, (evidence, group)))
    found: dict[str, dict[Identifier, accounts.Evidence]] = {}
    for name, (evidence, group) in won.items():
        found.setdefault(group, {})[name] = evidence
    return found


def _texts(named: Mapping[Identifier, Any]) -> dict[str, Any]:
    return {str(one): what for one, what in named.items()}


def _level(held: registers.Held) -> object:
    return held.level if isinstance(held, State) else None


def _pair(pair: shadow.Pair) -> str:
    return " ~ ".join(map(str, pair))


def _sorted(graph: str) -> bytes:
    return _encode({namespace: sorted(values) for namespace, values in msgspec.json.decode(graph).items()})


_STATES = "SELECT id, created_at, registers::text, trait_states::text FROM cdp_identifier "
_IN_RANGE, _AMONG = "WHERE id > %s AND id <= %s", "WHERE id = ANY(%s)"
_PROFILES = """
SELECT profile.id, profile.registers::text, profile.trait_states::text, profile.traits::text,
       profile.computed_traits::text, profile.identity_graph::text, profile.consent::text, profile.computed_at,
       one.namespace, one.value, one.registers::text, one.trait_states::text
FROM customer_profiles AS profile LEFT JOIN cdp_identifier AS one ON one.profile_id = profile.id
WHERE profile.merged_into_id IS NULL OR one.id IS NOT NULL ORDER BY profile.id
"""
_ACCOUNTS = """
SELECT g.value, a.created_at, a.registers::text, a.traits::text,
       (SELECT coalesce(jsonb_object_agg(i.namespace || ':' || i.value, m.register), '{}')::text
        FROM cdp_accountmember m JOIN cdp_identifier i ON i.id = m.identifier_id WHERE m.account_id = a.id),
       (SELECT coalesce(jsonb_object_agg(n.namespace || ':' || n.value, n.evidence), '{}')::text
        FROM cdp_accountidentifier n WHERE n.account_id = a.id AND n.namespace <> 'group_id')
FROM cdp_account a JOIN cdp_accountidentifier g ON g.account_id = a.id AND g.namespace = 'group_id'
"""
_LINKS = """
SELECT l.namespace, l.value, r.namespace, r.value, e.source_class,
       (extract(epoch FROM e.occurred_at) * 1000000)::bigint, e.message_id, e.source_id, e.refused
FROM cdp_edge e JOIN cdp_identifier l ON l.id = e.left_id JOIN cdp_identifier r ON r.id = e.right_id
"""
_UNMERGES = """
SELECT d.id, d.occurred_at, i.namespace, i.value, s.side FROM cdp_unmergeside s
JOIN cdp_identitydecision d ON d.id = s.decision_id AND d.kind = 'unmerge' AND d.lifted_at IS NULL
JOIN cdp_identifier i ON i.id = s.identifier_id ORDER BY d.id
"""


def _grouped(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, list[tuple[Any, ...]]]]:
    """Group rows by their first column, which they are in the order of."""
    return ((key, list(group)) for key, group in groupby(rows, itemgetter(0)))


def _links(session: psycopg.Connection[Any], ids: Sequence[int] | None = None) -> Iterator[Link]:
    """Return all links, or those between identifiers of these row ids."""
    among = "" if ids is None else "WHERE e.left_id = ANY(%(ids)s) AND e.right_id = ANY(%(ids)s)"
    for namespace, value, other, its, source_class, at_us, message_id, source_id, refused in history.stream(
        session, _LINKS + among, {"ids": ids}
    ):
        pair = paired(Identifier(namespace, value), Identifier(other, its))
        yield Link(*pair, Evidence(source_class, at_us, message_id), source_id, refused)


def _unmerges(session: psycopg.Connection[Any]) -> list[Unmerge]:
    found: dict[int, tuple[int, dict[Identifier, int]]] = {}
    for decision, at, namespace, value, side in session.execute(_UNMERGES):
        found.setdefault(decision, (clock.to_us(at), {}))[1][Identifier(namespace, value)] = side
    return [Unmerge(decision, at_us, sides) for decision, (at_us, sides) in found.items()]


@dataclass(slots=True)
class Rebuilt:
    """What some events alone make of the people they are of, together: as readers would see it, and what they see.

    `held` is what PostgreSQL holds of the one profile that was asked for, None where none was.
    """

    events: int
    archived: int
    identifiers: int
    traits: Any
    computed_traits: Any
    consent: Any
    held: dict[str, Any] | None = None


def rebuild(
    wanted: Filter, *, profile_id: UUID | None = None, per_pass: int = IDENTIFIERS_PER_PASS,
    advance: Advance = lambda events: None,
) -> Rebuilt:  # fmt: skip
    """Build the states of some events' people, combined; with a profile those of its identifiers alone.

    Given traits are told of a profile only: those of many people are nobody's.
    """
    with history.snapshot() as reading:
        folder = reading.rules.folder
        given: registers.Registers = {}
        states: dict[str, Any] = {}
        built = Shadow(reading.rules)
        archived = identifiers = 0
        members = _members(reading.session, profile_id)
        for low, high in [(-1, 2**63 - 1)] if profile_id else history.ranges(reading.session, per_pass):
            built.begin(history.names(reading.session, low, high, members))
            for rows, of_archive in history.rows(reading, low, high, replace(wanted, anchors=members)):
                built.fold(rows)
                archived += len(rows) if of_archive else 0
                advance(len(rows))
            identifiers += len(built.deltas)
            for delta in built.deltas.values():
                states = folder.combine(states, delta.states)
                given = registers.combine(given, delta.registers) if profile_id else given
        return Rebuilt(
            built.events, archived, identifiers, _plain(registers.present(given)),
            _plain(folder.present(states, reading.now_us)),
            _plain(registers.present_consent(given)) if profile_id else None,
            _held(reading.session, profile_id),
        )  # fmt: skip


def _plain(value: Any) -> Any:
    return _exact(_encode(value))


def _members(session: psycopg.Connection[Any], profile_id: UUID | None) -> frozenset[int] | None:
    if profile_id is None:
        return None
    return frozenset(
        row[0] for row in session.execute("SELECT id FROM cdp_identifier WHERE profile_id = %s", [profile_id])
    )


def _held(session: psycopg.Connection[Any], profile_id: UUID | None) -> dict[str, Any] | None:
    if profile_id is None:
        return None
    row = session.execute(
        "SELECT traits::text, computed_traits::text, consent::text FROM customer_profiles WHERE id = %s", [profile_id]
    ).fetchone()
    return dict(zip(("traits", "computed_traits", "consent"), map(_exact, row), strict=True)) if row else None
