"""What would become of dead letters if they were replayed: the real core tries them, and nothing of it stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import psycopg
from django.conf import settings
from django.db import connection, transaction
from django.db.models import QuerySet
from django.db.utils import InternalError, OperationalError

from cdp import dead_letters
from cdp.models import DeadLetter
from cdp.processing.decode import Message
from cdp.processing.pipeline import Applied, Arrival, Pipeline, again, arrive
from cdp.processing.store import Raced
from martech.lib.errors import RetryableError

# Letters in one transaction: their people stay locked until it is rolled back.
CHUNK = 500
RACES = 5
LOCK_SECONDS = 2
# A process that stands still for longer lets go of its people: processors wait for them.
IDLE_SECONDS = 10
# The core's own errors, and Django's. Internal ones are how PostgreSQL ends a transaction that stood still.
OUTAGES = (psycopg.OperationalError, psycopg.InternalError, OperationalError, InternalError)

Key = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What would become of the letters found: stored, dropped as repeats, or put aside again, by reason."""

    matched: int
    would_store: int
    would_repeat: int
    would_reject: dict[str, int]
    more: bool


class Busy(RetryableError):
    """The letters' people are being processed right now."""

    code = "busy"


def rehearse(
    letters: QuerySet[DeadLetter],
    *,
    limit: int = dead_letters.REPLAY_LIMIT,
    progress: Callable[[int], None] | None = None,
) -> Rehearsal:
    """Say what a replay of these letters would do, now and under the rules of now.

    Each portion is processed in a transaction that is rolled back. Busy where others hold its people for long.
    `progress` is told how many more were tried.
    """
    matched, more = dead_letters.first_ids(letters, limit)
    found, seen = Applied(), set[Key]()
    for portion in dead_letters.portions(matched, most=CHUNK):
        found.add(_tried(portion, seen))
        if progress:
            progress(len(portion))
    rejected = dict(sorted(found.rejections.items(), key=lambda one: (-one[1], one[0])))
    return Rehearsal(len(matched), found.events, found.duplicates, rejected, more)


def _tried(letters: Sequence[DeadLetter], seen: set[Key]) -> Applied:
    """Try a portion; `seen` are the messages that earlier ones would have stored, and those of this one after it."""
    arrivals = [_arrival(letter) for letter in letters]
    fresh = [one for one in arrivals if _key(one) not in seen]
    applied, accepted = _raced(fresh)
    applied.duplicates += len(arrivals) - len(fresh)
    seen.update(key for one in fresh if one.delivery.letter_id in accepted and (key := _key(one)))
    return applied


def _arrival(letter: DeadLetter) -> Arrival:
    delivery = msgspec.structs.replace(dead_letters.delivery_of(letter), letter_id=letter.pk)
    return arrive(delivery.events[0], delivery, max_bytes=settings.CONFIG.collector_event_bytes)


def _key(arrival: Arrival) -> Key | None:
    decoded = arrival.decoded
    return (decoded.id_hash, decoded.payload_hash) if isinstance(decoded, Message) else None


def _raced(arrivals: Sequence[Arrival]) -> tuple[Applied, set[int]]:
    """Return what the core did, and the letters that it took."""
    for _ in range(RACES):
        try:
            return _rolled_back(arrivals)
        except (Raced, psycopg.errors.DeadlockDetected):
            arrivals = again(arrivals)
        except OUTAGES as error:
            raise Busy(f"The letters cannot be tried now: {error}. Try again.", retry_after=5) from error
    raise Busy("Others are changing the same people all the time. Try again.", retry_after=5)


def _rolled_back(arrivals: Sequence[Arrival]) -> tuple[Applied, set[int]]:
    ids = [one.delivery.letter_id for one in arrivals]
    with transaction.atomic():
        with connection.cursor() as cursor:
            # Also begins the transaction, within which the core makes savepoints only.
            cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS * 1000:.0f}ms'")
            cursor.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_SECONDS * 1000:.0f}ms'")
        try:
            applied = Pipeline().apply(connection.connection, arrivals)
            taken = DeadLetter.objects.filter(pk__in=ids, status=DeadLetter.Status.REPLAYED)
            return applied, set(taken.values_list("pk", flat=True))
        finally:
            transaction.set_rollback(True)
