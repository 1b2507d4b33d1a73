"""`manage.py replay --repair`: writes what events say where PostgreSQL says otherwise.

As `cdp.replay.verify` it reads everything in one snapshot, in passes over ranges of anchors. What differs is written in
small transactions that take their locks as processing does, and only where the people have not changed since the
snapshot: their versions tell. The others are read again in a snapshot of their own, a few times, and who is busy all
the time under the lock of their profiles. So it may run beside processors; it may be killed at any time, and then the
next one finds less. Nothing is written while an erasure is unfinished, nor what was read before one was asked for: it
may be of whom that erased. The states of identifiers that are older than the history are never touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import msgspec
import psycopg
from django.db import connection, transaction

from cdp import config, history, lookup, repair_accounts, showing, unmerging
from cdp.processing import graph, registers, store, suppression
from cdp.processing.identity import Identifier
from cdp.processing.people import Delta, Person
from cdp.processing.pipeline import Applied, Pipeline
from cdp.processing.presenting import document_of, row_of
from cdp.processing.resolving import new_profile_id
from cdp.processing.rules import Rules
from cdp.processing.shadow import Pair
from cdp.replay import EXAMPLES, IDENTIFIERS_PER_PASS, Advance, Comparison, Report, Suspects, without_collection
from martech.lib import clock
from martech.lib.errors import RetryableError

EVERYBODY = (-1, 2**63 - 1)
# How often what changed meanwhile is read anew before it is read under a lock.
ROUNDS = 3
RACES = 5
# Profiles, links and people in one transaction, and of either under a lock while their events are read.
PROFILES, LINKS, PEOPLE, LOCKED = 100, 500, 20, 20
# "repair" in ASCII.
LOCK = 0x726570616972
REASON = "replay"
# What is written, in the order in which it is told.
WRITTEN = ("identifiers", "profiles", "links", "people", "accounts")

One = TypeVar("One")
_decode = msgspec.json.decode
# A foreign key fails where somebody was erased meanwhile.
BUSY = (store.Raced, psycopg.errors.DeadlockDetected, psycopg.errors.ForeignKeyViolation)


class Underway(RetryableError):
    """Another process repairs."""

    code = "repair_underway"


class Erasing(RetryableError):
    """An erasure is unfinished."""

    code = "erasure_unfinished"


@dataclass(slots=True)
class Repaired:
    """What was found, written and left: `written` and `left` count by kind, `rounds` how often more was read."""

    report: Report
    written: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    rounds: int = 0

    def document(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        written = {kind: self.written[kind] for kind in WRITTEN}
        return {**self.report.document(), "written": written, "left": dict(self.left), "rounds": self.rounds}


@dataclass(slots=True)
class Work:
    """What is to be done again.

    Anchors by row id, profiles to be combined again, pairs of identifiers, people to be made anew, accounts by group.
    """

    identifiers: set[int] = field(default_factory=set)
    profiles: set[UUID] = field(default_factory=set)
    links: set[Pair] = field(default_factory=set)
    people: set[UUID] = field(default_factory=set)
    accounts: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return any(getattr(self, kind) for kind in WRITTEN)

    def parts(self, size: int) -> Iterator[Work]:
        """Return it in parts of so many of a kind."""
        for kind in WRITTEN:
            for some in _some(sorted(getattr(self, kind)), size):
                yield Work(**{kind: set(some)})

    def counts(self) -> Counter[str]:
        """Return how many there are of each kind."""
        return Counter({kind: found for kind in WRITTEN if (found := len(getattr(self, kind)))})


class Seen(NamedTuple):
    """An identifier as a snapshot has it, with the version of its profile."""

    id: int
    profile: UUID
    version: int


def repair(
    *,
    per_pass: int = IDENTIFIERS_PER_PASS,
    most: int = EXAMPLES,
    advance: Advance = lambda events: None,
    told: Advance = lambda written: None,
) -> Repaired:
    """Write what events say where PostgreSQL says otherwise; Underway where another process does.

    Erasing while a person's erasure is unfinished; of one that is asked for meanwhile, all from then on is `left`.
    `advance` hears how many events were read, `told` how many rows were written.
    """
    with _alone(), without_collection():
        _refuse_beside_erasures()
        mender = _Mender(told)
        with history.snapshot() as reading:
            done = Repaired(Report(most=most, history_starts=history.starts(reading)), mender.written)
            comparison = Comparison(reading, done.report)
            _everything(mender, comparison, per_pass, advance)
            done.left.update(_beyond_repair(comparison.suspects))
        left = mender.take()
        while left and done.rounds < ROUNDS and not _unfinished():
            done.rounds += 1
            _again(mender, left, per_pass, advance)
            left = mender.take()
        done.left.update(_at_last(mender, left, per_pass, advance))
        if done.left and (unfinished := _unfinished()):
            done.left["unfinished erasures"] = unfinished
        return done


def _refuse_beside_erasures() -> None:
    """Fail before anything is read where nothing could be written."""
    if number := _unfinished():
        raise Erasing(
            f"{number} erasures are unfinished, and what is read now may be of whom they erase. Let a worker end "
            "them, then repair.",
            retry_after=60,
        )


def _unfinished() -> int:
    return _erasures(_driver())[1]


@contextmanager
def _alone() -> Iterator[None]:
    """Keep other repairs off; Underway."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [LOCK])
        if not cursor.fetchone()[0]:
            raise Underway("Another process repairs. Wait until it is done.", retry_after=60)
    try:
        yield
    finally:
        if connection.connection is not None and not connection.connection.broken:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])


