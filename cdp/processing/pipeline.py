"""The one way in: a batch of messages becomes event rows and their effect, in one transaction.

    decode → duplicates → identity → registers and traits → store

`apply` is called inside a transaction by an engine (with positions of the log), and by whoever needs an
answer or a joint commit (without). It knows no Django.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import psycopg

from cdp import config
from cdp.log.base import Delivery, Event
from cdp.processing import account_store, accounts, duplicates, graph, registers, store, suppression
from cdp.processing.clusters import Evidence, Ruleset
from cdp.processing.decode import MAX_EVENT_BYTES, Message, Rejection, decode
from cdp.processing.failures import Failures, Halted
from cdp.processing.folding import fold_account, fold_person
from cdp.processing.identity import NOBODY, Identifier, anchor_of
from cdp.processing.people import Delta, Person
from cdp.processing.presenting import document_of, row_of
from cdp.processing.resolving import Known, Pair, Resolver, Wider, new_profile_id
from cdp.processing.rules import UNKNOWN_SOURCE, Rules, Trust
from martech.lib import clock
from martech.lib.errors import ConfigurationError

_pack = msgspec.msgpack.Encoder().encode
# Identifiers whose profile is remembered between batches: about 200 bytes each.
REMEMBERED = 500_000
# What a batch says of all its events is kept with each dead letter of it up to this size.
MAX_KEPT_BATCH_BYTES = MAX_EVENT_BYTES
# The flag of an event whose message id came before with another payload.
REUSED = "reused_message_id"


class Arrival(NamedTuple):
    """One event on its way in: as it came, and what decoding made of it."""

    event: Event
    delivery: Delivery
    decoded: Message | Rejection
    log_partition: int | None = None
    log_position: str | None = None


@dataclass(slots=True)
class Applied:
    """What a batch did, for whoever called: nothing of it counts before the transaction commits."""

    events: int = 0
    duplicates: int = 0
    reused: int = 0
    suppressed: int = 0
    lock_seconds: float = 0.0
    rejections: dict[str, int] = field(default_factory=dict)
    documents: list[tuple[uuid.UUID, int, bytes]] = field(default_factory=list)
    identifiers: dict[Identifier, Known] = field(default_factory=dict)
    evidence: dict[Pair, Evidence] = field(default_factory=dict)
    moved: list[tuple[Identifier, uuid.UUID]] = field(default_factory=list)
    splits: int = 0
    # Profiles that became part of others, with the versions of what is left of them.
    merged: list[tuple[uuid.UUID, int]] = field(default_factory=list)

    def add(self, other: Applied) -> None:
        """Take in what a part of the batch did."""
        self.events += other.events
        self.duplicates += other.duplicates
        self.reused += other.reused
        self.suppressed += other.suppressed
        self.lock_seconds += other.lock_seconds
        for reason, count in other.rejections.items():
            self.rejections[reason] = self.rejections.get(reason, 0) + count
        self.documents += other.documents
        self.identifiers |= other.identifiers
        self.evidence |= other.evidence
        self.splits += other.splits
        self.moved += other.moved
        self.merged += other.merged


def arrive(
    event: Event,
    delivery: Delivery,
    partition: int | None = None,
    position: str | None = None,
    *,
    max_bytes: int = MAX_EVENT_BYTES,
) -> Arrival:
    """Decode an event that came in; one of more than `max_bytes` will be put aside."""
    return Arrival(event, delivery, decode(event, delivery, max_bytes=max_bytes), partition, position)


def again(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Return the arrivals as they were before a batch that was rolled back resolved them."""
    return [
        one
        if isinstance(one.decoded, Rejection)
        # Whatever its size was measured by, it has passed.
        else arrive(one.event, one.delivery, one.log_partition, one.log_position, max_bytes=sys.maxsize)
        for one in arrivals
    ]


