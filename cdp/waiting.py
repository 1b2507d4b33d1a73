"""One message in the log: whether a copy of it waits to be processed, and where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from django.conf import settings

from cdp.log import open_log
from cdp.log.base import Delivery, Event, Log, Stored, decode_entry
from cdp.models import Checkpoint
from martech.lib import clock
from martech.lib.errors import MartechError

# How far a look into the log goes: more would take seconds, and the event comes out by itself.
MOST_ENTRIES = 50_000
MOST_BYTES = 256 * 2**20
# Entries of each partition in one read.
READ_ENTRIES = 200


@dataclass(frozen=True, slots=True)
class Waiting:
    """A copy in the log; `before` entries of its partition come first. `letter_id` is the letter given back, or 0."""

    source_id: int
    partition: int
    position: str
    before: int
    received_at: datetime
    trace_parent: str
    letter_id: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What a look into the log found; `trouble` says why it could not be looked into to its end."""

    found: list[Waiting] = field(default_factory=list)
    entries: int = 0
    trouble: str = ""


class _Head(msgspec.Struct, rename="camel"):
    message_id: Any = None


_head = msgspec.json.Decoder(_Head).decode


class Look:
    """A look into the log from where processing is when it is made; so what is processed meanwhile is not missed."""

    def __init__(self) -> None:
        config = settings.CONFIG
        self._log = open_log(config.log_url, partitions=config.log_partitions)
        self._positions: dict[int, str] = {}
        self._trouble = ""
        try:
            known = dict(Checkpoint.objects.filter(log=self._log.name).values_list("partition", "position"))
            self._positions = {partition: known.get(partition, "") for partition in range(self._log.partitions)}
        except MartechError as error:
            self._trouble = error.message

    def close(self) -> None:
        """Let go of the log."""
        self._log.close()

    def scan(self, message_id: str, *, most: int = MOST_ENTRIES) -> Scan:
        """Return the copies among the first `most` entries that wait."""
        found: list[Waiting] = []
        entries = size = 0
        if self._trouble:
            return Scan(trouble=self._trouble)
        try:
            for partition, before, stored in _following(self._log, self._positions):
                if entries == most or size > MOST_BYTES:
                    return Scan(found, entries, f"Only the first {entries} entries that wait were looked into.")
                entries, size = entries + 1, size + len(stored.payload)
                found += _copies(message_id, partition, before, stored)
        except MartechError as error:
            return Scan(found, entries, error.message)
        return Scan(found, entries)


def _following(log: Log, positions: dict[int, str]) -> Iterator[tuple[int, int, Stored]]:
    """Yield all entries after positions, partitions in turn, with how many of its partition came before each."""
    at, seen = dict(positions), dict.fromkeys(positions, 0)
    while read := log.read(at, limit=READ_ENTRIES, wait=0):
        for partition, entries in read.items():
            for stored in entries:
                yield partition, seen[partition], stored
                seen[partition] += 1
            at[partition] = entries[-1].position


def _copies(message_id: str, partition: int, before: int, stored: Stored) -> list[Waiting]:
    # Most entries are told apart by their bytes alone.
    if not any(form in stored.payload for form in _forms(message_id)):
        return []
    return [
        Waiting(
            delivery.source_id, partition, stored.position, before, clock.from_us(delivery.received_us),
            delivery.trace, delivery.letter_id,
        )
        for delivery in decode_entry(stored.payload).deliveries
        for event in delivery.events
        if _is_of(event, delivery, message_id)
    ]  # fmt: skip


def _forms(message_id: str) -> set[bytes]:
    """Return how the id may be written in JSON."""
    plain = {message_id, *(json.dumps(message_id, ensure_ascii=ascii)[1:-1] for ascii in (True, False))}
    return {form.encode("utf-8", "replace") for one in plain for form in (one, one.replace("/", "\\/"))}


def _is_of(event: Event, delivery: Delivery, message_id: str) -> bool:
    try:
        given = _head(event.body).message_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        given = None
    return (given if isinstance(given, str) and given else event.message_id) == message_id
