"""Look at the installation as a whole: settings, servers, migrations, processor, worker; say what to do."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import IO, Any, cast

from django.conf import settings
from django.core import checks
from django.core.management.base import BaseCommand, CommandParser
from rich.console import Console
from rich.table import Table

from martech import readiness, vitals
from martech.readiness import Part

PATIENCE = 3.0
COLOURS = {readiness.OK: "green", readiness.DEGRADED: "yellow", readiness.DOWN: "red"}


def found_by_checks() -> list[dict[str, str]]:
    """Return what the system checks find: all of ours, of Django's only what is an error."""
    messages = checks.run_checks(include_deployment_checks=True, databases=["default"])
    return [
        {"id": one.id or "", "message": str(one.msg), "hint": str(one.hint or "")}
        for one in messages
        if (one.id or "").startswith("martech.") or one.level >= checks.ERROR
    ]


class Command(BaseCommand):
    help = "Check the installation: settings, servers, migrations, processor and worker. Fails when anything is amiss."
    # It runs them itself, to go on where another command would stop.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--part", choices=readiness.NAMES, help="Look at this part alone, and fail when it is amiss"
        )
        parser.add_argument("--json", action="store_true", help="Print one JSON object instead of a table")

    def handle(self, **options: Any) -> None:
        found = [] if options["part"] else found_by_checks()
        parts = readiness.judge(vitals.gather(PATIENCE), partitions=settings.CONFIG.log_partitions)
        parts = [part for part in parts if options["part"] in (None, part.name)]
        status = readiness.overall(parts)
        if options["json"]:
            told = {"status": status, "parts": [asdict(part) for part in parts], "checks": found}
            self.stdout.write(json.dumps(told, indent=2))
        else:
            self._show(parts, found)
        if found or status != "ready":
            sys.exit(1)

    def _show(self, parts: list[Part], found: list[dict[str, str]]) -> None:
        table = Table("part", "state", "detail")
        for part in parts:
            table.add_row(part.name, f"[{COLOURS[part.status]}]{part.status}[/]", part.detail)
        for one in found:
            table.add_row("settings", "[red]wrong[/]", f"{one['message']} {one['hint']} ({one['id']})")
        Console(file=cast(IO[str], self.stdout)).print(table)
        self.stdout.write(
            "Something is amiss, see above." if found or any(p.status != "ok" for p in parts) else "All well."
        )