class Pipeline:
    """Applies batches over one connection, and remembers between them who is who.

    What it remembers is checked against the locked profiles of each batch, so it may be out of date.
    `privacy_key` is the configuration's; None reads it from this process's environment.
    """

    def __init__(self, privacy_key: bytes | None = None) -> None:
        self._privacy_key = config.load().privacy_key if privacy_key is None else privacy_key
        self._keeps_out = False
        self.window = duplicates.Window()
        self.failures = Failures()
        self._rules: Rules | None = None
        self._known: dict[Identifier, Known] = {}
        self._evidence: dict[Pair, Evidence] = {}

    def remember(self, applied: Applied) -> None:
        """Keep what a committed batch found out; called after the commit."""
        self.failures.commit()
        for remembered in (self._known, self._evidence):
            if len(remembered) > REMEMBERED:
                remembered.clear()
        self._known.update(applied.identifiers)
        self._evidence.update(applied.evidence)
        # What a merge moved without naming it is looked up again.
        for identifier, _ in applied.moved:
            self._known.pop(identifier, None)

    def forget(self) -> None:
        """Drop what is remembered; called when it turned out to be out of date."""
        self._known.clear()
        self._evidence.clear()

    def apply(self, connection: store.Connection, arrivals: Sequence[Arrival]) -> Applied:
        """Write a batch's events and their effect; the caller commits.

        Where the batch as a whole cannot be written, the events at fault are found by halving it and put
        aside as dead letters; the others are written. Raced, StalePosition and operational errors are raised,
        and Halted where too many of the latest events fail by our own exceptions.
        """
        self.failures.begin(len(arrivals))
        duplicates.hold(connection)
        store.hold_rules(connection)
        now_us = store.database_now_us(connection)
        return self._halving(connection, self._current_rules(connection), arrivals, now_us)

    def look_at_all(
        self,
        connection: store.Connection,
        profiles: Sequence[uuid.UUID],
        *,
        reason: str,
        author: str = "",
        facts: Sequence[Message] = (),
        tells_splits: bool = True,
        still: Mapping[Identifier, str] | None = None,
        leaving: frozenset[Identifier] = frozenset(),
    ) -> Applied:
        """Make the clusters anew of these profiles and of everyone whom that sways; the caller commits.

        `facts` are messages to keep of it in the timeline, whose anchors are theirs; nothing is folded from them.
        `tells_splits` is false where a decision of the caller's says that somebody was split.
        `still` are the identifiers that rules block which were just changed; `leaving` those that have no links any
        more and go, each with a new profile: the others keep theirs. Raced where another process changes who
        is who meanwhile: then it is to be done again, in another transaction.
        """
        store.hold_rules(connection)
        rules, now_us = self._current_rules(connection), store.database_now_us(connection)
        also = set[uuid.UUID]()
        while True:
            batch = _Batch(connection, rules, now_us)
            try:
                with connection.transaction():
                    people = batch.resolver.hold(profiles, also)
                    batch.resolver.look_at_all(people, reason, author=author, still=still, leaving=leaving)
                    break
            except Wider as wider:
                # Begun again, so that all locks are taken in their one order.
                also |= wider.profiles
        if not tells_splits:
            batch.resolver.decisions = [one for one in batch.resolver.decisions if one.kind != "split"]
        batch.rows = [(fact, None) for fact in facts]
        for fact in facts:
            batch.touched[batch.resolver.of[fact.anchor].root()] = 1
        return batch.write()

    def _halving(self, connection: store.Connection, rules: Rules, arrivals: Sequence[Arrival], now_us: int) -> Applied:
        try:
            return self._widening(connection, rules, arrivals, now_us)
        except Exception as error:
            if not _is_of_the_data(error):
                raise
            if len(arrivals) == 1:
                reason = "poison" if _is_bad_input(error) else "processing_error"
                # A dead letter that was given back has its row: that it fails again stops nobody.
                if reason == "processing_error" and not arrivals[0].delivery.letter_id:
                    self.failures.note(error)
                poison = Rejection(reason, _described(error), _message_id(arrivals[0]))
                return self._apply(connection, rules, [arrivals[0]._replace(decoded=poison)], now_us)
            middle = len(arrivals) // 2
            applied = self._halving(connection, rules, again(arrivals[:middle]), now_us)
            applied.add(self._halving(connection, rules, again(arrivals[middle:]), now_us))
            return applied

    def _widening(
        self, connection: store.Connection, rules: Rules, arrivals: Sequence[Arrival], now_us: int
    ) -> Applied:
        """Write events, anew with more people locked where more than their own hang together."""
        also = set[uuid.UUID]()
        while True:
            try:
                with connection.transaction():
                    return self._apply(connection, rules, arrivals, now_us, also)
            except Wider as wider:
                also |= wider.profiles
                arrivals = again(arrivals)

    def _apply(
        self,
        connection: store.Connection,
        rules: Rules,
        arrivals: Sequence[Arrival],
        now_us: int,
        also: Iterable[uuid.UUID] = (),
    ) -> Applied:
        arrivals, suppressed = self._without_erased(connection, arrivals)
        passed, rejected = _judge(arrivals, rules)
        fresh = self._without_duplicates(connection, passed, now_us)
        batch = _Batch(connection, rules, now_us)
        batch.resolver.resolve(
            [message for message, _ in fresh if message.anchor != NOBODY], self._known, self._evidence, also
        )
        batch.fold(fresh)
        applied = batch.write()
        applied.suppressed = suppressed
        applied.duplicates = len(passed) - len(fresh)
        applied.reused = sum(REUSED in message.flags for message, _ in fresh)
        store.put_aside(connection, [_letter(*one) for one in rejected], batch.now)
        returned = [arrival.delivery.letter_id for _, arrival in passed if arrival.delivery.letter_id]
        if returned:
            store.settle_letters(connection, returned)
        for _, rejection in rejected:
            applied.rejections[rejection.reason] = applied.rejections.get(rejection.reason, 0) + 1
        return applied

    def _current_rules(self, connection: store.Connection) -> Rules:
        version = store.definition_version(connection)
        if self._rules is None or self._rules.version != version:
            self._keeps_out = suppression.is_needed(connection, self._privacy_key)
            try:
                self._rules = Rules.load(connection, version)
                # Who stands for nobody may have changed, and whoever was erased is gone.
                self.forget()
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise Halted(
                    f"The definitions cannot be used ({type(error).__name__}: {error}). "
                    "Mend the one that was changed last."
                ) from error
        return self._rules

    def _without_erased(
        self, connection: store.Connection, arrivals: Sequence[Arrival]
    ) -> tuple[Sequence[Arrival], int]:
        """Drop what carries an identifier of an erased person, and say how many that were; none leaves a trace.

        Group calls that only name their account by one keep all but that name.
        """
        if not self._keeps_out:
            return arrivals, 0
        carried = [suppression.carried(one.decoded, one.event, one.delivery) for one in arrivals]
        # Whoever is known is not erased.
        unknown = {identifier for found in carried for identifier in found} - self._known.keys()
        groups = {group for one in arrivals if (group := suppression.group(one.decoded))}
        erased = suppression.suppressed(connection, self._privacy_key, unknown | groups)
        if not erased:
            return arrivals, 0
        dropped = [one for one, found in zip(arrivals, carried, strict=True) if not erased.isdisjoint(found)]
        returned = [one.delivery.letter_id for one in dropped if one.delivery.letter_id]
        if returned:
            suppression.forget_letters(connection, returned)
        kept = [one for one, found in zip(arrivals, carried, strict=True) if erased.isdisjoint(found)]
        return [self._named_otherwise(one, erased) for one in kept], len(dropped)

    def _named_otherwise(self, arrival: Arrival, erased: frozenset[Identifier]) -> Arrival:
        if isinstance(arrival.decoded, Rejection) or suppression.group(arrival.decoded) not in erased:
            return arrival
        return arrival._replace(event=suppression.exchange_group(self._privacy_key, arrival.decoded, arrival.event))

    def _without_duplicates(
        self, connection: store.Connection, passed: list[tuple[Message, Arrival]], now_us: int
    ) -> list[tuple[Message, Arrival]]:
        """Leave out what was seen before; keep a reused id with another payload under an id made of both."""
        if not passed:
            return []
        seen = self.window.seen(connection, [message.id_hash for message, _ in passed])
        fresh, keys = [], []
        for message, arrival in passed:
            payloads = seen.setdefault(message.id_hash, set())
            if message.payload_hash in payloads:
                continue
            keys.append(duplicates.Key(message.id_hash, message.payload_hash))
            if payloads:
                message.message_id = f"{message.message_id[:200]}#{message.payload_hash & (2**64 - 1):016x}"
                message.flags = (*message.flags, REUSED)
            payloads.add(message.payload_hash)
            fresh.append((message, arrival))
        self.window.keep(connection, keys, now_us)
        return fresh


