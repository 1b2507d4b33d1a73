"""Dead letters: how many of which kind there are, what they hold, and giving them back to the log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from asgiref.sync import async_to_sync
from django.conf import settings
from django.db import connection
from django.db.models import Q, QuerySet

from cdp.log import open_log
from cdp.log.base import Delivery, Entry, encode_entry, partition_of
from cdp.models import DeadLetter
from martech.lib import clock
from martech.lib.errors import PermanentError

# A group is counted up to here: beyond, the exact number helps nobody and costs a scan.
COUNT_CAP = 10_000
REPLAY_LIMIT = 10_000
# Letters and bytes in one append: an event that is too large may have a whole request's 4 MiB.
REPLAY_LETTERS = 500
REPLAY_BYTES = 2 * 2**20
# A letter that was given back and not processed in this time may be given back again.
REPLAY_PATIENCE = timedelta(minutes=10)
SHOWN_BYTES = 256 * 2**10

# Steps from group to group along the index (status, reason, source), then counts each one up to the cap.
_SUMMARY = """
WITH RECURSIVE groups AS (
    (SELECT status, reason, source_id FROM cdp_deadletter ORDER BY status, reason, source_id LIMIT 1)
    UNION ALL
    SELECT following.* FROM groups CROSS JOIN LATERAL (
        SELECT status, reason, source_id FROM cdp_deadletter AS letter
        WHERE (letter.status, letter.reason, letter.source_id) > (groups.status, groups.reason, groups.source_id)
        ORDER BY status, reason, source_id LIMIT 1
    ) AS following
)
SELECT groups.status, groups.reason, groups.source_id, source.name, counted.number, newest.received_at
FROM groups
JOIN cdp_source AS source ON source.id = groups.source_id
CROSS JOIN LATERAL (
    SELECT count(*) AS number FROM (
        SELECT 1 FROM cdp_deadletter AS letter
        WHERE (letter.status, letter.reason, letter.source_id) = (groups.status, groups.reason, groups.source_id)
        LIMIT %(cap)s + 1
    ) AS first
) AS counted
CROSS JOIN LATERAL (
    SELECT received_at FROM cdp_deadletter AS letter
    WHERE (letter.status, letter.reason, letter.source_id) = (groups.status, groups.reason, groups.source_id)
    ORDER BY id DESC LIMIT 1
) AS newest
ORDER BY groups.status, counted.number DESC, groups.reason, source.name
"""
# `attempts` tells a letter that is new still from one that was put aside again meanwhile. Locked in order, as the
# processor does.
_MARK = """
UPDATE cdp_deadletter AS letter SET
    status = CASE WHEN letter.status = 'new' AND letter.attempts = given.attempts
        THEN 'replaying' ELSE letter.status END,
    replayed_at = given.now
FROM (
    SELECT locked.id, known.attempts, %s::timestamptz AS now
    FROM unnest(%s::bigint[], %s::int[]) AS known (id, attempts) JOIN cdp_deadletter AS locked USING (id)
    ORDER BY locked.id FOR UPDATE OF locked
) AS given
WHERE letter.id = given.id
"""


@dataclass(frozen=True, slots=True)
class Group:
    """The dead letters of one status, reason and source; `capped` when there are more than `count`."""

    status: str
    reason: str
    source_id: int
    source: str
    count: int
    capped: bool
    newest_at: datetime

    @property
    def shown(self) -> str:
        """The count as people read it."""
        return f"{self.count}+" if self.capped else str(self.count)


@dataclass(frozen=True, slots=True)
class Payload:
    """What the sender sent: `text` is readable in any case, `parsed` is whether it is JSON."""

    text: str
    parsed: bool
    truncated: bool


@dataclass(frozen=True, slots=True)
class Replayed:
    """How a replay went: letters it found, letters it gave back, and whether it left some for another."""

    matched: int
    replayed: int
    more: bool


class UnreadableLetter(PermanentError):
    """A dead letter's delivery cannot be read."""

    code = "unreadable_letter"


def summary(*, cap: int = COUNT_CAP) -> list[Group]:
    """Return the groups of dead letters, new ones first, then by size."""
    with connection.cursor() as cursor:
        cursor.execute(_SUMMARY, {"cap": cap})
        rows = cursor.fetchall()
    return [
        Group(status, reason, source_id, source, min(number, cap), number > cap, newest_at)
        for status, reason, source_id, source, number, newest_at in rows
    ]


def delivery_of(letter: DeadLetter) -> Delivery:
    """Return a dead letter's delivery, with its one event."""
    try:
        return msgspec.msgpack.decode(letter.delivery, type=Delivery)
    except msgspec.DecodeError as error:
        raise UnreadableLetter(f"The delivery of dead letter {letter.pk} cannot be read: {error}.") from error


