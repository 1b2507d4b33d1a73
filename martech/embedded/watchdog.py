"""Starts worker or beat again when their processes live and yet no heartbeat comes to its end.

After the broker was away, Celery has been seen to run on without taking tasks.
"""

import threading
from datetime import timedelta

from martech import vitals
from martech.embedded.supervisor import Supervisor
from martech.vitals import Database, Vitals

# Heartbeats are due every 30 s: four in a row were missed.
SILENT_SECONDS = 120.0
LOOK_SECONDS = 15.0


def start(supervisor: Supervisor, *, concurrency: int) -> None:
    """Watch in a thread until the supervisor stops."""
    thread = threading.Thread(target=_watch, args=(supervisor, concurrency), name="watchdog", daemon=True)
    thread.start()


def _watch(supervisor: Supervisor, concurrency: int) -> None:
    suspected = None
    while not supervisor.stopping.wait(LOOK_SECONDS):
        silent = silent_program(supervisor, vitals.gather(), concurrency=concurrency)
        # A machine that wakes up finds everything late, for a moment.
        if silent and silent == suspected:
            supervisor.restart(silent, f"no heartbeat of beat and worker for {SILENT_SECONDS:.0f} s")
            silent = None
        suspected = silent


def silent_program(supervisor: Supervisor, found: Vitals, *, concurrency: int) -> str | None:
    """Return which of worker and beat lives without doing its work, if one does."""
    if not isinstance(found.database, Database) or found.database.unapplied or isinstance(found.queues, Exception):
        return None
    heartbeat = found.database.heartbeat
    if heartbeat is not None and heartbeat < SILENT_SECONDS:
        return None
    if min(supervisor.uptime("worker"), supervisor.uptime("beat")) < SILENT_SECONDS:
        return None
    if not any(found.queues.values()):
        return "beat"
    # Long tasks may keep the whole worker busy; they end by their time limit.
    return None if found.database.running >= concurrency or _takes_tasks() else "worker"


def _takes_tasks() -> bool:
    """Tell whether any task was begun of late: heartbeats may be waiting behind many others."""
    from django.db import Error, connection
    from django.utils import timezone

    from cdp.models import TaskRun

    try:
        return TaskRun.objects.filter(started_at__gt=timezone.now() - timedelta(seconds=SILENT_SECONDS)).exists()
    except Error:
        return True
    finally:
        connection.close()
