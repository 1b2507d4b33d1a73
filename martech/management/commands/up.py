"""Start the whole platform and keep it up."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from martech.embedded import platform


class Command(BaseCommand):
    help = (
        "Start PostgreSQL, the Valkey servers, web, processor, worker and beat, and keep them running until Ctrl-C. "
        "DATABASE_URL, LOG_URL, BROKER_URL and CACHE_URL each replace one embedded server."
    )
    # The database is not there yet.
    requires_system_checks: list[str] = []
    requires_migrations_checks = False

    def handle(self, **options: Any) -> None:
        sys.exit(platform.run())
