"""`manage.py replay_dead_letters`: give dead letters back to the log, after saying what would become of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import QuerySet
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cdp import audit, dead_letters, rehearsal
from cdp.management.arguments import instant, source_id
from cdp.models import DeadLetter
from martech.lib.errors import MartechError

FILTERS = ("ids", "reason", "source", "message_id", "since", "until")
COLUMNS = (SpinnerColumn(), TextColumn("{task.description}: {task.completed:,.0f} letters"), TimeElapsedColumn())


class Command(BaseCommand):
    help = "Give dead letters back to the log. On a terminal it first shows what would become of them, and asks."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--ids", type=_ids, help="Their numbers, such as 7,8,12")
        parser.add_argument("--reason", default="", help="Such as too_large")
        parser.add_argument("--source", default="", help="Its name")
        parser.add_argument("--message-id", default="", help="That of the event")
        parser.add_argument("--since", type=instant, help="Received then or later: 2026-11-24T08:00 (UTC)")
        parser.add_argument("--until", type=instant, help="Received before")
        parser.add_argument(
            "--limit", type=int, default=dead_letters.REPLAY_LIMIT, help="How many at the most, oldest first"
        )
        parser.add_argument("--dry-run", action="store_true", help="Only say what would become of them")
        parser.add_argument("--yes", action="store_true", help="Do not ask")
        parser.add_argument("--json", action="store_true", help="Print one JSON object; asks nothing")

    def handle(self, **options: Any) -> None:
        letters = self._letters(options)
        quiet = options["json"] or not self.stdout.isatty()
        if quiet and not (options["yes"] or options["dry_run"]):
            raise CommandError("Nobody can be asked here: add --yes, or --dry-run to see what would become of them.")
        try:
            if options["dry_run"] or not options["yes"]:
                found = self._rehearse(letters, options, quiet=quiet)
                if options["dry_run"] or not self._agreed(found):
                    return
            self._replay(letters, options, quiet=quiet)
        except MartechError as error:
            raise CommandError(error.message) from error

    def _letters(self, options: dict[str, Any]) -> QuerySet[DeadLetter]:
        if not any(options[name] for name in FILTERS):
            names = ", ".join(f"--{name.replace('_', '-')}" for name in FILTERS)
            raise CommandError(f"Say which letters: {names}.")
        return dead_letters.matching(
            ids=options["ids"],
            reason=options["reason"],
            source_id=source_id(options["source"]),
            message_id=options["message_id"],
            since=options["since"],
            until=options["until"],
        )

    def _rehearse(self, letters: QuerySet[DeadLetter], options: dict[str, Any], *, quiet: bool) -> rehearsal.Rehearsal:
        with self._progress("trying", quiet=quiet) as advance:
            found = rehearsal.rehearse(letters, limit=options["limit"], progress=advance)
        if options["json"]:
            self.stdout.write(json.dumps(asdict(found)))
            return found
        self.stdout.write(f"{found.matched} found{', and there are more' if found.more else ''}")
        self.stdout.write(f"{found.would_store} would be stored")
        if found.would_repeat:
            self.stdout.write(f"{found.would_repeat} are stored already, and would be dropped")
        for reason, number in found.would_reject.items():
            self.stdout.write(f"{number} would be put aside again: {reason}")
        return found

    def _agreed(self, found: rehearsal.Rehearsal) -> bool:
        if not found.matched:
            return False
        return input("Give them back to the log? [y/N] ").strip().lower() in {"y", "yes"}

    def _replay(self, letters: QuerySet[DeadLetter], options: dict[str, Any], *, quiet: bool) -> None:
        with self._progress("giving back", quiet=quiet) as advance:
            done = dead_letters.replay(letters, limit=options["limit"], progress=advance)
        audit.record(actor=audit.commander(), action="dead_letter.replay", object_type="deadletter", object_id="",
                     detail={"matched": done.matched, "replayed": done.replayed})  # fmt: skip
        if options["json"]:
            self.stdout.write(json.dumps(asdict(done)))
        else:
            self.stdout.write(f"{done.replayed} given back to the log{'; there are more' if done.more else ''}")

    @contextmanager
    def _progress(self, what: str, *, quiet: bool) -> Iterator[Callable[[int], None]]:
        """Show how many letters are done, on a terminal."""
        with Progress(*COLUMNS, console=Console(stderr=True), transient=True, disable=quiet) as bar:
            task = bar.add_task(what, total=None)
            yield lambda number: bar.advance(task, number)


def _ids(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