def _is_of_the_data(error: Exception) -> bool:
    """Tell an event that cannot be written from a database that cannot write."""
    if isinstance(error, psycopg.OperationalError):
        # Class 54: a limit of the program, such as JSON nested too deeply.
        return (error.sqlstate or "").startswith("54")
    return not isinstance(
        error,
        (
            store.Raced, ConfigurationError, Halted, psycopg.InterfaceError, psycopg.InternalError,
            psycopg.ProgrammingError,
            # No partition for the row's time: to be made, not the event's fault.
            psycopg.errors.CheckViolation,
        ),
    )  # fmt: skip


def _is_bad_input(error: Exception) -> bool:
    """Tell what a sender can cause from a bug of ours, such as a column that the code does not know."""
    return isinstance(error, psycopg.DataError | psycopg.OperationalError)


def _described(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}. Mend the event or report it, then replay."


def _message_id(arrival: Arrival) -> str:
    return arrival.decoded.message_id or arrival.event.message_id


def _judge(
    arrivals: Sequence[Arrival], rules: Rules
) -> tuple[list[tuple[Message, Arrival]], list[tuple[Arrival, Rejection]]]:
    """Sort arrivals into messages that pass and rejections, under what their sources may set."""
    passed, rejected = [], []
    has_blocked = rules.identity.has_blocked
    for arrival in arrivals:
        decoded = arrival.decoded
        if isinstance(decoded, Message):
            decoded = _trusted(decoded, rules.trust.get(decoded.source_id, UNKNOWN_SOURCE))
        if has_blocked and isinstance(decoded, Message):
            decoded = _unblocked(decoded, rules.identity)
        if isinstance(decoded, Message):
            passed.append((decoded, arrival))
        else:
            rejected.append((arrival, decoded))
    return passed, rejected


