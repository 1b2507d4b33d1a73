"""`manage.py create_api_key NAME --scopes SCOPES`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cdp import audit, keys
from martech.lib import clock
from martech.lib.errors import PermanentError


class Command(BaseCommand):
    help = "Create an API key and print it, alone, on standard output. It is shown this once."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("name", help="What the key is for")
        parser.add_argument("--scopes", required=True, help=f"Comma-separated, of: {', '.join(keys.SCOPES)}")
        parser.add_argument("--days", type=int, help="Days until it expires (default: never)")

    def handle(self, *, name: str, scopes: str, days: int | None, **_options: Any) -> None:
        """Create the key."""
        granted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
        expires_at = None if days is None else clock.now() + timedelta(days=days)
        try:
            key, secret = keys.create_api_key(name=name, scopes=granted, expires_at=expires_at)
        except PermanentError as error:
            raise CommandError(error.message) from error
        audit.record(actor=audit.commander(), action="api_key.create", object_type="apikey", object_id=key.pk,
                     detail={"name": name, "scopes": granted})  # fmt: skip
        self.stdout.write(secret)