def _everything(mender: _Mender, comparison: Comparison, per_pass: int, advance: Advance) -> None:
    mender.begin(comparison)
    for low, high in history.ranges(comparison.reading.session, per_pass):
        comparison.one_pass(low, high, advance)
        mender.anchors()
    comparison.people()
    comparison.profiles()
    comparison.accounts()
    found = comparison.suspects
    mender.profiles(found.states)
    mender.links()
    mender.people({*found.clusters, *mender.profiles_of(found.verdicts)})
    mender.judged(found.verdicts)
    mender.accounts()


def _beyond_repair(found: Suspects) -> Counter[str]:
    """Return what only a person can decide on: whom events name no more, and events of nobody."""
    left = Counter({"events of nobody": len(found.strays), "superfluous identifiers": len(found.superfluous)})
    return +left


def _again(mender: _Mender, work: Work, per_pass: int, advance: Advance) -> None:
    """Do again what changed meanwhile, from a fresh snapshot."""
    with history.snapshot() as reading:
        comparison = _comparison(reading)
        mender.begin(comparison)
        ends = _seen(reading.session, set(chain(*work.links)))
        if members := frozenset(work.identifiers.union(one.id for one in ends.values())):
            comparison.one_pass(*EVERYBODY, advance, members)
            comparison.suspects.anchors &= work.identifiers
            mender.anchors()
            comparison.links(work.links)
            mender.links()
        mender.profiles(work.profiles)
        mender.people(work.people)
        if work.accounts:
            comparison = _comparison(reading)
            comparison.group_calls(advance, per_pass)
            comparison.accounts()
            comparison.suspects.accounts &= work.accounts
            mender.begin(comparison)
            mender.accounts()


def _comparison(reading: history.Reading) -> Comparison:
    return Comparison(reading, Report(most=0, history_starts=history.starts(reading)))


def _at_last(mender: _Mender, work: Work, per_pass: int, advance: Advance) -> Counter[str]:
    """Do again what is busy all the time, and return what is left all the same."""
    if _unfinished():
        return work.counts()
    # Group calls are read of all anchors: too long to keep others off an account.
    busy = Work(accounts=work.accounts)
    if busy:
        _again(mender, busy, per_pass, advance)
    left = mender.take().counts()
    for part in replace(work, accounts=set()).parts(LOCKED):
        left.update(_under_lock(mender, part, per_pass, advance).counts())
    return left


def _under_lock(mender: _Mender, work: Work, per_pass: int, advance: Advance) -> Work:
    """Do again what is busy all the time, while nobody can change it; return what is left all the same."""
    for _ in range(RACES):
        try:
            with transaction.atomic():
                _hold_all(_driver(), work)
                _again(mender, work, per_pass, advance)
            return mender.take()
        except BUSY:
            mender.take()
    return work


def _hold_all(driver: store.Connection, work: Work) -> None:
    store.hold_rules(driver)
    ends = set(chain(*work.links))
    if held := _profiles(driver, work.identifiers, ends):
        _hold(driver, held)
        if held != _profiles(driver, work.identifiers, ends):
            raise store.Raced("An identifier has moved to another profile.")


