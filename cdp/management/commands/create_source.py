"""`manage.py create_source NAME [--kind KIND]`."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cdp import audit, keys
from cdp.models import Source
from martech.lib.errors import PermanentError


class Command(BaseCommand):
    help = "Create a source and print its write key, alone, on standard output."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("name", help="What the source is called; no other may be called so")
        parser.add_argument(
            "--kind",
            choices=Source.Kind.values,
            default=Source.Kind.SERVER,
            help="How far it is believed: browser and mobile keys are public (default: server)",
        )

    def handle(self, *, name: str, kind: str, **_options: Any) -> None:
        """Create the source."""
        try:
            source = keys.create_source(name=name, kind=kind)
        except PermanentError as error:
            raise CommandError(error.message) from error
        audit.record(actor=audit.commander(), action="source.create", object_type="source", object_id=source.pk,
                     detail={"name": name})  # fmt: skip
        self.stdout.write(source.write_key)
