"""Run a processor: take events from the log and make profiles of them."""

import signal
from contextlib import closing, suppress
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from cdp.engines.local import LocalEngine, parse_partitions
from cdp.log import open_log
from martech.lib.errors import MartechError, RetryableError


class Command(BaseCommand):
    help = "Process events from the log until stopped (SIGTERM or Ctrl-C)."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--partitions",
            default="",
            help="Partitions to hold, such as 0-3,6; default: all, shared with other processors",
        )
        parser.add_argument("--drain", action="store_true", help="Process what is in the log now, then end")

    def handle(self, *, partitions: str, drain: bool, **options: Any) -> None:
        config = settings.CONFIG
        try:
            chosen = parse_partitions(partitions, config.log_partitions) if partitions else None
            with closing(open_log(config.log_url, partitions=config.log_partitions)) as log:
                # A log that is away is waited for, one with wrong settings is not.
                with suppress(RetryableError):
                    log.check()
                self._process(LocalEngine(config, log, partitions=chosen), drain=drain)
        except MartechError as error:
            raise CommandError(error.message) from error

    def _process(self, engine: LocalEngine, *, drain: bool) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: engine.stop())
        if drain:
            self.stdout.write(f"{engine.drain()} events processed")
        else:
            engine.run()