class _Mender:
    """Writes what a comparison found; `raced` is what others changed meanwhile."""

    def __init__(self, told: Advance) -> None:
        self.written: Counter[str] = Counter()
        self.raced = Work()
        self.rules: Rules
        self._told = told
        self._pipeline = Pipeline()
        self._key = config.load().privacy_key
        self._comparison: Comparison
        # By how much we raised the versions of profiles ourselves since the snapshot.
        self._raised: Counter[UUID] = Counter()

    def begin(self, comparison: Comparison) -> None:
        """Mend what this comparison finds from now on."""
        self._comparison, self.rules, self._raised = comparison, comparison.reading.rules, Counter()
        self._basis = _basis(comparison.reading.session)

    def take(self) -> Work:
        """Return what others changed meanwhile, and forget it."""
        raced, self.raced = self.raced, Work()
        return raced

    def anchors(self) -> None:
        """Write the states of the anchors that differ, and the profiles that they are of."""
        session, found = self._comparison.reading.session, self._comparison.suspects.anchors
        seen = dict(_seen_anchors(session, found))
        by_profile: dict[UUID, list[int]] = {}
        for row_id, one in seen.items():
            by_profile.setdefault(one.profile, []).append(row_id)
        for some in _some(sorted(by_profile), PROFILES):
            ids = [row_id for profile in some for row_id in by_profile[profile]]
            done = self._commit(partial(self._write_anchors, seen={one: seen[one] for one in ids}))
            self.raced.identifiers.update(set(ids).difference(done or ()))

    def _write_anchors(self, driver: store.Connection, seen: Mapping[int, Seen]) -> list[int]:
        people = store.lock_people(driver, {one.profile for one in seen.values()})
        same = [row_id for row_id, one in seen.items() if self._is_as_seen(people.get(one.profile), one)]
        known, deltas = self.rules.folder.kinds, self._comparison.shadow.deltas
        after = {}
        for row_id, (_, states) in store.anchor_states(driver, same).items():
            delta = deltas.get(row_id) or Delta()
            # What a definition that is gone, or off, counted is nobody's to say.
            kept = {key: state for key, state in states.items() if key not in known}
            after[row_id] = Delta(delta.registers, kept | delta.states)
        if after:
            store.update_anchors(driver, after)
            self._combine(driver, {seen[row_id].profile: people[seen[row_id].profile] for row_id in after})
            self._told_on_commit("identifiers", len(after))
        return same

    def _is_as_seen(self, person: Person | None, seen: Seen) -> bool:
        return person is not None and person.version == seen.version + self._raised[seen.profile]

    def _combine(self, driver: store.Connection, people: Mapping[UUID, Person]) -> None:
        """Let locked people be the combination of their identifiers, and show them once that is committed."""
        for person in people.values():
            person.graph, person.registers, person.states = {}, {}, {}
            person.version += 1
        for profile, namespace, value, held, states in driver.execute(
            "SELECT profile_id, namespace, value, registers::text, trait_states::text FROM cdp_identifier"
            " WHERE profile_id = ANY(%s) ORDER BY id",
            [list(people)],
        ):
            person = people[profile]
            person.graph.setdefault(namespace, []).append(value)
            person.registers = registers.combine(person.registers, registers.load(held))
            person.states = self.rules.folder.combine(person.states, _decode(states))
        now_us = store.database_now_us(driver)
        rows = [row_of(person, self.rules.folder, now_us) for person in people.values()]
        store.update_people(driver, rows, clock.from_us(now_us).isoformat())
        self._show(Applied(documents=[document_of(row, now_us) for row in rows]))
        transaction.on_commit(lambda: self._raised.update(people.keys()))
        self._told_on_commit("profiles", len(rows))

    def _show(self, applied: Applied) -> None:
        transaction.on_commit(partial(showing.show, applied), robust=True)

    def profiles(self, profiles: Collection[UUID]) -> None:
        """Let profiles be what their identifiers say."""
        for some in _some(sorted(profiles), PROFILES):
            if self._commit(partial(self._write_profiles, profiles=some)) is None:
                self.raced.profiles.update(some)

    def _write_profiles(self, driver: store.Connection, profiles: Sequence[UUID]) -> bool:
        living = driver.execute(
            "SELECT id FROM customer_profiles WHERE id = ANY(%s) AND merged_into_id IS NULL", [list(profiles)]
        ).fetchall()
        people = store.lock_people(driver, {row[0] for row in living})
        if people:
            self._combine(driver, people)
        return True

    def links(self) -> None:
        """Keep the evidence that events give and no other, with the identifiers that it needs, and judge by it."""
        session, found = self._comparison.reading.session, self._comparison.suspects.links
        for some in _some(sorted(found), LINKS):
            seen = _seen(session, set(chain(*some)))
            done = self._commit(partial(self._write_links, pairs=some, seen=seen))
            self.raced.links.update(set(some).difference(done or ()))

    def _write_links(
        self, driver: store.Connection, pairs: Sequence[Pair], seen: Mapping[Identifier, Seen]
    ) -> Collection[Pair]:
        ends = set(chain(*pairs))
        people = _hold(driver, _profiles(driver, (), ends))
        held = store.find_identifiers(driver, ends)
        same = {one for one in ends if self._end_is_as_seen(seen.get(one), held.get(one), people)}
        mine = {pair: self._comparison.suspects.links[pair] for pair in pairs if same.issuperset(pair)}
        wanted = [link for link in mine.values() if link is not None]
        # Whoever was just erased is no longer known, and stays so.
        missing = {one for link in wanted for one in link.pair} - held.keys()
        erased = suppression.suppressed(driver, self._key, missing)
        wanted = [link for link in wanted if erased.isdisjoint(link.pair)]
        ids = {one: row[0] for one, row in held.items()} | self._make(driver, missing - erased)
        graph.write_links(driver, wanted, ids, self.rules.identity.version)
        gone = [pair for pair, link in mine.items() if link is None]
        _delete_links(driver, gone, ids)
        self._told_on_commit("links", len(wanted) + len(gone))
        profiles = _profiles(driver, (), {one for pair in mine for one in pair})
        if profiles:
            self._look_at(driver, profiles)
        return mine.keys()

    def _end_is_as_seen(
        self, seen: Seen | None, held: tuple[int, UUID, bool] | None, people: Mapping[UUID, Person]
    ) -> bool:
        if seen is None or held is None:
            return seen is None and held is None
        return seen.profile == held[1] and self._is_as_seen(people.get(held[1]), seen)

    def _make(self, driver: store.Connection, missing: Collection[Identifier]) -> dict[Identifier, int]:
        """Make identifiers that events name, each with a profile of its own: the links say whose they are."""
        if not missing:
            return {}
        now_us = store.database_now_us(driver)
        now = clock.from_us(now_us).isoformat()
        people = {
            one: Person(new_profile_id(now_us), now_us, 1, {one.namespace: [one.value]}) for one in sorted(missing)
        }
        store.insert_people(driver, people.values(), now)
        store.update_people(driver, [row_of(person, self.rules.folder, now_us) for person in people.values()], now)
        made = graph.insert_identifiers(driver, [(one, person.id) for one, person in people.items()], now)
        self._told_on_commit("identifiers", len(made))
        return made

    def _look_at(self, driver: store.Connection, profiles: Sequence[UUID]) -> None:
        """Make the people anew that hang together with these, and tell who has to know."""
        applied = self._pipeline.look_at_all(driver, profiles, reason=REASON)
        unmerging.tell(applied)
        self._show(applied)
        # Each by one, under the lock of it.
        raised = [one for one, _, _ in applied.documents]
        transaction.on_commit(lambda: self._raised.update(raised))
        self._told_on_commit("people", len(applied.documents) + len(applied.merged))

    def people(self, profiles: Collection[UUID]) -> None:
        """Make people anew by the links that are held."""
        for some in _some(sorted(profiles), PEOPLE):
            if self._commit(partial(self._make_anew, profiles=some)) is None:
                self.raced.people.update(some)

    def _make_anew(self, driver: store.Connection, profiles: Sequence[UUID]) -> bool:
        living = sorted({found for one in profiles if (found := lookup.survivor(one))})
        if living:
            self._look_at(driver, living)
        return True

    def judged(self, pairs: Collection[Pair]) -> None:
        """Count the links whose verdicts were among what was just made anew."""
        self.tell("links", sum(self.raced.people.isdisjoint(self.profiles_of([pair])) for pair in pairs))

    def profiles_of(self, pairs: Iterable[Pair]) -> list[UUID]:
        """Return the profiles that hold the ends of pairs."""
        return _profiles(_driver(), (), set(chain(*pairs)))

    def accounts(self) -> None:
        """Let the accounts that differ be what group calls say."""
        session, found = self._comparison.reading.session, self._comparison.suspects.accounts
        built = repair_accounts.Built(self._comparison.shadow.accounts, self._comparison.erased_at)
        for some in _some(sorted(found), PROFILES):
            seen = repair_accounts.seen(session, some, built)
            done = self._commit(partial(self._write_accounts, groups=some, built=built, seen=seen))
            self.raced.accounts.update(set(some).difference(done or ()))

    def _write_accounts(
        self, driver: store.Connection, groups: Sequence[str], built: repair_accounts.Built, seen: repair_accounts.Seen
    ) -> list[str]:
        same = repair_accounts.write(driver, groups, built, seen)
        self._told_on_commit("accounts", len(same))
        return same

    def _commit(self, change: Callable[[store.Connection], Any]) -> Any:
        """Do this in a transaction, and return what it returns; None where others are always in the way."""
        for _ in range(RACES):
            try:
                with transaction.atomic():
                    driver = _driver()
                    store.hold_rules(driver)
                    if self._basis.unfinished or _basis(driver) != self._basis:
                        return None
                    return change(driver)
            except BUSY:
                continue
        return None

    def tell(self, kind: str, number: int) -> None:
        """Count what was written."""
        if number:
            self.written[kind] += number
            self._told(number)

    def _told_on_commit(self, kind: str, number: int) -> None:
        # What is rolled back was not written.
        transaction.on_commit(lambda: self.tell(kind, number))


