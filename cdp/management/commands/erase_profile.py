"""`manage.py erase_profile REF`: erase a person from every store, and keep them out."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cdp import audit, privacy, subjects, suppressions
from cdp.models import Erasure
from martech.lib.errors import MartechError, RetryableError


class Command(BaseCommand):
    help = (
        "Erase a person, by any identifier, from every store, and keep them out from now on. On a terminal it first "
        "shows what that does, and asks."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("reference", help="A profile's id, or an identifier as namespace:value")
        parser.add_argument("--reason", default="", help="Why, for the record")
        parser.add_argument("--yes", action="store_true", help="Do not ask")
        parser.add_argument("--json", action="store_true", help="Print one JSON object; asks nothing")
        parser.add_argument("--lift", action="store_true", help="Let an erased identifier come back instead")
        parser.add_argument(
            "--wait", type=float, default=privacy.PATIENCE,
            help="Seconds to wait for what is in the log; then the worker goes on (default: %(default)s)",
        )  # fmt: skip

    def handle(self, **options: Any) -> None:
        """Erase the person, or lift their suppression."""
        try:
            if options["lift"]:
                self._lift(options["reference"])
            else:
                self._erase(options)
        except MartechError as error:
            raise CommandError(error.message) from error

    def _lift(self, reference: str) -> None:
        if not suppressions.lift(subjects.identifier(reference), actor=audit.commander()):
            raise CommandError("This identifier is not kept out. Check its namespace and spelling.")
        self.stdout.write("It may come back.")

    def _erase(self, options: dict[str, Any]) -> None:
        quiet = options["json"] or not self.stdout.isatty()
        if quiet and not options["yes"]:
            raise CommandError("Nobody can be asked here: add --yes.")
        if not options["yes"] and not self._agreed(options["reference"]):
            return
        erasure = privacy.request(
            reference=options["reference"], actor=audit.commander(), reason=options["reason"], enqueue=False
        )
        waits = ""
        try:
            erasure = privacy.run(erasure.pk, patience=options["wait"])
        except RetryableError as error:
            waits = error.message
        erasure.refresh_from_db()
        self._tell(erasure, waits, as_json=options["json"])

    def _agreed(self, reference: str) -> bool:
        found = privacy.consequences(reference)
        self.stdout.write("Erases for good, and keeps out from now on:")
        for identifier in found.subject.identifiers:
            self.stdout.write(f"  {identifier}")
        more = "+" if found.capped else ""
        self.stdout.write(f"{found.events}{more} events, {found.accounts} memberships in accounts; events of"
                          f" {found.others} other people may name them, and are cleaned")  # fmt: skip
        return input("Erase? [y/N] ").strip().lower() in {"y", "yes"}

    def _tell(self, erasure: Erasure, waits: str, *, as_json: bool) -> None:
        if as_json:
            told = {"id": str(erasure.pk), "status": erasure.status, "receipts": erasure.receipts, "waits": waits}
            self.stdout.write(json.dumps(told))
            return
        for store, receipt in sorted(erasure.receipts.items(), key=lambda one: one[1]["at"]):
            said = receipt.get("standing") or ", ".join(
                f"{number} {name.replace('_', ' ')}" for name, number in receipt.items() if name != "at"
            )
            self.stdout.write(f"{store.replace('_', ' ')}: {said}")
        self.stdout.write(f"Erasure {erasure.pk}: {erasure.status}" + (f". {waits}" if waits else ""))
