"""The row of each task: how often it was started and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db import connection
from django.db.models import Q
from django.utils import timezone

from cdp import task_locks
from cdp.models import TaskRun

Status = TaskRun.Status
OPEN = Q(status__in=[Status.STARTED, Status.RETRYING])
# A run that was given up; should its message come all the same, it goes on.
LOST = "Its worker was lost, and the broker did not deliver it again."
LOST_AT_ONCE = 1000

_START = """
WITH before AS (SELECT status, error FROM cdp_taskrun WHERE id = %(id)s),
started AS (
    INSERT INTO cdp_taskrun AS run (id, task, status, attempts, error, started_at, slot)
    VALUES (%(id)s, %(task)s, 'started', 1, '', now(), %(slot)s)
    ON CONFLICT (id) DO UPDATE
    SET status = 'started', attempts = run.attempts + 1, started_at = now(), ended_at = NULL
    WHERE run.status NOT IN ('succeeded', 'failed') OR run.error = %(lost)s
    RETURNING attempts
)
SELECT coalesce((SELECT attempts FROM started), 0), before.status, before.error
FROM (VALUES (1)) AS one LEFT JOIN before ON true
"""


@dataclass(frozen=True, slots=True)
class Started:
    """The start of a task: the how manieth it is (0 when it is over), and what its row said before ("" if none)."""

    attempts: int
    before: str
    error: str

    @property
    def over(self) -> bool:
        """Whether the task had ended already: its message came twice."""
        return not self.attempts

    @property
    def lost(self) -> bool:
        """Whether the start before this one did not come to an end: its process died."""
        return self.before == Status.STARTED


def start(task_id: str, task: str, slot: str | None = None) -> Started:
    """Count a start of a task, whose lock the caller holds; `slot` names the line of the schedule and its time."""
    with connection.cursor() as cursor:
        cursor.execute(_START, {"id": UUID(task_id), "task": task, "slot": slot, "lost": LOST})
        attempts, before, error = cursor.fetchone()
    return Started(attempts, before or "", error or "")


def is_over(task_id: str) -> bool:
    """Tell whether a task has ended."""
    over = Q(status=Status.SUCCEEDED) | Q(status=Status.FAILED) & ~Q(error=LOST)
    return TaskRun.objects.filter(over, id=UUID(task_id)).exists()


def end(task_id: str, status: str, error: str = "") -> None:
    """Note how a started task ended; one that has ended already stays as it was."""
    TaskRun.objects.filter(Q(status=Status.STARTED) | Q(error=LOST), id=UUID(task_id)).update(
        status=status, error=error[:2000], ended_at=timezone.now()
    )


def close_lost(*, before: datetime) -> int:
    """Fail the runs that began before a time, came to no end, and are run by nobody; return how many."""
    lost = OPEN & Q(started_at__lt=before)
    found = TaskRun.objects.filter(lost).order_by("started_at").values_list("id", flat=True)[:LOST_AT_ONCE]
    return sum(_close(str(run), lost) for run in found)


def _close(task_id: str, lost: Q) -> int:
    if not task_locks.take(task_id):
        return 0
    try:
        return TaskRun.objects.filter(lost, id=task_id).update(
            status=Status.FAILED, ended_at=timezone.now(), error=LOST
        )
    finally:
        task_locks.release(task_id)


def prune(*, days: int, now: datetime) -> int:
    """Forget tasks that were started more than `days` days ago."""
    return TaskRun.objects.filter(started_at__lt=now - timedelta(days=days)).delete()[0]