def _driver() -> store.Connection:
    connection.ensure_connection()
    driver: store.Connection = connection.connection
    return driver


class _Basis(NamedTuple):
    """What is written rests on: all that states are made by, and how many erasures were asked for and not done."""

    definitions: tuple[Any, ...]
    erasures: int
    unfinished: int


def _basis(driver: store.Connection) -> _Basis:
    # The version of the definitions alone rises too where people merely become blocked.
    definitions = (
        store.definitions(driver), store.merge_policies(driver), store.sources(driver), store.identity_rules(driver),
    )  # fmt: skip
    return _Basis(definitions, *_erasures(driver))


def _erasures(driver: store.Connection) -> tuple[int, int]:
    """Return how many erasures there are, and how many of them are unfinished."""
    row = driver.execute("SELECT count(*), count(*) FILTER (WHERE status <> 'done') FROM cdp_erasure").fetchone()
    return row or (0, 0)


def _hold(driver: store.Connection, profiles: Collection[UUID]) -> dict[UUID, Person]:
    """Lock profiles in the order that processing has; whoever hangs together with them is locked when looked at."""
    if store.any_blocked(driver, profiles):
        store.change_rules(driver)
    return store.lock_people(driver, profiles) if profiles else {}


def _profiles(driver: store.Connection, anchors: Collection[int], identifiers: Collection[Identifier]) -> list[UUID]:
    """Return the profiles of anchors and of identifiers."""
    rows = driver.execute("SELECT profile_id FROM cdp_identifier WHERE id = ANY(%s)", [list(anchors)]).fetchall()
    named = store.find_identifiers(driver, identifiers) if identifiers else {}
    return sorted({row[0] for row in rows}.union(profile for _, profile, _ in named.values()))


