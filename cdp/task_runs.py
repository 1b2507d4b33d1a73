"""The row of each task: how often it was started and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db import connection
from django.utils import timezone

from cdp.models import TaskRun

Status = TaskRun.Status
# A task that was started so long ago and never ended has lost its message too.
LOST_AFTER = timedelta(days=1)

_START = """
WITH before AS (SELECT status, error FROM cdp_taskrun WHERE id = %(id)s),
started AS (
    INSERT INTO cdp_taskrun AS run (id, task, status, attempts, error, started_at)
    VALUES (%(id)s, %(task)s, 'started', 1, '', now())
    ON CONFLICT (id) DO UPDATE SET status = 'started', attempts = run.attempts + 1, started_at = now()
    WHERE run.status NOT IN ('succeeded', 'failed')
    RETURNING attempts
)
SELECT coalesce((SELECT attempts FROM started), 0), before.status, before.error
FROM (VALUES (1)) AS one LEFT JOIN before ON true
"""


@dataclass(frozen=True, slots=True)
class Started:
    """The start of a task: the how manieth it is, and what the row said before ("" on the first)."""

    attempts: int
    before: str
    error: str

    @property
    def over(self) -> bool:
        """Whether the task had ended already: its message came twice."""
        return self.before in (Status.SUCCEEDED, Status.FAILED)

    @property
    def lost(self) -> bool:
        """Whether the start before this one did not come to an end: its process died."""
        return self.before == Status.STARTED


def start(task_id: str, task: str) -> Started:
    """Count a start of a task."""
    with connection.cursor() as cursor:
        cursor.execute(_START, {"id": UUID(task_id), "task": task})
        attempts, before, error = cursor.fetchone()
    return Started(attempts, before or "", error or "")


def end(task_id: str, status: str, error: str = "") -> None:
    """Note how a started task ended; one that has ended already stays as it was."""
    TaskRun.objects.filter(id=UUID(task_id), status=Status.STARTED).update(
        status=status, error=error[:2000], ended_at=timezone.now()
    )


def prune(*, days: int, now: datetime) -> int:
    """Forget tasks that were started more than `days` days ago, and close the books on lost ones."""
    TaskRun.objects.filter(status__in=[Status.STARTED, Status.RETRYING], started_at__lt=now - LOST_AFTER).update(
        status=Status.FAILED, ended_at=now, error="Its worker was lost, and the broker did not deliver it again."
    )
    return TaskRun.objects.filter(started_at__lt=now - timedelta(days=days)).delete()[0]
