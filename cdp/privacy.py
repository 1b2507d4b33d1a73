"""Erasing a person: asked for in one transaction that keeps them out from then on, then done store by store.

An erasure is a row. Each store's step is written into its receipts when it is done, so whoever is killed in between
is followed by another that goes on there: a step may run twice, and finds less the second time. What the stores
need to know of the person is in the row's `work`, which the last step empties.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import structlog
from asgiref.sync import async_to_sync
from django.conf import settings
from django.db import connection, transaction

from cdp import (
    aliases,
    archive,
    audit,
    erased_accounts,
    erased_letters,
    erased_words,
    erasing,
    holders,
    lookup,
    redaction,
    showing,
    subjects,
    suppressions,
    unmerging,
)
from cdp.erased_accounts import Progress
from cdp.erasing import Person
from cdp.log import open_log
from cdp.log.base import Delivery, Entry, Log, encode_entry
from cdp.models import AccountMember, Checkpoint, Erasure, Profile, Standing
from cdp.processing import store
from cdp.processing.pipeline import Pipeline
from cdp.profiles import ProfileCache
from cdp.subjects import Subject
from martech.lib import clock
from martech.lib.errors import RetryableError

Status = Erasure.Status
UNFINISHED = (Status.REQUESTED, Status.RUNNING)
# Events of a person are counted up to here.
COUNT_CAP = 10_000
# How long a step waits for the log, before it lets others work and comes again.
PATIENCE = 30.0
RACES = 20
POLL_SECONDS = 0.1
# Of the advisory locks that keep two processes off one erasure.
LOCK_CLASS = 0x65726173
# Transactions that may have asked who is kept out before the person was: they read the version of the rules first.
_OLDER = """
SELECT count(*) FROM pg_stat_activity AS session JOIN pg_locks AS lock USING (pid)
WHERE lock.relation = 'cdp_definitionversion'::regclass AND session.datname = current_database()
AND session.xact_start < %s::timestamptz AND pid <> pg_backend_pid()
"""

log = structlog.get_logger("martech.privacy")


class ErasureWaits(RetryableError):
    """A store cannot be erased yet: the erasure goes on later."""

    code = "erasure_waits"


@dataclass(slots=True)
class Work:
    """What an unfinished erasure knows: the person, where the log has to come to, and what it has changed so far."""

    person: Person = field(default_factory=Person)
    positions: dict[str, str] = field(default_factory=dict)
    since: str = ""
    mentions: int = 0
    accounts: Progress = field(default_factory=Progress)


@dataclass(slots=True)
class Run:
    """One process's turn at an erasure; `until` is when (of the monotonic clock) it stops waiting."""

    id: UUID
    work: Work
    until: float

    def keep(self) -> None:
        """Write down how far a step has come."""
        Erasure.objects.filter(pk=self.id).update(work=_plain(self.work))


Receipt = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Consequences:
    """What an erasure would do: whom it means, and how much of them is known (events up to `COUNT_CAP`)."""

    subject: Subject
    events: int
    capped: bool
    accounts: int
    others: int


def consequences(reference: str) -> Consequences:
    """Say what an erasure would do; UnknownPerson where the reference can name nobody."""
    subject = subjects.find(reference)
    beside = erasing.select(erasing.NEIGHBOURS, {"anchors": subject.anchors})
    events = erasing.select(
        "SELECT count(*) FROM (SELECT FROM event_stream WHERE anchor_id = ANY(%s::bigint[]) LIMIT %s) AS first",
        [subject.anchors, COUNT_CAP + 1],
    )[0][0]
    accounts = AccountMember.objects.filter(identifier_id__in=subject.anchors).count()
    others = len({profile for _, profile in beside})
    return Consequences(subject, min(events, COUNT_CAP), events > COUNT_CAP, accounts, others)


def request(*, reference: str, actor: str, reason: str = "", enqueue: bool = True) -> Erasure:
    """Ask for the erasure of a person, by a profile's id or any identifier; from the commit on they are kept out.

    An identifier that nobody has is kept out all the same. UnknownPerson where the reference can name nobody. The
    stores are erased by a task, or without `enqueue` by the caller's `run`.
    """
    with transaction.atomic():
        subject = subjects.find(reference)
        person = Person(subject.identifiers, subject.anchors, [subject.profile_id] if subject.profile_id else [])
        now = clock.now()
        erasure = Erasure.objects.create(
            profile_id=subject.profile_id, requested_by=actor[:255], reason=reason, requested_at=now,
            work=_plain(Work(person)),
        )  # fmt: skip
        added = suppressions.add(subject.identifiers, erasure.pk)
        erasure.receipts = {"suppression": _receipt({"identifiers": len(subject.identifiers), "new": added})}
        erasure.save(update_fields=["receipts"])
        kind, row = ("profile", subject.profile_id) if subject.profile_id else ("erasure", erasure.pk)
        audit.record(actor=actor, action="profile.erase", object_type=kind, object_id=row,
                     detail={"erasure": str(erasure.pk)})  # fmt: skip
        if enqueue:
            transaction.on_commit(lambda: _send(erasure.pk), robust=True)
    return erasure