def _trusted(message: Message, allowed: Trust) -> Message | Rejection:
    if message.type in allowed.refused_calls:
        return Rejection("refused_call", f"The source may not call {message.type}. Change its rules, or use another.",
                         message.message_id)  # fmt: skip
    if message.anchor == NOBODY and allowed.source_class:
        return Rejection("missing_id", "A browser's or an app's call says whose it is. Send userId or anonymousId.",
                         message.message_id)  # fmt: skip
    if not allowed.refused_namespaces or message.anchor == NOBODY:
        return message
    kept = [one for one in message.identifiers if one.namespace not in allowed.refused_namespaces]
    anchor = anchor_of(kept)
    if anchor is None:
        return Rejection("missing_id", "The source may set none of the event's identifiers. Send another, or change"
                         " the source's rules.", message.message_id)  # fmt: skip
    message.identifiers, message.anchor = kept, anchor
    return message


def _unblocked(message: Message, rules: Ruleset) -> Message | Rejection:
    """Let an event belong to the first of its identifiers that stands for somebody; it keeps all as evidence."""
    if rules.blocks(message.anchor):
        anchor = anchor_of([one for one in message.identifiers if not rules.blocks(one)])
        if anchor is None:
            return Rejection("blocked_value", "The identity rules block all of the event's identifiers. Send another,"
                             " or change the rules, then replay.", message.message_id)  # fmt: skip
        message.anchor = anchor
    return message


def _letter(arrival: Arrival, rejection: Rejection) -> store.LetterRow:
    delivery = arrival.delivery
    alone = msgspec.structs.replace(delivery, events=[arrival.event], letter_id=0)
    alone, left_out = _without_bulk(alone)
    return store.LetterRow(
        rejection.reason, rejection.detail + left_out, delivery.source_id,
        rejection.message_id or arrival.event.message_id, _pack(alone), delivery.received_us, arrival.log_partition,
        arrival.log_position, delivery.letter_id,
    )  # fmt: skip


def _without_bulk(delivery: Delivery) -> tuple[Delivery, str]:
    """Leave out what a batch said of all its events where that is much: each of its letters would repeat it."""
    large = {name: b"" for name in ("context", "integrations") if len(getattr(delivery, name)) > MAX_KEPT_BATCH_BYTES}
    if not large:
        return delivery, ""
    sizes = " and ".join(f"`{name}` of {len(getattr(delivery, name))} bytes" for name in large)
    return msgspec.structs.replace(delivery, **large), f" The batch's own {sizes} is not kept with its events."


