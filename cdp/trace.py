"""Following one event: where it is, what was made of it, and what it did; or why it is not there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime
from typing import Any
from uuid import UUID

from cdp import lookup, masking, recorded, timeline
from cdp.effects import Effects, effects, load_rules
from cdp.models import DeadLetter, DuplicateGeneration, Identifier, Profile, Source
from cdp.processing.decode import Message
from cdp.processing.identity import NOBODY
from cdp.processing.identity import Identifier as Pair
from cdp.processing.pipeline import REUSED
from cdp.processing.rules import Rules
from cdp.waiting import Look, Scan, Waiting
from martech.lib import clock
from martech.lib.errors import PermanentError

STORED, WAITING, REPLAYING, QUARANTINED, REPLAYED, UNKNOWN = (
    "stored", "waiting", "replaying", "quarantined", "replayed", "unknown",
)  # fmt: skip
# More of one id than anybody can look at.
MOST_EVENTS = 50
MOST_LETTERS = 50


@dataclass(frozen=True, slots=True)
class Stored:
    """An event in the stream. `profile_then` is whose it was when it was processed, `profile_id` whose it is now."""

    event_id: int
    source: str
    message_id: str
    event_type: str
    name: str
    properties: Any
    context: Any
    identifiers: list[dict[str, str]]
    received_at: datetime
    occurred_at: datetime
    original_timestamp: str | None
    ingested_at: datetime
    flags: list[str]
    trace_parent: str | None
    log_partition: int | None
    log_position: str | None
    profile_then: UUID | None
    profile_id: UUID | None
    profile_name: str
    effects: Effects


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter of the event."""

    id: int
    source: str
    status: str
    reason: str
    detail: str
    received_at: datetime
    replayed_at: datetime | None
    attempts: int
    log_partition: int | None
    log_position: str | None


@dataclass(frozen=True, slots=True)
class Trace:
    """All that is known of a message id. `status` is the best of it, `explanation` says it in sentences.

    `scan` is what was found in the log, None where that was not looked into. `sources` are names by id.
    """

    message_id: str
    status: str
    explanation: list[str]
    events: list[Stored] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    scan: Scan | None = None
    sources: dict[int, str] = field(default_factory=dict)

    @property
    def found(self) -> bool:
        """Whether anything is known of it."""
        return self.status != UNKNOWN


class UnknownSource(PermanentError):
    """No source has that name."""

    code = "unknown_source"


def trace(message_id: str, *, source: str | None = None, deep: bool = False) -> Trace:
    """Return what is known of a message id, of one source (by its name) or of all; UnknownSource.

    An event is found for as long as duplicates are remembered; `deep` then reads the event stream, newest
    partition first, until it is found.
    """
    if "\0" in message_id or not _is_text(message_id):
        return Trace(message_id, UNKNOWN, ["No message id can be like this: it cannot be stored."])
    sources = _sources(source)
    # From here on nothing that is processed meanwhile is missed.
    with closing(Look()) as look:
        rows, letters = recorded.remembered(message_id, sources), _letters(message_id, sources)
        scan = look.scan(message_id) if not rows or any(one.status == REPLAYING for one in letters) else None
    if scan:
        scan = Scan([one for one in scan.found if one.source_id in sources], scan.entries, scan.trouble)
    searched = None
    if not rows and not (scan and scan.found):
        rows = recorded.remembered(message_id, sources)  # processed, and trimmed from the log, while we looked
        if not rows and deep:
            rows, searched = recorded.searched(message_id, sources)
    rules = load_rules() if rows else None
    events = [_stored(row, sources, rules) for row in rows[:MOST_EVENTS] if rules]
    status = _status(events, letters, scan)
    found = Trace(message_id, status, [], events, letters, scan, sources)
    return replace(found, explanation=list(_explained(found, searched, deep=deep)))


def _is_text(message_id: str) -> bool:
    try:
        return bool(message_id.encode())
    except UnicodeEncodeError:
        return False


