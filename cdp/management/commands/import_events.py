"""`manage.py import_events FILE --source NAME`: give a file's rows to the log, each once."""

from __future__ import annotations

import json
import signal
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cdp import audit
from cdp.imports import aside, ledger
from cdp.imports.errors import LocalErrors
from cdp.imports.files import LocalFile
from cdp.imports.mapping import Mapping, complete
from cdp.imports.preview import SHOWN, Preview, preview
from cdp.imports.records import FORMATS, Layout, UnusableFile
from cdp.imports.running import Progress as Step
from cdp.imports.running import run, target_of
from cdp.models import EventImport, Source
from martech.lib.errors import MartechError

COLUMNS = (
    TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"),
    TimeRemainingColumn(),
)  # fmt: skip


class Command(BaseCommand):
    help = (
        "Give the rows of a CSV or NDJSON file to the log, each once, however often it is started or killed. "
        "Exit status: 0 all rows are in the log, 1 some could not be read (the errors' file names them), "
        "or the import could not begin, 130 it was stopped and goes on when it is started again."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="CSV with a header, or one JSON object a line; may end in .gz")
        parser.add_argument("--source", required=True, help="The name of the source whose events they are")
        parser.add_argument("--format", choices=FORMATS, help="Default: what the file's name says")
        parser.add_argument("--map", action="append", default=[], type=_pair, metavar="COLUMN=FIELD",
                            help="Such as when=timestamp, total=properties.order.total, secret=-")  # fmt: skip
        parser.add_argument("--set", action="append", default=[], type=_constant, metavar="FIELD=TEXT",
                            help="What every message says, such as type=track")  # fmt: skip
        parser.add_argument("--types", action="append", default=[], type=_pair, metavar="COLUMN=TYPE",
                            help="text (the default of CSV), number, boolean, time or json")  # fmt: skip
        parser.add_argument("--only-mapped", action="store_true", help="Leave out columns that are not mapped")
        parser.add_argument("--time-zone", default="UTC", help="Of times that name none, such as Europe/Berlin")
        parser.add_argument("--time-format", default="", help="Of times that are not ISO 8601, such as %%d.%%m.%%Y")
        parser.add_argument("--delimiter", default="", help="Default: the one of , ; tab | that parts the first rows")
        parser.add_argument("--encoding", default="utf-8", help="Such as latin-1 or cp1252")
        parser.add_argument("--preview", nargs="?", type=int, const=SHOWN, metavar="N",
                            help=f"Show the first messages ({SHOWN}), check 1,000 rows; write nothing")  # fmt: skip
        parser.add_argument("--json", action="store_true", help="Print one JSON object at the end")

    def handle(self, **options: Any) -> None:
        try:
            with closing(LocalFile(options["file"], options["format"] or "")) as file:
                self._handle(file, options)
        except MartechError as error:
            raise CommandError(error.message) from error

    def _handle(self, file: LocalFile, options: dict[str, Any]) -> None:
        source = _source(options["source"])
        ledger.check_source(source)
        if options["preview"] is not None:
            self._preview(file, source, options)
            return
        found = ledger.known(sha256=file.sha256(), source=source)
        if found is not None and found.status == ledger.Status.DONE:
            self._report(found, options, begun=None)
            return
        begun = time.monotonic()
        found = self._begin(file, source, options, found)
        try:
            done = self._run(file, found, quiet=options["json"] or not sys.stderr.isatty())
        except UnusableFile as error:
            ledger.set_status(found, ledger.Status.STOPPED, trouble=error.message)
            raise
        ledger.set_status(found, ledger.Status.DONE if done else ledger.Status.STOPPED)
        self._report(found, options, begun=begun)
        if not done:
            sys.exit(130)
        if found.errors:
            sys.exit(1)

    def _begin(
        self, file: LocalFile, source: Source, options: dict[str, Any], found: EventImport | None
    ) -> EventImport:
        mapping = _mapping(options)
        # Nothing said means as before.
        if found is not None and found.offset and mapping == Mapping():
            mapping = ledger.mapping_of(found)
        else:
            mapping = complete(mapping, file.layout(mapping))
        return ledger.begin(
            sha256=file.sha256(), source=source, mapping=mapping, author=audit.commander(), name=file.path.name[-255:],
            file_format=file.file_format, size=file.size,
        )  # fmt: skip

    def _run(self, file: LocalFile, found: EventImport, *, quiet: bool) -> bool:
        with file.content() as stream, _stoppable() as stop, _shown(file, found, quiet=quiet) as tell:
            errors = LocalErrors(file.errors_path(aside.folder()))
            done = run(found, stream, errors, config=settings.CONFIG, stop=stop, tell=tell)
        file.check_unchanged()
        return done

    def _preview(self, file: LocalFile, source: Source, options: dict[str, Any]) -> None:
        asked = _mapping(options)
        layout = file.layout(asked)
        mapping = complete(asked, layout)
        target = target_of(EventImport(sha256=file.sha256(), source=source), settings.CONFIG)
        with file.content() as stream:
            found = preview(stream, layout, mapping, target, shown=options["preview"])
        if options["json"]:
            self.stdout.write(json.dumps(_document(found, mapping), ensure_ascii=False))
        else:
            self._show(found, layout, mapping)

    def _show(self, found: Preview, layout: Layout, mapping: Mapping) -> None:
        write = self.stdout.write
        for column in layout.columns:
            to = mapping.columns.get(column) or ("left out" if mapping.only_mapped else "properties, or traits")
            write(f"{column} → {to} ({mapping.types.get(column, 'text')})")
        for message in found.messages:
            write(json.dumps(message, ensure_ascii=False, indent=2))
        write(f"{found.checked} rows checked: {found.good} would go in")
        for reason, number in found.reasons.most_common():
            example = found.examples[reason]
            write(f"{number} would not: {reason}, as in line {example.line}: {example.detail}")
        for hint in found.hints:
            write(hint)

    def _report(self, found: EventImport, options: dict[str, Any], *, begun: float | None) -> None:
        if options["json"]:
            self.stdout.write(json.dumps(ledger.document(found)))
            return
        if begun is None:
            self.stdout.write(
                f"Already imported on {found.finished_at:%Y-%m-%d %H:%M} UTC, {found.events:,} rows: nothing to do. To "
                "take its rows in as other events, give them other ids in a column for messageId: that is another file."
            )
            return
        word = "in the log" if found.status == ledger.Status.DONE else "in the log so far; start it again to go on"
        seconds = time.monotonic() - begun
        self.stdout.write(f"{found.events:,} rows {word} ({seconds:.1f} s)")
        if found.errors:
            self.stdout.write(f"{found.errors:,} could not be read: {found.errors_path}")


