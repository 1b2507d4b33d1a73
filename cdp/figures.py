"""A few figures of the platform that cost nearly nothing, however much it holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Max, Sum
from psycopg import sql

from cdp import dead_letters, partitions
from cdp.models import Checkpoint, DeadLetter
from martech.lib import clock

# Below this an estimate says little, and counting costs little.
EXACT_BELOW = 10_000
_ROWS = "SELECT reltuples::bigint FROM pg_class WHERE oid = %s::regclass"
_COUNT = "SELECT count(*) FROM (SELECT 1 FROM customer_profiles LIMIT %s) AS first"
_ENDS = "SELECT min(event_id), max(event_id) FROM {table}"
_FIRST_FROM = "SELECT event_id, ingested_at FROM {table} WHERE event_id >= %s ORDER BY event_id LIMIT 1"


@dataclass(frozen=True, slots=True)
class Figures:
    """What the first page shows; `profiles_about` says that their number is an estimate."""

    profiles: int
    profiles_about: bool
    events_last_hour: int
    events: int
    processed_at: datetime | None
    new_letters: int
    new_letters_capped: bool


def read() -> Figures:
    """Return the figures of now."""
    (profiles,) = _row(_ROWS, "customer_profiles")
    about = profiles >= EXACT_BELOW
    taken = Checkpoint.objects.aggregate(events=Sum("events"), at=Max("updated_at"))
    cap = dead_letters.COUNT_CAP
    letters = DeadLetter.objects.filter(status=DeadLetter.Status.NEW)[: cap + 1].count()
    return Figures(
        profiles=profiles if about else _row(_COUNT, EXACT_BELOW)[0],
        profiles_about=about,
        events_last_hour=events_since(clock.now() - timedelta(hours=1)),
        events=taken["events"] or 0,
        processed_at=taken["at"],
        new_letters=min(letters, cap),
        new_letters_capped=letters > cap,
    )


def events_since(instant: datetime) -> int:
    """Return about how many events were stored since `instant`: event ids rise with the time of storing."""
    connection.ensure_connection()
    held = partitions.existing(connection.connection, partitions.EVENTS)
    return sum(_since(partition.name, instant) for partition in held if partition.end > instant.date())


def _since(table: str, instant: datetime) -> int:
    """Look by halves for a partition's first event since `instant`, and count from there."""
    name = sql.Identifier(table)
    first, last = _row(sql.SQL(_ENDS).format(table=name))
    if last is None:
        return 0
    low, high = first, last + 1
    while low < high:
        found = _row(sql.SQL(_FIRST_FROM).format(table=name), (low + high) // 2)
        if found is not None and found[1] < instant:
            low = found[0] + 1
        else:
            high = (low + high) // 2
    return last + 1 - low


def _row(query: str | sql.Composed, *values: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return cursor.fetchone()
