"""Who a batch's events belong to: finds and locks the people concerned, and brings new evidence upon them.

The usual event, whose identifiers are one person already and say so no stronger than before, costs a look-up.
New evidence on settled people can only join them. Where something was refused, or a person took people apart, the
evidence decides in canonical order: the latest is decided alone, any other makes the rules look at everything that
hangs together (`clusters.derive`).
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from cdp.processing import clusters, graph, registers, store
from cdp.processing.clusters import BLOCKING, Evidence, Link, Ruleset, Unmerge, paired
from cdp.processing.decode import Message
from cdp.processing.identity import USER_ID, Identifier
from cdp.processing.looking import Brought, Looked, look
from cdp.processing.people import BLOCKED, CONTESTED, SETTLED, Decision, Person
from cdp.processing.traits import Folder

Pair = tuple[Identifier, Identifier]


class Wider(Exception):
    """More people hang together than were locked: begin again and lock all of them, in the one order there is."""

    def __init__(self, profiles: set[uuid.UUID]) -> None:
        super().__init__(f"{len(profiles)} more profiles")
        self.profiles = profiles


class Known(NamedTuple):
    """What is remembered of an identifier: its row, its profile, and whether it stands for nobody."""

    id: int
    profile: uuid.UUID
    blocked: bool = False


class News(NamedTuple):
    """Evidence that is stronger than what is stored, or new, with the message that gave it."""

    link: Link
    message: Message
    # Nothing is stored of the two yet.
    is_first: bool = True


class Resolver:
    """The identities of one batch: `of` says whose an identifier is, `ids` which row it has."""

    def __init__(
        self,
        connection: store.Connection,
        rules: Ruleset,
        folder: Folder,
        source_class: Callable[[int], int],
        now_us: int,
    ) -> None:
        self.of: dict[Identifier, Person] = {}
        self.known: dict[Identifier, Known] = {}
        self.evidence: dict[Pair, Evidence] = {}
        self.new: list[Person] = []
        self.new_identifiers: list[Identifier] = []
        # In the order in which they were met.
        self.changed: dict[Person, None] = {}
        # What is to be written: links with their verdicts, new verdicts of stored links, identifiers that moved.
        self.links: dict[Pair, Link] = {}
        self.verdicts: dict[Pair, str] = {}
        self.moved: dict[Identifier, Person] = {}
        self.merged: list[Person] = []
        self.revived: list[Person] = []
        self.decisions: list[Decision] = []
        self.lock_seconds = 0.0
        self._connection, self._rules, self._folder = connection, rules, folder
        self._source_class, self._now_us = source_class, now_us
        self._row_ids: dict[Identifier, int] = {}
        # All profiles that are locked, by their ids.
        self._people: dict[uuid.UUID, Person] = {}

    def resolve(
        self,
        messages: Sequence[Message],
        known: Mapping[Identifier, Known],
        evidence: Mapping[Pair, Evidence],
        also: Iterable[uuid.UUID] = (),
    ) -> None:
        """Find whose each message's anchor is, after joining what the messages join.

        `known` and `evidence` are what is remembered of identifiers and pairs; `also` are profiles to lock beside
        those of the messages. Raced where another process changed who is who meanwhile, Wider where more have to be
        locked.
        """
        strongest = self._strongest(messages, evidence)
        users = {Identifier(USER_ID, one.alias_of) for one in messages if one.alias_of}
        anchors = {message.anchor for message in messages}
        self._find(anchors.union(users, *strongest), known)
        ends = {one for pair in strongest for one in pair if not self._is_blocked(one)}
        self._lock(anchors | ends | (users & self.known.keys()), also)
        news = self._news(strongest)
        for identifier in sorted(anchors.union(*strongest) - self.known.keys()):
            self._make(identifier)
        self._note_aliases(messages)
        self._bring(sorted(news.values(), key=lambda one: clusters.order(self._rules, one.link)))

    def hold(self, profiles: Iterable[uuid.UUID], also: Iterable[uuid.UUID] = ()) -> list[Person]:
        """Lock profiles and return them; `also` are profiles to lock beside them."""
        wanted = set(profiles)
        around = wanted.union(also)
        if store.any_blocked(self._connection, around):
            # Batches remember, and do not lock, who stands for nobody: those at work end first, later ones look again.
            store.change_rules(self._connection)
        people = self._locked(around)
        return [people[one] for one in wanted]

    def row_ids(self) -> dict[Identifier, int]:
        """Return the row ids of all identifiers that were found."""
        return self._row_ids | {one: held.id for one, held in self.known.items()}

    def remembered(self, carried: Iterable[Identifier], ids: Mapping[Identifier, int]) -> dict[Identifier, Known]:
        """Return what is known now of identifiers that the batch's messages carry."""
        found = {}
        for one in carried:
            person = self.of.get(one)
            if person is not None:
                root = person.root()
                found[one] = Known(ids[one], root.id, root.standing == BLOCKED)
            elif one in self.known:
                found[one] = self.known[one]
        return found

    def elsewhere(self) -> Iterable[tuple[Identifier, uuid.UUID]]:
        """Return the identifiers that merges and splits moved, with their profiles now."""
        merged = {one: person.root().id for person in self.merged for one in person.identifiers()}
        return (merged | {one: person.id for one, person in self.moved.items()}).items()

    def _strongest(
        self, messages: Sequence[Message], evidence: Mapping[Pair, Evidence]
    ) -> dict[Pair, tuple[Evidence, Message]]:
        """Return by pair the batch's strongest evidence, where it is stronger than what is remembered."""
        found: dict[Pair, tuple[Evidence, Message]] = {}
        for message in messages:
            if len(message.identifiers) == 1:
                continue
            given = self._evidence_of(message)
            for other in message.identifiers:
                if other == message.anchor:
                    continue
                pair = paired(message.anchor, other)
                held = found[pair][0] if pair in found else evidence.get(pair)
                if held is None or given < held:
                    found[pair] = (given, message)
        return found

    def _evidence_of(self, message: Message) -> Evidence:
        """Return what a message's evidence is ordered by: of public sources by receipt, which nobody can backdate."""
        source_class = self._source_class(message.source_id)
        at_us = message.received_us if source_class else min(message.occurred_us, message.received_us)
        return Evidence(source_class, at_us, message.message_id)

    def _find(self, wanted: set[Identifier], known: Mapping[Identifier, Known]) -> None:
        self.known = {one: known[one] for one in wanted if one in known}
        missing = wanted - self.known.keys()
        if missing:
            self.known |= {one: Known(*row) for one, row in store.find_identifiers(self._connection, missing).items()}

    def _news(self, strongest: Mapping[Pair, tuple[Evidence, Message]]) -> dict[Pair, News]:
        """Leave out what is no stronger than what is stored."""
        both = [pair for pair in strongest if pair[0] in self.known and pair[1] in self.known]
        ids = {(self.known[left].id, self.known[right].id): (left, right) for left, right in both}
        stored = graph.stored_evidence(self._connection, ids) if ids else {}
        news = {}
        for pair, (given, message) in strongest.items():
            held = stored.get(pair)
            if held is not None and held <= given:
                self.evidence[pair] = held
            else:
                self.evidence[pair] = given
                news[pair] = News(Link(*pair, given, message.source_id), message, is_first=held is None)
        return news

    def _is_blocked(self, identifier: Identifier) -> bool:
        held = self.known.get(identifier)
        return held is not None and held.blocked

    def _lock(self, identifiers: Iterable[Identifier], also: Iterable[uuid.UUID]) -> None:
        """Lock the profiles of those identifiers that exist, and others."""
        found = {one: self.known[one] for one in identifiers if one in self.known}
        self._locked({one.profile for one in found.values()}.union(also))
        for identifier, held in found.items():
            person = self._people.get(held.profile)
            if person is None or not person.holds(identifier):
                raise store.Raced("An identifier has moved to another profile.")
            self.of[identifier] = person

    def _locked(self, profiles: set[uuid.UUID]) -> dict[uuid.UUID, Person]:
        if not profiles:
            return {}
        waiting = time.monotonic()
        people = store.lock_people(self._connection, profiles)
        self.lock_seconds += time.monotonic() - waiting
        self._people |= people
        return people

    def _make(self, identifier: Identifier) -> None:
        """Make a profile for an identifier that nobody has yet."""
        person = self.of[identifier] = self._new_person()
        person.graph[identifier.namespace] = [identifier.value]
        if self._rules.blocks(identifier):
            person.standing = BLOCKED
        self.new_identifiers.append(identifier)

    def _new_person(self) -> Person:
        person = Person(new_profile_id(self._now_us), self._now_us, is_new=True)
        self.new.append(person)
        self._people[person.id] = person
        self.changed[person] = None
        return person

    def _note_aliases(self, messages: Sequence[Message]) -> None:
        """Note where an alias names a known user: two identified people are never joined by it."""
        for message in messages:
            user = Identifier(USER_ID, message.alias_of)
            if message.alias_of and user in self.of and user != message.anchor:
                self.decisions.append(
                    Decision("refusal", "two_identified_people", self.of[message.anchor], self.of[user],
                             [message.anchor, user], self._evidence_of(message).at_us, message.source_id,
                             message.message_id)
                )  # fmt: skip

    def _bring(self, news: Sequence[News]) -> None:
        """Bring evidence in canonical order upon the people."""
        hard = [one for one in news if not self._bring_easily(one)]
        if hard and not self._bring_late(hard):
            self.look_at_all({self._root(one) for news in hard for one in news.link.pair}, "late_evidence", news=hard)

    def _root(self, identifier: Identifier) -> Person:
        return self.of[identifier].root()

    def _bring_easily(self, news: News) -> bool:
        """Join settled people, note what concerns a blocked identifier; False where the rules must look closer."""
        link = news.link
        if any(self._is_blocked(one) or self._root(one).standing == BLOCKED for one in link.pair):
            self.links[link.pair] = link._replace(refused=self._why_blocked(link))
            return True
        person, other = (self._root(one) for one in link.pair)
        if person.standing != SETTLED or other.standing != SETTLED:
            return False
        if person is not other:
            if self._rules.exceeded(person.graph, other.graph):
                return False
            self._merge(person, other, news)
        self.links[link.pair] = link
        return True

    def _why_blocked(self, link: Link) -> str:
        return clusters.BLOCKED_VALUE if any(map(self._rules.blocks, link.pair)) else clusters.SHARED

    def _merge(self, one: Person, other: Person, news: News) -> None:
        """Make the junior of two people part of the senior: everything of both sides is kept."""
        person, other = sorted((one, other), key=lambda who: who.seniority)
        for namespace, values in other.graph.items():
            person.graph.setdefault(namespace, []).extend(values)
        person.registers = registers.combine(person.registers, other.registers)
        person.states = self._folder.combine(person.states, other.states)
        person.standing = max(person.standing, other.standing)
        self._absorb(person, other)
        if not other.is_new:
            self._decide("merge", news.message.type, person, other, news.link)

    def _absorb(self, person: Person, other: Person) -> None:
        person.version += other.version
        other.merged_into = person
        self.changed[person] = None
        self.changed.pop(other, None)
        if not other.is_new:
            self.merged.append(other)

    def _decide(self, kind: str, reason: str, person: Person, other: Person, link: Link) -> None:
        self.decisions.append(
            Decision(kind, reason, person, other, list(link.pair), link.evidence.at_us, link.source_id,
                     link.evidence.message_id)
        )  # fmt: skip

    def _bring_late(self, hard: Sequence[News]) -> bool:
        """Decide evidence that is later than all it touches; False, and nothing done, where some is not."""
        people = {self._root(one) for news in hard for one in news.link.pair}
        whole = graph.load(self._connection, self._stored(people), self._rules)
        touching = {pair: one for pair, one in self.links.items() if self._concerns(pair, people)}
        before = [one for one in (whole.links | touching).values() if one.refused not in BLOCKING]
        first = clusters.order(self._rules, hard[0].link)
        if any(clusters.order(self._rules, one) > first for one in before):
            return False
        together = whole.links | touching | {one.link.pair: one.link for one in hard}
        if not clusters.shared(together.values(), self._rules) <= whole.blocked.keys() | self._blocked_of(together):
            return False
        for news in hard:
            self._bring_last(news, whole.unmerges)
        return True

    def _blocked_of(self, links: Iterable[Pair]) -> set[Identifier]:
        return {one for pair in links for one in pair if one in self.known and self.known[one].blocked}

    def _stored(self, people: Iterable[Person]) -> list[uuid.UUID]:
        """Return the profiles that are these people, as PostgreSQL knows them."""
        wanted = set(people)
        return [key for key, one in self._people.items() if not one.is_new and one.root() in wanted]

    def _bring_last(self, news: News, unmerges: Sequence[Unmerge]) -> None:
        link = news.link
        person, other = (self._root(one) for one in link.pair)
        why = ""
        if person is not other:
            why = clusters.forbidden(self._rules, (person.graph, other.graph), _sides(unmerges, person, other))
            if why:
                self._contest(person, other)
                if news.is_first:
                    self._decide("refusal", why, person, other, link)
            else:
                self._merge(person, other, news)
        self.links[link.pair] = link._replace(refused=why)

    def _contest(self, *people: Person) -> None:
        for one in people:
            one.standing = CONTESTED
            self.changed[one] = None

    def look_at_all(
        self,
        people: Iterable[Person],
        reason: str,
        *,
        author: str = "",
        news: Sequence[News] = (),
        still: Mapping[Identifier, str] | None = None,
        leaving: frozenset[Identifier] = frozenset(),
    ) -> None:
        """Make the clusters anew of these people and of everyone whom that sways; Wider where some are not locked.

        `still` is as in `graph.load`. `leaving` are identifiers without links, each of which gets a profile of its own.

        Who splits off gets the profile back that it had first, or a new one; who stays keeps theirs.
        """
        brought = Brought(
            {one: self._root(one).id for one in self.new_identifiers},
            self.links | {one.link.pair: one.link for one in news},
        )
        whole = graph.Whole()
        looked = look(
            whole,
            {one.id for one in people},
            lambda some: graph.load(self._connection, self._stored_as(some), self._rules, still, whole),
            self._rules,
            brought=brought,
            root=lambda profile: self._people[profile].root().id if profile in self._people else profile,
        )
        if unlocked := whole.inside - self._people.keys():
            # Locks are taken in one order only, or processes would block each other.
            raise Wider(unlocked)
        held = _Split(whole, looked, {one.root().id: one.root() for one in self._people.values()})
        self._row_ids |= whole.ids
        self._note_verdicts(held, looked.links, {one.link.pair: one for one in news})
        self._give_out(held, reason, author, leaving)

    def _concerns(self, pair: Pair, people: set[Person]) -> bool:
        return any(one in self.of and self._root(one) in people for one in pair)

    def _stored_as(self, profiles: Iterable[uuid.UUID]) -> list[uuid.UUID]:
        """Return the profiles that these have become part of, as PostgreSQL knows them."""
        wanted = set(profiles)
        mine = [key for key, one in self._people.items() if not one.is_new and one.root().id in wanted]
        return mine + [one for one in wanted if one not in self._people]

    def _note_verdicts(self, held: _Split, links: Mapping[Pair, Link], news: Mapping[Pair, News]) -> None:
        """Note what became of each link: new ones with it, stored ones where it changed."""
        for pair, link in links.items():
            why = held.found.refused[pair]
            if pair in news or pair in self.links:
                self.links[pair] = link._replace(refused=why)
            elif why != link.refused:
                self.verdicts[pair] = why
            fresh = news[pair].is_first if pair in news else why != link.refused
            if why and fresh and why not in BLOCKING and all(one in held.of for one in pair):
                self._decide("refusal", why, held.of[pair[0]], held.of[pair[1]], link)

    def _give_out(self, held: _Split, reason: str, author: str, leaving: frozenset[Identifier]) -> None:
        """Give each cluster its profile: who was there before keeps it, who leaves gets their first one back."""
        contested = held.found.contested(held.whole.unmerges)
        taken: dict[Person, set[Identifier]] = {}
        for cluster in sorted(held.mine(), key=lambda one: self._rank(held, one)):
            person = self._new_person() if cluster <= leaving else self._claim(held, cluster, taken)
            taken[person] = cluster
            why = held.found.blocked.get(next(iter(cluster)), "")
            if why and person.standing != BLOCKED:
                # One for all that it is kept apart from.
                self.decisions.append(
                    Decision("refusal", why, person, None, list(cluster), self._now_us, author=author)
                )
            self._settle(held, person, cluster, BLOCKED if why else CONTESTED if cluster & contested else SETTLED)
        of = {one: person for person, cluster in taken.items() for one in cluster}
        self._note_moves(held, taken, of, reason, author)
        self.of |= of

    def _rank(self, held: _Split, cluster: set[Identifier]) -> tuple[int, int, Identifier]:
        """Return what says which cluster chooses first: the identified before the anonymous, then the older."""
        return min((self._rules[one.namespace].priority, held.row_id(one), one) for one in cluster)

    def _claim(self, held: _Split, cluster: set[Identifier], taken: Mapping[Person, object]) -> Person:
        """Return the profile of a cluster: one its identifiers have now, or had first, or a new one."""
        now = {held.of[one] for one in cluster if one in held.of}
        free = [one for one in now if one not in taken]
        if free:
            return min(free, key=lambda one: one.seniority)
        origins = [row.origin for one in sorted(cluster) if (row := held.whole.rows.get(one)) and row.origin]
        for origin in dict.fromkeys(origins):
            person = self._given_back(origin)
            if person is not None and person not in taken:
                return person
        return self._new_person()

    def _given_back(self, origin: uuid.UUID) -> Person | None:
        """Return a profile that was merged as one of its own again."""
        person = self._people.get(origin)
        if person is None:
            person = graph.lock_merged(self._connection, [origin]).get(origin)
            if person is None:
                return None
            self._people[origin] = person
            self.revived.append(person)
        elif person.merged_into is not None:
            # This batch merged it, and takes that back.
            person.merged_into = None
            self.merged = [one for one in self.merged if one is not person]
        else:
            return None
        return person

    def _settle(self, held: _Split, person: Person, cluster: set[Identifier], standing: int) -> None:
        """Let a person be exactly these identifiers, with the state that these have built."""
        before = held.had.get(person, set())
        if cluster == before and person.standing == standing:
            return
        self.changed[person] = None
        person.standing = standing
        if cluster != before:
            person.graph = {}
            for one in sorted(cluster, key=lambda one: (held.row_id(one), one)):
                person.graph.setdefault(one.namespace, []).append(one.value)
            self._combine(held, person, cluster)

    def _combine(self, held: _Split, person: Person, cluster: set[Identifier]) -> None:
        ids = [held.whole.rows[one].id for one in cluster if one in held.whole.rows]
        person.registers, person.states = {}, {}
        for held_registers, states in store.anchor_states(self._connection, ids).values():
            person.registers = registers.combine(person.registers, held_registers)
            person.states = self._folder.combine(person.states, states)

    def _note_moves(
        self, held: _Split, taken: Mapping[Person, set[Identifier]], of: Mapping[Identifier, Person], reason: str,
        author: str,
    ) -> None:  # fmt: skip
        for person, had in held.had.items():
            identifiers = sorted(had)
            if person not in taken:
                heir = of[
                    min(identifiers, key=lambda one: (self._rules[one.namespace].priority, held.row_id(one), one))
                ]
                self._absorb(heir, person)
                if not person.is_new:
                    self.decisions.append(
                        Decision("merge", reason, heir, person, identifiers, self._now_us, author=author)
                    )
                continue
            for other in dict.fromkeys(of[one] for one in identifiers if of[one] is not person):
                gone = [one for one in identifiers if of[one] is other]
                if not person.is_new:
                    self.decisions.append(Decision("split", reason, person, other, gone, self._now_us, author=author))
        for one, row in held.whole.rows.items():
            if of[one].id != row.profile:
                self.moved[one] = of[one]


