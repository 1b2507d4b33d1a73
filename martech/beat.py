"""Beat's scheduler: each message carries the id of its slot, so that two beats send one task."""

from __future__ import annotations

from typing import Any

from celery.beat import SchedulingError
from django.db.models import Q
from django_celery_beat.schedulers import DatabaseScheduler, ModelEntry

from martech import slots
from martech.lib.metrics import count_cpu


class SlotEntry(ModelEntry):
    """A line of the schedule that is due once in each of its slots."""

    def __init__(self, model: Any, app: Any = None) -> None:
        super().__init__(model, app=app)
        # Absent when the row of the schedule is gone; the line is switched off then.
        if schedule := getattr(self, "schedule", None):
            self.schedule = slots.Slotted(schedule)

    def is_due(self) -> Any:
        """Tell whether the line is due; what the row says counts, since a failed sending is taken back there."""
        self.last_run_at = self.model.last_run_at
        return super().is_due()

    @property
    def slot(self) -> str:
        """Return the line's slot that is due, as text."""
        return slots.name(self.name, self.schedule.slot or self.schedule.now())

    def __next__(self) -> SlotEntry:
        # The slot, not the time: the next one may have begun meanwhile.
        self.model.last_run_at = self.schedule.slot
        self.model.total_run_count += 1
        self.model.no_changes = True
        return type(self)(self.model, app=self.app)


class SlotScheduler(DatabaseScheduler):
    """Sends the lines in the database, under ids that follow from line and slot."""

    Entry = SlotEntry

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """Send what is due, and count what that took."""
        count_cpu("beat")
        return super().tick(*args, **kwargs)

    def apply_async(self, entry: SlotEntry, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send a line's task; one that could not be sent is due again."""
        if advance:
            self.reserve(entry)
        named = SlotEntry(entry.model, app=self.app)
        headers = {**entry.options.get("headers", {}), "slot": entry.slot}
        named.options = {**entry.options, "headers": headers, "task_id": slots.task_id(entry.slot)}
        try:
            return super().apply_async(named, producer=producer, advance=False, **kwargs)
        except SchedulingError:
            entry.model.last_run_at = entry.last_run_at
            entry.model.total_run_count -= 1
            self._dirty.add(entry.name)
            raise

    def _get_crontab_exclude_query(self) -> Q:
        """Leave no line out: by default those far from their hour are not looked at, so a late beat forgets them."""
        return Q()
