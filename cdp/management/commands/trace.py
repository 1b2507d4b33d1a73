"""`manage.py trace MESSAGE_ID`: follow one event."""

from __future__ import annotations

import json
import sys
from typing import IO, Any, cast

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cdp import trace as tracing
from cdp.trace import Letter, Stored, Trace
from martech.lib.errors import PermanentError

COLOURS = {
    tracing.STORED: "green", tracing.WAITING: "yellow", tracing.REPLAYING: "yellow", tracing.QUARANTINED: "red",
    tracing.REPLAYED: "green", tracing.UNKNOWN: "red",
}  # fmt: skip


class Command(BaseCommand):
    help = "Follow one event: where it is, what it did, or why it is not there. Fails when nothing is known of it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("message_id", help="As the sender gave it")
        parser.add_argument("--source", help="Its name; all sources without it")
        parser.add_argument("--deep", action="store_true", help="Read the whole event stream, newest first, if need be")
        parser.add_argument("--json", action="store_true", help="Print one JSON object")

    def handle(self, *, message_id: str, source: str | None, deep: bool, **options: Any) -> None:
        try:
            found = tracing.trace(message_id, source=source, deep=deep)
        except PermanentError as error:
            raise CommandError(error.message) from error
        if options["json"]:
            self.stdout.write(json.dumps(tracing.document(found), indent=2, default=str, ensure_ascii=False))
        else:
            self._show(found)
        if not found.found:
            sys.exit(1)

    def _show(self, found: Trace) -> None:
        console = Console(file=cast(IO[str], self.stdout), highlight=False)
        console.print(f"{escape(found.message_id)}: [{COLOURS[found.status]}]{found.status}[/]")
        for line in found.explanation:
            console.print(f"  {escape(line)}")
        for event in found.events:
            console.print(_event_table(event))
        for letter in found.letters:
            console.print(_letter_table(letter))


def _table(title: str, rows: list[tuple[str, Any]]) -> Table:
    table = Table("", "", title=title, title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(name, escape(value if isinstance(value, str) else json.dumps(value, default=str)))
    return table


def _event_table(event: Stored) -> Table:
    done = event.effects
    rows: list[tuple[str, Any]] = [
        ("source", event.source),
        ("what", f"{event.event_type} {event.name}".strip()),
        ("received", f"{event.received_at:%Y-%m-%d %H:%M:%S.%f} UTC"),
        ("happened", f"{event.occurred_at:%Y-%m-%d %H:%M:%S.%f} UTC"),
        ("as sent", event.original_timestamp or "no time was sent"),
        ("processed", f"{event.ingested_at:%Y-%m-%d %H:%M:%S.%f} UTC"),
        ("log", f"partition {event.log_partition}, position {event.log_position}"),
        ("trace context", event.trace_parent or "none"),
        ("flags", ", ".join(event.flags) or "none"),
        ("identifiers", ", ".join(f"{one['namespace']}:{one['value']}" for one in event.identifiers)),
        ("profile", f"{event.profile_name} ({event.profile_id})" if event.profile_id else "none"),
        *([("profile then", str(event.profile_then))] if event.profile_then != event.profile_id else []),
        *((f"counts for {one.name}", f"{_json(one.contributed)} (now {_json(one.value)})") for one in done.computed),
        *((f"sets {one.name}", f"{_json(one.value)}: {_outcome(one)}") for one in done.given),
        *((one.kind, f"{one.reason}, decision {one.id}") for one in done.decisions),
        *((_edge_kind(one.refused), f"{_named(one.left)} ~ {_named(one.right)}") for one in done.edges),
        ("properties", event.properties),
    ]
    return _table(f"event {event.event_id} ({event.message_id})", rows)


def _outcome(one: Any) -> str:
    return {
        "current": "counts",
        "older": f"overtaken by {one.winner}, {one.won_at}",
        "combined": "counts together with what others said",
        "misfit": "does not fit the trait's merge policy",
        "refused": "the source may not set it",
        "gone": "the profile no longer has it",
    }[one.outcome]


def _edge_kind(refused: str) -> str:
    return f"kept apart ({refused})" if refused else "joins"


def _named(identifier: dict[str, str]) -> str:
    return f"{identifier['namespace']}:{identifier['value']}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _letter_table(letter: Letter) -> Table:
    rows = [
        ("source", letter.source),
        ("status", letter.status),
        ("reason", f"{letter.reason}: {letter.detail}"),
        ("received", f"{letter.received_at:%Y-%m-%d %H:%M:%S.%f} UTC"),
        ("log", f"partition {letter.log_partition}, position {letter.log_position}"),
        ("given back", f"{letter.replayed_at:%Y-%m-%d %H:%M:%S} UTC" if letter.replayed_at else "never"),
        ("put aside again", str(letter.attempts)),
    ]
    return _table(f"dead letter {letter.id}", rows)