def _seen_anchors(session: store.Connection, ids: Collection[int]) -> Iterator[tuple[int, Seen]]:
    """Return anchors as a snapshot has them."""
    rows = session.execute(
        "SELECT i.id, i.profile_id, p.version FROM cdp_identifier i JOIN customer_profiles p ON p.id = i.profile_id"
        " WHERE i.id = ANY(%s)",
        [sorted(ids)],
    )
    return ((row[0], Seen(*row)) for row in rows.fetchall())


def _seen(session: store.Connection, identifiers: Collection[Identifier]) -> dict[Identifier, Seen]:
    """Return those of the identifiers that a snapshot has."""
    found = store.find_identifiers(session, identifiers) if identifiers else {}
    ids = dict(_seen_anchors(session, [row[0] for row in found.values()]))
    return {one: ids[row[0]] for one, row in found.items()}


def _delete_links(driver: store.Connection, pairs: Sequence[Pair], ids: Mapping[Identifier, int]) -> None:
    """Forget links that no event says."""
    ordered = [sorted((ids[left], ids[right])) for left, right in pairs]
    driver.execute(
        "DELETE FROM cdp_edge USING unnest(%s::bigint[], %s::bigint[]) AS gone (one, other)"
        " WHERE left_id = gone.one AND right_id = gone.other",
        [[one for one, _ in ordered], [other for _, other in ordered]],
    )


def _some(those: Iterable[One], size: int) -> Iterator[list[One]]:
    left = iter(those)
    while some := list(islice(left, size)):
        yield some
