"""`manage.py export_profile REF [--out FILE]`: everything on a person as JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cdp import audit, export
from martech.lib.errors import MartechError


class Command(BaseCommand):
    help = "Write everything on a person as one JSON document: from PostgreSQL, archive, dead letters and every holder."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("reference", help="A profile's id, or an identifier as namespace:value")
        parser.add_argument("--out", type=Path, help="The file to write; default: standard output")

    def handle(self, *, reference: str, out: Path | None, **options: Any) -> None:
        """Write the export."""
        try:
            pieces = export.joined(export.written(reference, actor=audit.commander()))
            if out is None:
                for piece in pieces:
                    self.stdout.write(piece.decode(), ending="")
                return
            with out.open("wb") as file:
                out.chmod(0o600)
                written = sum(file.write(piece) for piece in pieces)
        except MartechError as error:
            raise CommandError(error.message) from error
        except OSError as error:
            raise CommandError(f"{out} cannot be written: {error}. Give another file.") from error
        if sys.stderr.isatty():
            self.stderr.write(f"{written} bytes written to {out}")
