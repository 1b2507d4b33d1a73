"""Start the platform, play real purchases through it, and compare."""

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from martech.embedded import options as embedded_options
from martech.embedded import platform
from martech.embedded.failures import explained
from martech.embedded.platform import Platform
from martech.embedded.table import ready_block
from martech.lib.errors import ConfigurationError


class Command(BaseCommand):
    help = (
        "Start the platform as `up` does, send it the CDNOW purchases (69,659 of 23,570 customers) with the stock "
        "Segment SDK, and compare what it says with what the file says. It stays up afterwards; with DEMO_EXIT=1 or "
        "--exit it stops, with exit status 1 when anything differs."
    )
    # The database is not there yet.
    requires_system_checks: list[str] = []
    requires_migrations_checks = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--exit", action="store_true", default=settings.DEMO_EXIT, help="stop after the comparison")
        parser.add_argument(
            "--json",
            action="store_true",
            help="print the comparison as JSON; all other lines go to standard error",
        )

    def handle(self, **options: Any) -> None:
        _require_sdk()
        from martech.demo import cdnow
        from martech.demo.screen import Screen

        directory = embedded_options.load().data / "demo"
        with explained(directory):
            purchases = cdnow.read(cdnow.fetch(directory))
        stdout, screen = sys.stdout, Screen(sys.stderr if options["json"] else sys.stdout)
        sys.stdout = screen
        try:
            status = platform.run(lambda up: self._work(up, purchases, screen, stdout, options))
        finally:
            sys.stdout = stdout
        sys.exit(status)

    def _work(self, up: Platform, purchases: list, screen: Any, stdout: Any, options: dict) -> int | None:
        from martech.demo import play, report

        stage = play.Stage(url=up.url, config=settings.CONFIG, say=up.supervisor.say, screen=screen)
        played = play.play(stage, purchases)
        if options["json"]:
            print(json.dumps(report.as_document(played), indent=1), file=stdout, flush=True)
        up.supervisor.show(report.as_text(played, colours=screen.isatty()))
        if options["exit"]:
            return 0 if played.equal else 1
        up.supervisor.show(ready_block(up.options, up.access, colours=screen.isatty()))
        return None


def _require_sdk() -> None:
    try:
        import segment.analytics  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "The Segment SDK is not installed: start with `make demo`, or install requirements-demo.txt."
        ) from error
