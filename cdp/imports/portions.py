"""From records to what one append gives to the log: what the core would refuse is found here, by line.

No Django: an import's rows become the same entries as the collector's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from cdp.collector.entries import payloads
from cdp.collector.messages import Head, Item, Request, is_plain, partition_for, read_item
from cdp.imports.mapping import Mapper, Mapping
from cdp.imports.records import Layout, Record
from cdp.imports.values import UnusableValue
from cdp.log.base import Delivery, Event
from cdp.processing.decode import Rejection, decode, parse_time
from martech.lib import clock

ROWS = 2000
BYTES = 2**20
_NO_TIME = (b"", b"null")


class Target(NamedTuple):
    """Where rows go: the source, what its rules refuse, and the log's partitions. `prefix` begins the rows' own ids."""

    source_id: int
    prefix: str
    partitions: int
    max_bytes: int
    refused_calls: frozenset[str] = frozenset()


class Bad(NamedTuple):
    """A record that does not go in: its line, why, and its text."""

    line: int
    reason: str
    detail: str
    raw: bytes


@dataclass(slots=True)
class Portion:
    """What goes in together: events by partition, from byte `start` to `end`, before which there are `line` lines."""

    start: int
    end: int
    line: int
    received_us: int
    events: dict[int, list[Event]] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    rows: int = 0
    size: int = 0

    def message_ids(self) -> list[str]:
        """Return the ids of the messages, as the core sees them."""
        return [message_id_of(event) for events in self.events.values() for event in events]

    def leave_out(self, message_ids: Set[str]) -> None:
        """Leave out what is in already; it counts as a row that went in all the same."""
        for partition, events in self.events.items():
            self.events[partition] = [event for event in events if message_id_of(event) not in message_ids]

    def entries(self, source_id: int) -> list[tuple[int, bytes]]:
        """Return the entries for the log, by partition."""
        return [
            (partition, payload)
            for partition, events in self.events.items()
            if events
            for payload in payloads([Delivery(source_id, self.received_us, "", b"", b"", events)])
        ]


def message_id_of(event: Event) -> str:
    """Return a message's id: its own, or that of its line."""
    head = read_item(event.body).head
    own = None if head is None else head.message_id
    return own if isinstance(own, str) and own else event.message_id


def mapped(mapping: Mapping, layout: Layout) -> Callable[[Any], bytes]:
    """Return what makes a message of a record's cells or bytes."""
    if layout.file_format == "csv":
        return Mapper(mapping, layout.columns).of_row
    return bytes if mapping.whole else Mapper(mapping).of_object


def portions(
    records: Iterable[Record], message: Callable[[Any], bytes], target: Target, *, start: int, rows: int = ROWS
) -> Iterator[Portion]:
    """Give portions of up to `rows` records, or of about `BYTES`; the first one begins at the byte `start`."""
    now = Portion(start, start, 0, clock.now_us())
    judge = Judge(target, message)
    judge.begin(now.received_us)
    for record in records:
        judge.take(record, now)
        now.end, now.line = record.end, record.last
        if now.rows + len(now.bad) >= rows or now.size >= BYTES:
            yield now
            now = Portion(now.end, now.end, now.line, clock.now_us())
            judge.begin(now.received_us)
    if now.end > now.start:
        yield now


class Judge:
    """Says of each record whether the core will take it, and by which partition it goes."""

    def __init__(self, target: Target, message: Callable[[Any], bytes]) -> None:
        self._target, self._message = target, message
        self.begin(0)

    def begin(self, received_us: int) -> None:
        """Take the records that follow as received at that time."""
        self._delivery = Delivery(self._target.source_id, received_us, "", b"", b"", [])
        self._request = Request("", received_us, "")

    def take(self, record: Record, into: Portion) -> None:
        """Put a record where it belongs: among the events, or with its reason among the bad ones."""
        target = self._target
        try:
            event, item = self.judged(record)
        except UnusableValue as error:
            into.bad.append(Bad(record.line, error.code, error.message, record.raw))
            into.size += len(record.raw)
            return
        partition = partition_for(item, self._request, event.message_id, target.partitions)
        into.events.setdefault(partition, []).append(event)
        into.rows += 1
        into.size += len(event.body)

    def judged(self, record: Record) -> tuple[Event, Item]:
        """Return a record's event and what the collector makes of it; UnusableValue where the core would refuse it."""
        target = self._target
        if record.wrong:
            raise UnusableValue(record.wrong, code="unreadable_row")
        event = Event("", f"{target.prefix}{record.line}", 0, self._message(record.cells))
        item = read_item(event.body)
        kind = None if item.head is None else item.head.type
        # Most rows are plain, which costs a third of having the core look.
        if not (isinstance(kind, str) and is_plain(item, kind, target.max_bytes)):
            verdict = decode(event, self._delivery, max_bytes=target.max_bytes)
            if isinstance(verdict, Rejection):
                raise UnusableValue(verdict.detail, code=verdict.reason)
        if item.head is not None and not _has_time(item.head):
            # Taken, it would have happened now.
            raise UnusableValue(
                "The time cannot be read. Give ISO 8601, or seconds or milliseconds since 1970.", code="unreadable_time"
            )
        if kind in target.refused_calls:
            raise UnusableValue(f"The source may not call {kind}.", code="refused_call")
        return event, item


def _has_time(head: Head) -> bool:
    """Tell whether a message's time can be read; where it names none there is nothing to read."""
    given = time_of(head)
    return given is None or parse_time(given) is not None


def time_of(head: Head) -> Any:
    """Return when a message says that it happened, as the core reads it; None where it does not say."""
    for raw in (head.timestamp, head.original_timestamp):
        if bytes(raw) not in _NO_TIME:
            return msgspec.json.decode(raw)
    return None


def as_line(bad: Bad) -> bytes:
    """Return a bad record as a line of the errors' file."""
    text = bad.raw.decode("utf-8", "replace").rstrip("\r\n")
    return msgspec.json.encode({"line": bad.line, "reason": bad.reason, "detail": bad.detail, "text": text}) + b"\n"
