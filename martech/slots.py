"""The slots of a schedule: the times at which a line is due, the same for every beat that looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple, cast
from uuid import UUID, uuid5

from celery.schedules import BaseSchedule, crontab, schedule
from django_celery_beat.clockedschedule import clocked

NAMESPACE = UUID("7f0d5a52-6f0a-4a53-9a3e-5b3c1f6a2d10")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# 29 February can be eight years back, across a turn of the century.
LOOK_BACK_DAYS = 8 * 366
# Beat wakes so much before the time it is told, and would look again and again until then.
EARLY_SECONDS = 0.01


class Due(NamedTuple):
    """Whether a line is due, and after how many seconds to look again."""

    is_due: bool
    next: float


class Slotted:
    """A schedule that is due when its present slot is later than its last run; `slot` is the one last looked at."""

    def __init__(self, schedule: BaseSchedule) -> None:
        self.schedule = schedule
        self.slot: datetime | None = None

    def now(self) -> datetime:
        """Return the time; beat orders its lines by it."""
        return datetime.now(UTC)

    def is_due(self, last_run_at: datetime) -> Any:
        """Tell whether the line is due, as Celery's schedules do."""
        now = self.now()
        self.slot = present(self.schedule, now)
        if not isinstance(self.schedule, schedule | crontab):
            return self.schedule.is_due(last_run_at)
        return Due(self.slot is not None and self.slot > last_run_at, _wait(self.schedule, now) + EARLY_SECONDS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and self.schedule == other.schedule

    __hash__ = None  # type: ignore[assignment]  # as Celery's schedules

    def __repr__(self) -> str:
        return repr(self.schedule)


def name(line: str, slot: datetime) -> str:
    """Return the slot of a line as text."""
    return f"{line}@{slot.astimezone(UTC).isoformat()}"


def task_id(slot: str) -> str:
    """Return the id of the task that a slot sends, whoever sends it."""
    return str(uuid5(NAMESPACE, slot))


def present(of: BaseSchedule, now: datetime) -> datetime | None:
    """Return the latest slot that is not after `now`; None for a crontab that had none in eight years."""
    if isinstance(of, schedule):
        every = cast(timedelta, of.run_every)
        return EPOCH + (now - EPOCH) // every * every
    if isinstance(of, crontab):
        return _latest(of, now)
    if isinstance(of, clocked):
        return cast(datetime, of.clocked_time)
    # The sun rises once a day.
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _wait(of: BaseSchedule, now: datetime) -> float:
    """Return the seconds until there may be another slot."""
    every = of.run_every if isinstance(of, schedule) else timedelta(minutes=1)
    return float((every - (now - EPOCH) % every).total_seconds())


def _latest(of: crontab, now: datetime) -> datetime | None:
    day = now.astimezone(of.tz).date()
    for _ in range(LOOK_BACK_DAYS):
        if _has_day(of, day) and (past := [instant for instant in _instants(of, day) if instant <= now]):
            return max(past)
        day -= timedelta(days=1)
    return None


def _has_day(of: crontab, day: date) -> bool:
    return day.month in of.month_of_year and day.day in of.day_of_month and day.isoweekday() % 7 in of.day_of_week


def _instants(of: crontab, day: date) -> Iterator[datetime]:
    """Give the instants of a day, in UTC.

    Where the clock is put back, a line for every hour is due in both of the hours that have one name, and a line
    for certain hours in the first; where it is put forward, a time that is left out is due an hour later by the clock.
    """
    hourly = len(of.hour) == 24
    for hour in of.hour:
        for minute in of.minute:
            wall = datetime(day.year, day.month, day.day, hour, minute, tzinfo=of.tz)
            if not hourly:
                yield wall.astimezone(UTC)
                continue
            for fold in (0, 1):
                instant = wall.replace(fold=fold).astimezone(UTC)
                if instant.astimezone(of.tz).replace(tzinfo=None, fold=0) == wall.replace(tzinfo=None):
                    yield instant
