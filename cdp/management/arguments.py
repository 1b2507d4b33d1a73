"""What several commands take on their command line."""

from datetime import UTC, datetime

from django.core.management.base import CommandError
from django.utils.dateparse import parse_datetime

from cdp.models import Source


def instant(text: str) -> datetime:
    """Read a day or a time, in UTC where it names no zone."""
    found = parse_datetime(text) or parse_datetime(f"{text}T00:00")
    if found is None:
        raise ValueError(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def source_id(name: str) -> int | None:
    """Return the id of the source of that name, None for ""; CommandError where there is none."""
    if not name:
        return None
    found = Source.objects.filter(name=name).values_list("pk", flat=True).first()
    if found is None:
        raise CommandError(f"There is no source {name!r}. Check its name.")
    return found