def _pair(text: str) -> tuple[str, str]:
    """Part at the last `=`: a column's name may hold one."""
    left, sign, right = text.rpartition("=")
    if not (left and sign):
        raise ArgumentTypeError(f"{text!r} is not of the form name=value")
    return left, right


def _constant(text: str) -> tuple[str, str]:
    left, sign, right = text.partition("=")
    if not (left and sign):
        raise ArgumentTypeError(f"{text!r} is not of the form field=text")
    return left, right


def _mapping(options: dict[str, Any]) -> Mapping:
    delimiter = "\t" if options["delimiter"] in {"tab", "\\t"} else options["delimiter"]
    if len(delimiter) > 1:
        raise CommandError("A delimiter is one character, or tab.")
    return Mapping(
        columns=dict(options["map"]), constants=dict(options["set"]), types=dict(options["types"]),
        only_mapped=options["only_mapped"], time_zone=options["time_zone"], time_format=options["time_format"],
        encoding=options["encoding"], delimiter=delimiter,
    )  # fmt: skip


def _source(name: str) -> Source:
    found = Source.objects.filter(name=name).first()
    if found is None:
        raise CommandError(f"There is no source '{name}'. Make one: manage.py create_source NAME.")
    return found


def _document(found: Preview, mapping: Mapping) -> dict[str, Any]:
    return {
        "messages": found.messages, "checked": found.checked, "good": found.good, "reasons": dict(found.reasons),
        "hints": found.hints, "columns": mapping.columns,
    }  # fmt: skip


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Have the first SIGINT or SIGTERM ask for an end after the rows under way, and the second end it at once."""
    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _shown(file: LocalFile, found: EventImport, *, quiet: bool) -> Iterator[Callable[[Step], None]]:
    """Show how far it is, on a terminal: rows a second, the share of the file, the time that is left."""
    console = Console(stderr=True)
    with Progress(*COLUMNS, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task(escape(file.path.name), total=file.size or None, rate="")
        start, first = time.monotonic(), found.events

        def tell(step: Step) -> None:
            rate = (step.events - first) / max(0.001, time.monotonic() - start)
            bar.update(task, completed=file.position(step.offset), rate=f"{step.events:,} rows, {rate:,.0f}/s")
            if step.waiting:
                console.print(escape(step.waiting)) if not quiet else print(step.waiting, file=sys.stderr, flush=True)

        yield tell
