"""`manage.py archive_events`: write the closed partitions of events to Parquet files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Count, Sum
from django.utils import timezone
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cdp import archive
from cdp.models import ArchiveFile
from martech.lib.errors import MartechError

COLUMNS = (SpinnerColumn(), TextColumn("{task.description}: {task.completed:,.0f}"), TimeElapsedColumn())


class Command(BaseCommand):
    help = "Write the closed partitions of events to Parquet files, in the storage `archive`."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--verify", action="store_true", help="Also read all files; exit status 1 if one is damaged"
        )
        parser.add_argument("--json", action="store_true", help="Print one JSON object")

    def handle(self, *, verify: bool, **options: Any) -> None:
        quiet = options["json"] or not self.stdout.isatty()
        try:
            with _progress("events archived", quiet=quiet) as advance:
                written = archive.archive_closed(now=timezone.now(), advance=advance)
            with _progress("files read", quiet=quiet) as advance:
                damaged = archive.damaged(advance=advance) if verify else []
        except MartechError as error:
            raise CommandError(error.message) from error
        held = ArchiveFile.objects.aggregate(files=Count("id"), events=Sum("rows", default=0))
        if options["json"]:
            self.stdout.write(json.dumps({"tables": [asdict(one) for one in written], **held, "damaged": damaged}))
        else:
            self._say(written, held, damaged, verify=verify)
        if damaged:
            sys.exit(1)

    def _say(self, written: list[archive.Written], held: dict[str, int], damaged: list[str], *, verify: bool) -> None:
        for one in written:
            self.stdout.write(f"{one.table}: {one.events:,} events in {one.files} files")
        self.stdout.write(f"{held['files']:,} files hold {held['events']:,} events")
        for problem in damaged:
            self.stdout.write(problem)
        if verify and not damaged:
            self.stdout.write("all of them are as they were written")


@contextmanager
def _progress(what: str, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    with Progress(*COLUMNS, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task(what, total=None)
        yield lambda number: bar.advance(task, number)