def payload_of(letter: DeadLetter) -> Payload:
    """Return what the sender sent, whatever it was."""
    body = b"".join(event.body for event in delivery_of(letter).events)
    text = body[:SHOWN_BYTES].decode("utf-8", "replace")
    truncated = len(body) > SHOWN_BYTES
    try:
        # Indented, and refused where it could not be written again (half surrogates, NaN, too deep).
        readable = json.dumps(json.loads(text), indent=2, ensure_ascii=False, allow_nan=False)
        readable.encode()
    except (ValueError, RecursionError):
        return Payload(text.replace("\0", "�"), False, truncated)
    return Payload(readable, True, truncated)


def matching(
    *,
    ids: Sequence[int] | None = None,
    reason: str = "",
    source_id: int | None = None,
    message_id: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
) -> QuerySet[DeadLetter]:
    """Return the letters of all these; they were received at `since` or later, and before `until`."""
    wanted = {
        "pk__in": None if ids is None else list(ids),
        "reason": reason or None,
        "source_id": source_id,
        "message_id": message_id or None,
        "received_at__gte": since,
        "received_at__lt": until,
    }
    return DeadLetter.objects.filter(**{name: value for name, value in wanted.items() if value is not None})


def replayable(letters: QuerySet[DeadLetter]) -> QuerySet[DeadLetter]:
    """Keep the letters that can be replayed: new ones, and those whose replay has not arrived for long."""
    lost = Q(status=DeadLetter.Status.REPLAYING, replayed_at__lt=clock.now() - REPLAY_PATIENCE)
    return letters.filter(Q(status=DeadLetter.Status.NEW) | lost)


def is_replayable(letter: DeadLetter) -> bool:
    """Return whether a letter can be replayed now."""
    return replayable(DeadLetter.objects.filter(pk=letter.pk)).exists()


def replay(
    letters: QuerySet[DeadLetter], *, limit: int = REPLAY_LIMIT, progress: Callable[[int], None] | None = None
) -> Replayed:
    """Give up to `limit` replayable letters, oldest first, back to the log as they came, and mark them replaying.

    Their processing settles them, in its own transaction. The append comes first, outside of any transaction: a
    crash after it lets a letter be given back twice, which its message id makes harmless. LogUnavailable and LogFull
    leave the rest as it was. `progress` is told how many more were given back.
    """
    matched, more = first_ids(letters, limit)
    replayed = 0
    for chunk in portions(matched):
        given = _give_back(chunk)
        replayed += given
        if progress:
            progress(given)
    return Replayed(len(matched), replayed, more)


def first_ids(letters: QuerySet[DeadLetter], limit: int) -> tuple[list[int], bool]:
    """Return the ids of the oldest `limit` letters that can be replayed, and whether there are more."""
    ids = list(replayable(letters).order_by("pk").values_list("pk", flat=True)[: limit + 1])
    return ids[:limit], len(ids) > limit


def portions(ids: Sequence[int], *, most: int = REPLAY_LETTERS) -> Iterator[list[DeadLetter]]:
    """Read letters in portions of bounded size and number."""
    chunk: list[DeadLetter] = []
    size = 0
    for letter in DeadLetter.objects.filter(pk__in=ids).order_by("pk").iterator(chunk_size=20):
        chunk.append(letter)
        size += len(letter.delivery)
        if size > REPLAY_BYTES or len(chunk) == most:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _give_back(letters: Sequence[DeadLetter]) -> int:
    entries = []
    for letter in letters:
        delivery = msgspec.structs.replace(delivery_of(letter), letter_id=letter.pk)
        entries.append((_partition(letter, delivery), encode_entry(Entry([delivery]))))
    async_to_sync(_append)(entries)
    _mark(letters)
    return len(letters)


def _mark(letters: Sequence[DeadLetter]) -> None:
    """Note when letters were given back; where the processor was quicker, what it made of them stays."""
    values: list[Any] = [clock.now(), [letter.pk for letter in letters], [letter.attempts for letter in letters]]
    with connection.cursor() as cursor:
        cursor.execute(_MARK, values)


def _partition(letter: DeadLetter, delivery: Delivery) -> int:
    """Return the partition that the event came by, or one by its message id where that is no longer there."""
    partitions = settings.CONFIG.log_partitions
    if letter.log_partition is not None and letter.log_partition < partitions:
        return letter.log_partition
    return partition_of(letter.message_id or delivery.events[0].message_id, partitions)


async def _append(entries: Sequence[tuple[int, bytes]]) -> None:
    log = open_log(settings.CONFIG.log_url, partitions=settings.CONFIG.log_partitions)
    try:
        await log.append(entries)
    finally:
        await log.aclose()