class _Split:
    """What the rules made of some people: `of` says who an identifier was before, `had` what somebody was."""

    def __init__(self, whole: graph.Whole, looked: Looked, people: Mapping[uuid.UUID, Person]) -> None:
        self.whole, self.found = whole, looked.found
        self.had = {people[profile]: identifiers for profile, identifiers in looked.had.items()}
        self.of = {one: person for person, identifiers in self.had.items() for one in identifiers}

    def mine(self) -> list[set[Identifier]]:
        """The clusters, without blocked identifiers of others, stored or new in this batch."""
        return [one for one in self.found.clusters if not one.isdisjoint(self.of)]

    def row_id(self, identifier: Identifier) -> int:
        """The row's id; of a new one more than any."""
        row = self.whole.rows.get(identifier)
        return row.id if row else sys.maxsize


def _sides(unmerges: Sequence[Unmerge], *people: Person) -> tuple[dict[int, int], ...]:
    """Return for each person the sides of unmerges that they are on."""
    return tuple(
        {one.id: side for one in unmerges for identifier, side in one.sides.items() if person.holds(identifier)}
        for person in people
    )


def new_profile_id(now_us: int) -> uuid.UUID:
    """Return a UUID of version 7: random, but ordered by time, so that new rows share index pages."""
    random = uuid.uuid4().int
    return uuid.UUID(int=(now_us // 1000 & (1 << 48) - 1) << 80 | 7 << 76 | random & ((1 << 76) - 1))