def _send(erasure_id: UUID) -> None:
    """Have a worker begin at once; where the broker is away, beat finds the row."""
    from cdp.tasks import erase_person

    erase_person.delay(str(erasure_id))


def unfinished() -> list[UUID]:
    """Return the erasures that are not done, oldest first."""
    rows = Erasure.objects.filter(status__in=UNFINISHED).order_by("requested_at")
    return list(rows.values_list("pk", flat=True))


def run(erasure_id: UUID, *, patience: float = PATIENCE) -> Erasure:
    """Go on with an erasure until it is done; RetryableError where a store has to be asked again later.

    `patience` is how many seconds it waits for the log. Called by the worker, and by the command.
    """
    with _alone(erasure_id):
        erasure = Erasure.objects.get(pk=erasure_id)
        Erasure.objects.filter(pk=erasure_id, status=Status.REQUESTED).update(status=Status.RUNNING)
        if erasure.status != Status.DONE:
            turn = Run(erasure_id, msgspec.convert(erasure.work, Work), time.monotonic() + patience)
            for name, step in STEPS.items():
                if name not in erasure.receipts:
                    _take(turn, name, step)
            _finish(turn)
    return Erasure.objects.get(pk=erasure_id)


def _take(turn: Run, name: str, step: Callable[[Run], Receipt]) -> None:
    """Do a step and write its receipt: together, where the step is PostgreSQL's own."""
    if name in JOINT:
        with transaction.atomic():
            _keep_receipt(turn, name, step(turn))
    else:
        found = step(turn)
        with transaction.atomic():
            _keep_receipt(turn, name, found)
    log.info("erased", erasure=str(turn.id), store=name)


def _keep_receipt(turn: Run, name: str, found: Receipt) -> None:
    row = Erasure.objects.select_for_update().get(pk=turn.id)
    row.receipts[name] = _receipt(found)
    row.work = _plain(turn.work)
    row.save(update_fields=["receipts", "work"])


def _finish(turn: Run) -> None:
    """End the erasure, and forget what it knew of the person."""
    found = redaction.pattern(turn.work.person.values)
    with transaction.atomic():
        row = Erasure.objects.select_for_update().get(pk=turn.id)
        row.reason, row.work = redaction.redact(row.reason, found), {}
        row.status, row.finished_at = Status.DONE, clock.now()
        row.save(update_fields=["reason", "work", "status", "finished_at"])


@contextmanager
def _alone(erasure_id: UUID) -> Iterator[None]:
    """Keep other processes off an erasure; ErasureWaits where one is at it."""
    key = [LOCK_CLASS, int.from_bytes(erasure_id.bytes[-4:], signed=True)]
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", key)
        if not cursor.fetchone()[0]:
            raise ErasureWaits("Another process is at this erasure. It goes on by itself.", retry_after=5)
    try:
        yield
    finally:
        if connection.connection is not None and not connection.connection.broken:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s, %s)", key)


def _erase_rows(turn: Run) -> Receipt:
    """Delete the person's rows, and keep out what was joined to them since they were asked for."""
    person = turn.work.person
    erasing.hold(person)
    named = aliases.named(person)
    found = erasing.delete(person)
    if named:
        aliases.take_out(person, named)
        found = {name: number + found[name] for name, number in erasing.delete(person).items()}
    suppressions.add(person.names, turn.id)
    return dict(found)


def _erase_letters(turn: Run) -> Receipt:
    return dict(erased_letters.erase(turn.work.person))


def _erase_cached(turn: Run) -> Receipt:
    person = turn.work.person
    with closing(ProfileCache(settings.CONFIG.cache_url)) as cache:
        return {"keys": cache.erase(person.names, person.profiles, person.neighbours)}


def _erase_logged(turn: Run) -> Receipt:
    """Wait until processing has dropped what of the person was in the log, and have the log forget it.

    The last entry of a partition is its checkpoint's, which is never trimmed: so one without events is put after it.
    """
    config = settings.CONFIG
    with closing(open_log(config.log_url, partitions=config.log_partitions)) as events:
        if not turn.work.positions:
            turn.work.positions = async_to_sync(_end_partitions)(events)
            turn.work.since = _database_now()
            turn.keep()
        wanted = {int(partition): position for partition, position in turn.work.positions.items()}
        while not _is_past(events, wanted):
            if time.monotonic() > turn.until:
                raise ErasureWaits("Events from before the request wait in the log. It goes on when they are processed,"
                                   " for which a processor has to run.", retry_after=10)  # fmt: skip
            time.sleep(POLL_SECONDS)
        if not events.supports_trim:
            return {"standing": "What was processed stays on the log's server until its own retention ends."}
        if not events.compact(seconds=settings.TASK_SECONDS / 4):
            return {"standing": "The log's server does not rewrite its file when asked: what was trimmed stays on its"
                                " disk until it does by itself."}  # fmt: skip
        return {"partitions": len(wanted)}


