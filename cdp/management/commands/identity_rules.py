"""`manage.py identity_rules`: show the rules of who is who, say what others would do, publish and apply them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cdp import audit, identity_rules
from cdp.models import IdentityRules
from martech.lib.errors import MartechError

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
NEEDS_FILE = ("dry-run", "publish")


class Command(BaseCommand):
    help = "Show the rules of who is who (`show`), say what those of a file would do (`dry-run`), publish or apply them"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("what", nargs="?", default="show", choices=["show", "dry-run", "publish", "apply"])
        parser.add_argument("file", nargs="?", help="Rules as JSON, as `show` prints them; - reads them from the input")
        parser.add_argument("--note", default="", help="Why, for those who come later")
        parser.add_argument("--json", action="store_true", help="Print one JSON object")

    def handle(self, **options: Any) -> None:
        what, quiet = options["what"], options["json"] or not self.stdout.isatty()
        if (what in NEEDS_FILE) != bool(options["file"]):
            wants = "needs a file with the rules" if what in NEEDS_FILE else "takes no file"
            raise CommandError(f"identity_rules {what} {wants}. Make one: identity_rules show > rules.json")
        try:
            if what == "show":
                self.stdout.write(json.dumps(identity_rules.current().namespaces, indent=2, ensure_ascii=False))
            elif what == "dry-run":
                with _progress("looking", quiet=quiet) as advance:
                    outcome = identity_rules.dry_run(_rules(options["file"]), progress=advance)
                self.stdout.write(json.dumps(asdict(outcome)) if options["json"] else str(outcome))
            else:
                self._apply(options, quiet=quiet)
        except MartechError as error:
            raise CommandError(error.message) from error

    def _apply(self, options: dict[str, Any], *, quiet: bool) -> None:
        """Publish the rules of a file, if one is given, and apply what is published."""
        if options["file"]:
            author = audit.commander()
            draft = identity_rules.draft(_rules(options["file"]), author=author, note=options["note"])
            identity_rules.publish(draft.pk, author=author)
        with _progress("applying", quiet=quiet) as advance:
            row = identity_rules.apply(progress=advance)
        if options["json"]:
            self.stdout.write(json.dumps({"version": row.pk, "status": row.status, **_done(row)} if row else None))
        elif row is None:
            self.stdout.write("Nothing waits to be applied, or a worker is at it.")
        else:
            done = _done(row)
            self.stdout.write(f"version {row.pk} applied: {done['split']:,} split, {done['merged']:,} merged")


def _done(row: IdentityRules) -> dict[str, int]:
    return {name: row.progress[name] for name in ("looked_at", "of", "split", "merged")}


def _rules(file: str) -> Any:
    try:
        return json.loads(Path("/dev/stdin" if file == "-" else file).read_text())
    except (OSError, ValueError) as error:
        raise CommandError(f"The rules cannot be read from {file}: {error}") from error


@contextmanager
def _progress(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show how many profiles are done, on a terminal."""
    with Progress(*COLUMNS, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
