"""Dead letters: how many of which kind there are, what they hold, and giving them back to the log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from asgiref.sync import async_to_sync
from django.conf import settings
from django.db import connection
from django.db.models import QuerySet

from cdp.log import open_log
from cdp.log.base import Delivery, Entry, encode_entry, partition_of
from cdp.models import DeadLetter
from martech.lib import clock
from martech.lib.errors import PermanentError

# A group is counted up to here: beyond, the exact number helps nobody and costs a scan.
COUNT_CAP = 10_000
REPLAY_LIMIT = 10_000
# Bytes in one append: an event that is too large may have a whole request's 4 MiB.
REPLAY_BYTES = 2 * 2**20
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


def new_letters(
    *, ids: Sequence[int] | None = None, reason: str = "", source_id: int | None = None
) -> QuerySet[DeadLetter]:
    """Return the letters that can be replayed, of all those asked for."""
    letters = DeadLetter.objects.filter(status=DeadLetter.Status.NEW)
    if ids is not None:
        letters = letters.filter(pk__in=list(ids))
    if reason:
        letters = letters.filter(reason=reason)
    if source_id is not None:
        letters = letters.filter(source_id=source_id)
    return letters


def replay(letters: QuerySet[DeadLetter], *, limit: int = REPLAY_LIMIT, dry_run: bool = False) -> Replayed:
    """Give up to `limit` new letters, oldest first, back to the log as they came, and mark them replayed.

    The append comes first, outside of any transaction: a crash after it lets a letter be replayed twice, which its
    message id makes harmless. LogUnavailable and LogFull leave the rest as it was.
    """
    ids = list(letters.order_by("pk").values_list("pk", flat=True)[: limit + 1])
    matched, more = ids[:limit], len(ids) > limit
    replayed = 0 if dry_run else sum(_give_back(chunk) for chunk in _chunks(matched))
    return Replayed(len(matched), replayed, more)


def _chunks(ids: Sequence[int]) -> Iterator[list[DeadLetter]]:
    """Read letters in portions of bounded size."""
    chunk: list[DeadLetter] = []
    size = 0
    for letter in DeadLetter.objects.filter(pk__in=ids).order_by("pk").iterator(chunk_size=20):
        chunk.append(letter)
        size += len(letter.delivery)
        if size > REPLAY_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _give_back(letters: Sequence[DeadLetter]) -> int:
    entries = []
    for letter in letters:
        delivery = delivery_of(letter)
        entries.append((_partition(letter, delivery), encode_entry(Entry([delivery]))))
    async_to_sync(_append)(entries)
    given = DeadLetter.objects.filter(pk__in=[letter.pk for letter in letters], status=DeadLetter.Status.NEW)
    return given.update(status=DeadLetter.Status.REPLAYED, replayed_at=clock.now())


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