class _Batch:
    """One batch between its reads and its writes."""

    def __init__(self, connection: store.Connection, rules: Rules, now_us: int) -> None:
        self.connection = connection
        self.rules = rules
        self.now_us = now_us
        self.now = clock.from_us(now_us).isoformat()
        self.resolver = Resolver(connection, rules.identity, rules.folder, rules.source_class, now_us)
        self.ids: dict[Identifier, int] = {}
        # In the order in which they were met, with the events each has got.
        self.touched: dict[Person, int] = {}
        self.deltas: dict[Identifier, Delta] = {}
        self.accounts: dict[str, accounts.Delta] = {}
        self.rows: list[tuple[Message, Arrival | None]] = []

    def fold(self, messages: Sequence[tuple[Message, Arrival]]) -> None:
        """Add each message's effect to its anchor's delta."""
        for message, arrival in messages:
            self.rows.append((message, arrival))
            if message.type == "group":
                fold_account(self.rules, self.accounts, message)
            if message.anchor != NOBODY:
                self._fold_person(message)

    def _fold_person(self, message: Message) -> None:
        delta = self.deltas.get(message.anchor)
        if delta is None:
            delta = self.deltas[message.anchor] = Delta()
        fold_person(self.rules, delta, message)
        person = self.resolver.of[message.anchor].root()
        self.touched[person] = self.touched.get(person, 0) + 1

    def write(self) -> Applied:
        """Write everything, in the order that keeps locks free of circles."""
        resolver = self.resolver
        survivors = [person for person in resolver.new if person.merged_into is None]
        store.insert_people(self.connection, survivors, self.now)
        self._write_identifiers()
        graph.merge_profiles(self.connection, resolver.merged)
        graph.revive(self.connection, resolver.revived)
        graph.move_identifiers(self.connection, {self.ids[one]: who for one, who in resolver.moved.items()})
        self._write_anchors()
        rows = self._write_people()
        version = self.rules.identity.version
        graph.write_links(self.connection, resolver.links.values(), self.ids, version)
        graph.write_verdicts(self.connection, resolver.verdicts, self.ids, version)
        graph.insert_decisions(self.connection, resolver.decisions, self.now)
        store.insert_events(self.connection, map(self._event, self.rows), self.now)
        # Last, so that an account that many batches name is locked shortly.
        account_store.write(
            self.connection, self.accounts, self.ids, now=self.now, new_id=lambda: new_profile_id(self.now_us)
        )
        return self._applied(rows)

    def _event(self, row: tuple[Message, Arrival | None]) -> store.EventRow:
        message, arrival = row
        profile, anchor = None, 0
        if message.anchor != NOBODY:
            profile, anchor = self.resolver.of[message.anchor].root().id, self.ids[message.anchor]
        if arrival is None:
            return store.EventRow(message, profile, anchor, None, None)
        return store.EventRow(
            message, profile, anchor, arrival.log_partition, arrival.log_position, arrival.delivery.trace
        )

    def _write_identifiers(self) -> None:
        resolver = self.resolver
        self.ids = resolver.row_ids()
        new = [(identifier, resolver.of[identifier].root().id) for identifier in resolver.new_identifiers]
        if new:
            self.ids |= graph.insert_identifiers(self.connection, new, self.now)

    def _write_anchors(self) -> None:
        """Fold each anchor's delta into the state it had, and into its person's."""
        folder = self.rules.folder
        fresh = frozenset(self.resolver.new_identifiers)
        before = store.anchor_states(self.connection, [self.ids[one] for one in self.deltas if one not in fresh])
        after = {}
        for anchor, delta in self.deltas.items():
            held, states = before.get(self.ids[anchor], ({}, {}))
            given = registers.apply(held, delta.registers)
            after[self.ids[anchor]] = Delta(given, folder.live(folder.combine(states, delta.states), self.now_us))
            person = self.resolver.of[anchor].root()
            # Not the delta: a counter's is what was added, and a person's state holds the anchor's sum.
            person.registers = registers.combine(person.registers, {name: given[name] for name in delta.registers})
            person.states = folder.live(folder.combine(person.states, delta.states), self.now_us)
        if after:
            store.update_anchors(self.connection, after)

    def _write_people(self) -> list[store.ProfileRow]:
        changed = dict.fromkeys(person.root() for person in (*self.touched, *self.resolver.changed))
        for person in changed:
            person.version += self.touched.get(person, 1)
        rows = [row_of(person, self.rules.folder, self.now_us) for person in changed]
        if rows:
            store.update_people(self.connection, rows, self.now)
        return rows

    def _applied(self, rows: Sequence[store.ProfileRow]) -> Applied:
        resolver = self.resolver
        carried = {identifier for message, _ in self.rows for identifier in message.identifiers}
        return Applied(
            events=len(self.rows),
            lock_seconds=resolver.lock_seconds,
            documents=[document_of(row, self.now_us) for row in rows],
            identifiers=resolver.remembered(carried, self.ids),
            evidence=resolver.evidence,
            splits=sum(one.kind == "split" for one in resolver.decisions),
            # Merges and splits move identifiers that no message of the batch carries.
            moved=[(one, profile) for one, profile in resolver.elsewhere() if one not in carried],
            merged=[(person.id, person.version + 1) for person in resolver.merged],
        )