async def _end_partitions(events: Log) -> dict[str, str]:
    nothing = encode_entry(Entry([Delivery(0, clock.now_us(), "", b" " * events.block_bytes, b"", [])]))
    numbers = range(events.partitions)
    try:
        positions = await events.append([(number, nothing) for number in numbers])
    finally:
        await events.aclose()
    return {str(number): position for number, position in zip(numbers, positions, strict=True)}


def _is_past(events: Log, wanted: dict[int, str]) -> bool:
    """Tell whether processing is past positions, the log begins there, and no older transaction is under way."""
    known = dict(Checkpoint.objects.filter(log=events.name).values_list("partition", "position"))
    if any(events.order(known.get(number, "")) < events.order(at) for number, at in wanted.items()):
        return False
    if events.supports_trim:
        first = events.read(dict.fromkeys(wanted, ""), limit=1, wait=0)
        if any(events.order(entries[0].position) < events.order(wanted[one]) for one, entries in first.items()):
            return False
    return True


def _erase_late(turn: Run) -> Receipt:
    """Erase what batches wrote that had begun before the person was kept out."""
    while _older_transactions(turn.work.since):
        if time.monotonic() > turn.until:
            raise ErasureWaits("Transactions from before the request are under way. It goes on when they end.",
                               retry_after=10)  # fmt: skip
        time.sleep(POLL_SECONDS)
    with transaction.atomic():
        found = _erase_rows(turn) | _erase_letters(turn)
    return found | _erase_cached(turn)


def _older_transactions(since: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(_OLDER, [since])
        return int(cursor.fetchone()[0])


def _look_again(turn: Run) -> Receipt:
    """Let the rules look again at those whose evidence the person's was part of, as a replay without it would."""
    with transaction.atomic():
        alone = erasing.orphans(turn.work.person)
    with closing(ProfileCache(settings.CONFIG.cache_url)) as cache:
        cache.erase(alone.identifiers, alone.profiles, [])
    beside = Profile.objects.filter(identifiers__in=turn.work.person.around)
    # On settled ones nothing was ever refused, and evidence that is gone can join nobody.
    unsettled = list(beside.exclude(standing=Standing.SETTLED).order_by("pk").values_list("pk", flat=True).distinct())
    for profile_id in unsettled:
        _look_at(profile_id)
    return {"profiles": len(unsettled), "left_alone": len(alone.profiles)}


def _look_at(profile_id: UUID) -> None:
    for _ in range(RACES):
        try:
            with transaction.atomic():
                connection.ensure_connection()
                living = lookup.survivor(profile_id) or profile_id
                applied = Pipeline(suppressions.key()).look_at_all(connection.connection, [living], reason="erasure")
                unmerging.tell(applied)
                transaction.on_commit(partial(showing.show, applied), robust=True)
            return
        except (store.Raced, psycopg.errors.DeadlockDetected):
            continue
    raise ErasureWaits("Others are changing the same people all the time. It goes on later.", retry_after=10)


def _erase_mentions(turn: Run) -> Receipt:
    """Take the person out of the events of others, some at a time."""
    more = True
    while more:
        with transaction.atomic():
            more = bool(changed := erasing.mentions(turn.work.person))
            turn.work.mentions += changed
            turn.keep()
    _erase_cached(turn)
    return {"events": turn.work.mentions}


def _erase_accounts(turn: Run) -> Receipt:
    """Take the person out of accounts, some at a time."""
    more = True
    while more:
        with transaction.atomic():
            more = erased_accounts.go_on(turn.work.person, turn.work.accounts, turn.id)
            turn.keep()
    return dict(turn.work.accounts.found)


def _erase_archived(turn: Run) -> Receipt:
    person = turn.work.person

    def mentioned(anchors: frozenset[int]) -> None:
        with transaction.atomic():
            erasing.mentioned(person, anchors)
            turn.keep()

    found = archive.erase(anchors=person.anchors, identifiers=person.names, groups=person.groups, mentioned=mentioned)
    _erase_cached(turn)
    return asdict(found)


def _erase_held(turn: Run) -> Receipt:
    names = turn.work.person.names
    found: Receipt = {one.name: one.erase(names) for one in holders.holders()}
    standing = " ".join(said for one in holders.holders() if (said := one.standing(names)))
    return found | ({"standing": standing} if standing else {})


def _erase_elsewhere(turn: Run) -> Receipt:
    return dict(erased_words.erase(turn.work.person))


# In this order. The archive comes after PostgreSQL, from which it is written.
STEPS: dict[str, Callable[[Run], Receipt]] = {
    "postgresql": _erase_rows,
    "dead_letters": _erase_letters,
    "cache": _erase_cached,
    "log": _erase_logged,
    "late": _erase_late,
    "clusters": _look_again,
    "mentions": _erase_mentions,
    "accounts": _erase_accounts,
    "archive": _erase_archived,
    "holders": _erase_held,
    "elsewhere": _erase_elsewhere,
}
# Those that are PostgreSQL's own: done and written down in one transaction.
JOINT = frozenset({"postgresql", "dead_letters", "elsewhere"})


def _receipt(found: Receipt) -> Receipt:
    return {**found, "at": clock.now().isoformat()}


def _plain(work: Work) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(work)
    return plain


def _database_now() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()::text")
        return str(cursor.fetchone()[0])