def _sources(name: str | None) -> dict[int, str]:
    rows = Source.objects.filter(**({"name": name} if name else {}))
    found = dict(rows.values_list("pk", "name"))
    if name and not found:
        raise UnknownSource(f"There is no source {name!r}. Check its name, or leave it out.")
    return found


def _letters(message_id: str, sources: dict[int, str]) -> list[Letter]:
    rows = DeadLetter.objects.filter(message_id=message_id[:255], source_id__in=sources).defer("delivery")
    return [
        Letter(
            row.pk, sources[row.source_id], row.status, row.reason, row.detail, row.received_at, row.replayed_at,
            row.attempts, row.log_partition, row.log_position,
        )
        for row in rows.order_by("pk")[:MOST_LETTERS]
    ]  # fmt: skip


def _stored(row: recorded.Row, sources: dict[int, str], rules: Rules) -> Stored:
    # An unmerge moves identifiers: whose the anchor is, is whose the event is.
    holder = Identifier.objects.filter(pk=row.anchor_id).values_list("profile_id", flat=True).first()
    now = holder or (lookup.survivor(row.profile_id) if row.profile_id else None)
    pairs = json.loads(row.identifiers)
    identifiers = [{"namespace": namespace, "value": value} for namespace, value in pairs]
    profile = Profile.objects.filter(pk__in=[now]).only("id", "traits", "identity_graph").first()
    return Stored(
        row.event_id, sources[row.source_id], row.message_id, row.event_type, row.name,
        timeline.data(row.properties), timeline.data(row.context), identifiers, row.received_at, row.occurred_at,
        row.original_timestamp, row.ingested_at, row.flags, row.trace_parent, row.log_partition, row.log_position,
        row.profile_id, now, profile.display_name if profile else "",
        effects(_message(row, pairs), rules, anchor_id=row.anchor_id,
                profiles=list({one for one in (row.profile_id, now) if one}), now=now),
    )  # fmt: skip


def _message(row: recorded.Row, pairs: Sequence[Sequence[str]]) -> Message:
    """Return the message as the core had it, as far as its effects need it."""
    identifiers = [Pair(*pair) for pair in pairs]
    return Message(
        source_id=row.source_id, type=row.event_type, name=row.name, message_id=row.message_id,
        anchor=identifiers[0] if identifiers else NOBODY, identifiers=identifiers, alias_of="",
        properties=row.properties.encode(), context=b"{}",
        extra=b"", occurred_us=clock.to_us(row.occurred_at), original_timestamp=row.original_timestamp,
        received_us=clock.to_us(row.received_at), flags=tuple(row.flags), id_hash=b"", payload_hash=0,
    )  # fmt: skip


def _status(events: Sequence[Stored], letters: Sequence[Letter], scan: Scan | None) -> str:
    statuses = {letter.status for letter in letters}
    if events:
        return STORED
    if scan and scan.found:
        return WAITING
    if DeadLetter.Status.REPLAYING in statuses:
        return REPLAYING
    if DeadLetter.Status.NEW in statuses:
        return QUARANTINED
    return REPLAYED if statuses else UNKNOWN


def _explained(found: Trace, searched: date | None, *, deep: bool) -> Iterator[str]:
    if found.events:
        yield from _told_of_stored(found.message_id, found.events)
    for one in found.scan.found if found.scan else ():
        yield _told_of_waiting(one)
    for letter in found.letters:
        yield _told_of_letter(letter)
    if not found.found:
        yield "Nothing is known of it: it was never received, as far as we know."
    if found.status in {UNKNOWN, REPLAYED}:
        yield from _told_of_memory(searched, deep=deep)
    if found.scan and not found.scan.found:
        looked = f"Nothing of it waits in the log ({found.scan.entries} entries were looked into)."
        yield f"{looked} {found.scan.trouble}".strip()
    if not found.found:
        yield (
            "What is refused at the door (an answer other than 2xx) is not recorded. Check the write key, the answer"
            " the SDK got, and whether the SDK flushed before its program ended."
        )


