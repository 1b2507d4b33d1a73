"""`manage.py replay`: rebuild people from events and archive, and compare with what PostgreSQL holds, or mend that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cdp import lookup, repair, replay
from cdp.management.arguments import instant, source_id
from cdp.repair import Repaired
from cdp.replay import Difference, Filter, Rebuilt, Report
from martech.lib.errors import MartechError

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
FILTERS = ("source", "since", "until", "event", "profile")


class Command(BaseCommand):
    help = (
        "Rebuild people from the event stream and the archive, in memory, and compare with what PostgreSQL holds. "
        "With a filter there is nothing to compare with: it prints what those events alone would make, with --profile "
        "beside what is held of the profile. Nothing is written but with --repair, which brings people to what events "
        "say: after damage, and after a change of a merge policy, whose older values it brings under the new one."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--verify", action="store_true", help="Exit status 1 if there is a difference")
        parser.add_argument(
            "--repair",
            action="store_true",
            help="Write what events say where PostgreSQL says otherwise; processors may run. Exit status 1 if some "
            "of it is left. --verify says before what it would do",
        )
        parser.add_argument("--profile", default="", help="Its id or an identifier, such as user_id:u1")
        parser.add_argument("--source", default="", help="Its name")
        parser.add_argument("--since", type=instant, help="Happened then or later: 2026-11-24T08:00 (UTC)")
        parser.add_argument("--until", type=instant, help="Happened before")
        parser.add_argument("--event", default="", help="A name, or a type such as identify")
        parser.add_argument(
            "--identifiers-per-pass",
            type=int,
            default=replay.IDENTIFIERS_PER_PASS,
            help=f"How many are in memory at a time, some KiB each (default: {replay.IDENTIFIERS_PER_PASS})",
        )
        parser.add_argument(
            "--examples", type=int, default=replay.EXAMPLES, help="Differences of each kind that are told whole"
        )
        parser.add_argument("--json", action="store_true", help="Print one JSON object")

    def handle(self, **options: Any) -> None:
        filtered = any(options[name] for name in FILTERS)
        if (options["verify"] or options["repair"]) and filtered:
            raise CommandError(
                "Some events alone cannot be compared with the truth: leave --verify and --repair or the filters out."
            )
        if options["verify"] and options["repair"]:
            raise CommandError("--verify writes nothing: leave it or --repair out.")
        if options["identifiers_per_pass"] < 1:
            raise CommandError("--identifiers-per-pass is 1 or more.")
        found: Rebuilt | Report | Repaired
        try:
            with _progress(quiet=options["json"] or not self.stdout.isatty()) as bars:
                found = _rebuilt(options, bars.advance) if filtered else _compared(options, bars)
        except MartechError as error:
            raise CommandError(error.message) from error
        self.stdout.write(_document(found) if options["json"] else _told(found))
        if isinstance(found, Repaired) and found.left:
            sys.exit(1)
        if isinstance(found, Report) and options["verify"] and found.differences:
            sys.exit(1)


def _compared(options: dict[str, Any], bars: Bars) -> Report | Repaired:
    given = {"per_pass": options["identifiers_per_pass"], "most": options["examples"], "advance": bars.advance}
    return repair.repair(**given, told=bars.told) if options["repair"] else replay.verify(**given)


def _rebuilt(options: dict[str, Any], advance: Callable[[int], object]) -> Rebuilt:
    wanted = Filter(
        source_id=source_id(options["source"]), since=options["since"], until=options["until"], event=options["event"]
    )
    return replay.rebuild(
        wanted,
        profile_id=_profile_id(options["profile"]),
        per_pass=options["identifiers_per_pass"],
        advance=advance,
    )


def _document(found: Rebuilt | Report | Repaired) -> str:
    return _json(found if isinstance(found, Rebuilt) else found.document())


def _told(found: Rebuilt | Report | Repaired) -> str:
    if isinstance(found, Rebuilt):
        return _made(found)
    return _reported(found) if isinstance(found, Report) else _repaired(found)


def _repaired(found: Repaired) -> str:
    lines = [_reported(found.report)]
    lines += [f"written: {found.written[kind]:,} {kind}" for kind in repair.WRITTEN if found.written[kind]]
    lines += [f"left: {number:,} {kind}" for kind, number in sorted(found.left.items())]
    return "\n".join(lines if found.written or found.left else [*lines, "nothing to repair"])


def _reported(report: Report) -> str:
    lines = [
        f"{report.events:,} events ({report.archived:,} of them archived) of {report.identifiers:,} identifiers",
        f"{report.profiles:,} profiles, {report.accounts:,} accounts, {report.links:,} links between identifiers",
    ]
    if report.not_comparable:
        lines.append(
            f"history starts at {report.history_starts:%Y-%m-%d}: {report.not_comparable:,} identifiers are older, "
            "and were not compared"
        )
    if report.outdated:
        lines.append(
            f"{report.outdated:,} identifiers have traits that another merge policy kept, until they are told anew"
        )
    lines += [f"{kind}: {report.differences[kind]:,} differ" for kind in replay.KINDS if report.differences[kind]]
    lines += [_example(one) for one in report.examples]
    return "\n".join(lines if report.differences else [*lines, "no differences"])


def _example(one: Difference) -> str:
    return f"  {one.kind} of {one.where}\n    held:    {_json(one.held)}\n    rebuilt: {_json(one.rebuilt)}"


def _made(found: Rebuilt) -> str:
    lines = [f"{found.events:,} events ({found.archived:,} of them archived) of {found.identifiers:,} identifiers"]
    if found.held is None:
        lines += [f"computed traits of all together: {_json(found.computed_traits)}"]
    for name in found.held or ():
        lines.append(f"{name.replace('_', ' ')}\n    held:    {_json(found.held[name])}")  # type: ignore[index]
        lines.append(f"    rebuilt: {_json(getattr(found, name))}")
    return "\n".join(lines)


def _json(value: Any) -> str:
    return replay.shown(value)


class Bars(NamedTuple):
    """What hears how many events were read, and how many rows written."""

    advance: Callable[[int], None]
    told: Callable[[int], None]


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Bars]:
    """Show on a terminal how many events were read, and how many rows written once there are some."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint FROM pg_class"
                       " JOIN pg_inherits ON inhrelid = oid WHERE inhparent = 'event_stream'::regclass")  # fmt: skip
        expected = cursor.fetchone()[0]
    with Progress(*COLUMNS, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        events = bar.add_task("events", total=expected or None)
        rows = bar.add_task("written", total=None, visible=False)
        yield Bars(
            lambda number: bar.advance(events, number),
            lambda number: bar.update(rows, advance=number, visible=True),
        )


def _profile_id(reference: str) -> UUID | None:
    if not reference:
        return None
    found = lookup.by_reference(reference)
    if found is None:
        raise CommandError(f"There is no profile {reference!r}. Give an id, or namespace:value.")
    return found