def _told_of_stored(message_id: str, events: Sequence[Stored]) -> Iterator[str]:
    yield "Copies of it that come later are dropped, and not recorded one by one."
    if len({event.source for event in events}) > 1:
        yield "Several sources have used this id: to each it is an event of its own."
    for event in events:
        if REUSED in event.flags and event.message_id != message_id:
            yield f"The id was used again for something else, which is kept as {event.message_id}."


def _told_of_waiting(one: Waiting) -> str:
    again = f", given back by dead letter {one.letter_id}" if one.letter_id else ""
    return (
        f"It waits in the log{again}: partition {one.partition}, position {one.position},"
        f" {one.before} entr{'y' if one.before == 1 else 'ies'} before it. Is a processor running?"
    )


def _told_of_letter(letter: Letter) -> str:
    times = f", and {letter.attempts} more time{'s' if letter.attempts > 1 else ''}" if letter.attempts else ""
    put = f"It was put aside as {letter.reason} (dead letter {letter.id}{times})"
    match letter.status:
        case DeadLetter.Status.NEW:
            return f"{put}. Mend the cause, then replay it."
        case DeadLetter.Status.REPLAYING:
            return f"{put} and given back to the log; it has not been processed since."
        case _:
            return f"{put}, and replayed since."


def _told_of_memory(searched: date | None, *, deep: bool) -> Iterator[str]:
    oldest = DuplicateGeneration.objects.order_by("pk").values_list("opened_at", flat=True).first()
    since = f"since {oldest:%Y-%m-%d %H:%M} UTC" if oldest else "so far"
    yield f"No event of this id was processed {since}; older ids are not remembered."
    if searched:
        yield f"Nor is it in the event stream, back to {searched:%Y-%m-%d}."
    elif not deep:
        yield "To look for an older one, read the whole event stream: manage.py trace MESSAGE_ID --deep."


def document(found: Trace, *, masked: bool = False, letters: bool = True) -> dict[str, Any]:
    """Return a trace as plain data; personal data is masked, and dead letters' details left out, if so asked."""
    waits = found.scan.found if found.scan else []
    shown = {
        "message_id": found.message_id,
        "status": found.status,
        "explanation": found.explanation,
        "events": [asdict(event) for event in found.events],
        "dead_letters": [asdict(letter) | ({} if letters else {"detail": ""}) for letter in found.letters],
        "waiting": [_named(one, found.sources) for one in waits],
    }
    return _masked(shown) if masked else shown


def _named(one: Waiting, sources: dict[int, str]) -> dict[str, Any]:
    row = asdict(one)
    return {"source": sources[row.pop("source_id")], **row}


def _masked(shown: dict[str, Any]) -> dict[str, Any]:
    return {
        **shown,
        "message_id": masking.addresses(shown["message_id"]),
        "explanation": [masking.addresses(line) for line in shown["explanation"]],
        "events": [_masked_event(event) for event in shown["events"]],
        "dead_letters": [letter | {"detail": masking.prose(letter["detail"])} for letter in shown["dead_letters"]],
    }


def _masked_event(event: dict[str, Any]) -> dict[str, Any]:
    done = event["effects"]
    return {
        **masking.event(event),
        "profile_name": masking.text(event["profile_name"]),
        "effects": {
            "computed": [_masked_trait(one, "contributed", "value") for one in done["computed"]],
            "given": [_masked_trait(one, "value") for one in done["given"]],
            "decisions": [one | {"identifiers": masking.identifiers(one["identifiers"])} for one in done["decisions"]],
            "edges": [one | dict(zip(("left", "right"), masking.identifiers([one["left"], one["right"]]), strict=True))
                      for one in done["edges"]],
        },
    }  # fmt: skip


def _masked_trait(row: dict[str, Any], *values: str) -> dict[str, Any]:
    name = row["name"]
    masked = {key: masking.traits({name: row[key]}) for key in values}
    return {**row, "name": masking.prose(name), **{key: next(iter(one.values())) for key, one in masked.items()},
            **({"winner": masking.addresses(row["winner"])} if "winner" in row else {})}  # fmt: skip
