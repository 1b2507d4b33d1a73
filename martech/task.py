"""The task that every task is.

A message carries ids only and may be lost or arrive twice; the truth is in rows. So a task is acknowledged
late, its starts are counted in a row (`TaskRun`), it is locked while it runs, and the typed error decides whether
it is tried again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn
from uuid import UUID

import psycopg
import structlog
from celery import signals
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded, TimeLimitExceeded
from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError
from prometheus_client import Counter, Histogram

from cdp import task_locks, task_runs
from martech.lib.errors import MartechError, PermanentError, RetryableError
from martech.lib.metrics import count_cpu

RUNS = Counter("martech_task_runs_total", "Starts of tasks, by how they ended", ["task", "state"])
SECONDS = Histogram(
    "martech_task_seconds", "Time a task ran", ["task"], buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900)
)
WAIT = Histogram(
    "martech_task_wait_seconds",
    "Time from when a task was due to its start",
    ["task"],
    buckets=(0.1, 1, 5, 30, 120, 600),
)

TEXT_LENGTH = 128
LIST_LENGTH = 100
# A message that is due later than this stays in a worker's memory for too long.
LATEST_SECONDS = 300
DATABASE_SECONDS = 2.0
# A message of a task that runs comes again after this, until the run is over: should its process die, it is there.
TWIN_SECONDS = 10.0
DATABASE_AWAY = (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError)

log = structlog.get_logger("martech.task")


class TooManyAttempts(PermanentError):
    """The task was started as often as it may be and never came to an end."""

    code = "too_many_attempts"


class Task(DjangoTask):
    """Base of all tasks. Which queue one goes to stands in the settings (CELERY_TASK_ROUTES)."""

    abstract = True
    # Starts of one task, tries again and deliveries after a worker's death together.
    max_attempts = 5
    # Celery's own counter is no guard: a worker that dies does not count.
    max_retries = None
    # Errors with a name need no traceback in the log.
    throws = (MartechError,)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        **options: Any,
    ) -> Any:
        """Send the task; PermanentError where its message would carry more than ids, or is due too late."""
        check_arguments(self.name, args or (), kwargs or {})
        due = _due(self.name, options)
        if task_id is not None:
            UUID(task_id)
        options["headers"] = {**(options.get("headers") or {}), "due_at": due}
        return super().apply_async(args, kwargs, task_id, **options)

    def before_start(self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Lock the task and count the start; end it here when it has ended before, or was started too often."""
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(task=self.name, task_id=task_id)
        self.request.started = time.monotonic()
        try:
            if not task_locks.take(task_id) and not task_runs.is_over(task_id):
                self._come_after_twin()
            started = task_runs.start(task_id, self.name, self.request.get("slot"))
        except DATABASE_AWAY as error:
            self._again(error, DATABASE_SECONDS)
        if started.lost:
            RUNS.labels(self.name, "lost").inc()
        if started.over:
            RUNS.labels(self.name, "twice").inc()
            raise Ignore("its message came twice")
        self.request.attempts = started.attempts
        if due := self.request.get("due_at"):
            WAIT.labels(self.name).observe(max(0.0, time.time() - due))
        if started.attempts > self.max_attempts:
            raise TooManyAttempts(
                f"It came to no end in {self.max_attempts} starts: {started.error or 'its process died'}. "
                "Correct the cause, then send it again."
            )
        check_arguments(self.name, args, kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task; an error that may pass sends it again, later."""
        if self.request.called_directly:
            return super().__call__(*args, **kwargs)
        try:
            return self.run(*args, **kwargs)
        except (RetryableError, *DATABASE_AWAY) as error:
            wait = getattr(error, "retry_after", DATABASE_SECONDS)
            # What must wait for longer than a message can is a row that beat finds when it is due.
            if self.request.attempts >= self.max_attempts or wait > LATEST_SECONDS:
                raise
            self._again(error, wait)

    def retry(self, args: Any = None, kwargs: Any = None, exc: Exception | None = None, **options: Any) -> Any:
        """Let go of the task before its next message is sent: whoever takes that finds it free."""
        # What cannot be sent is no reason to let go.
        check_arguments(self.name, args or (), kwargs or {})
        _due(self.name, options)
        if not self.request.called_directly and task_locks.holds(self.request.id):
            self._note(self.request.id, task_runs.Status.RETRYING, exc)
            task_locks.release(self.request.id)
        return self._send_again(args, kwargs, exc, **options)

    def _send_again(self, *args: Any, **options: Any) -> Any:
        try:
            return super().retry(*args, **options)
        except Reject as error:
            # The broker did not take it: the message that came goes back, instead of being lost.
            raise Reject(error.reason, requeue=True) from error

    def _come_after_twin(self) -> NoReturn:
        """Come again when the run of another message of this task, which may die yet, is over."""
        RUNS.labels(self.name, "twice").inc()
        self.request.is_twin = True
        if self.request.is_eager:
            raise Ignore("it runs already")
        # A message that waits for longer than this is delivered again meanwhile.
        wait = min(TWIN_SECONDS, settings.TASK_REDELIVERY_SECONDS / 3)
        raise self._send_again(countdown=wait, throw=False)

    def _again(self, error: Exception, wait: float) -> NoReturn:
        jitter = 1 + random.random() / 2  # noqa: S311 - no secret
        raise self.retry(exc=error, countdown=min(wait * jitter, LATEST_SECONDS), throw=False)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self._ended(task_id, task_runs.Status.SUCCEEDED)
        self._note(task_id, task_runs.Status.SUCCEEDED)

    def on_retry(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        # `retry` has noted it.
        if not self.request.get("is_twin"):
            self._ended(task_id, task_runs.Status.RETRYING, exc)

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self._ended(task_id, task_runs.Status.FAILED, exc)
        self._note(task_id, task_runs.Status.FAILED, exc)

    def after_return(self, *_: Any) -> None:
        structlog.contextvars.clear_contextvars()
        count_cpu("worker")

    def _ended(self, task_id: str, status: str, error: Exception | None = None) -> None:
        RUNS.labels(self.name, status).inc()
        if started := self.request.get("started"):
            SECONDS.labels(self.name).observe(time.monotonic() - started)
        words = _words(error)
        if status == task_runs.Status.RETRYING or isinstance(error, MartechError):
            log.warning("task did not succeed", task=self.name, task_id=task_id, status=str(status), error=words)

    def _note(self, task_id: str, status: str, error: Exception | None = None) -> None:
        try:
            task_runs.end(task_id, status, _words(error))
        except (DatabaseError, InterfaceError) as away:
            log.warning("task's end was not noted", task=self.name, task_id=task_id, error=str(away))


@signals.task_postrun.connect
def _let_go(task_id: str, **_: Any) -> None:
    """Unlock a task however it ended: Celery tells its tasks of some ends only."""
    task_locks.release(task_id)


def check_arguments(task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise PermanentError where a message would carry more than ids."""
    for name, value in [*enumerate(args, 1), *kwargs.items()]:
        if not _is_id(value) and not (isinstance(value, list | tuple) and _are_ids(value)):
            raise PermanentError(
                f"{task} was given a {type(value).__name__} as argument {name}. A task's message carries ids alone: "
                f"whole numbers, UUIDs, texts of up to {TEXT_LENGTH} characters, or lists of up to {LIST_LENGTH} of "
                "these. Store the data, and send its id.",
                code="task_arguments",
            )


def _is_id(value: Any) -> bool:
    return isinstance(value, int | UUID) or (isinstance(value, str) and len(value) <= TEXT_LENGTH)


def _are_ids(values: Sequence[Any]) -> bool:
    return len(values) <= LIST_LENGTH and all(_is_id(value) for value in values)


def _due(task: str, options: Mapping[str, Any]) -> float:
    """Return when the task is due, in seconds since 1970."""
    now = time.time()
    eta = options.get("eta")
    wait = options.get("countdown") or ((eta - datetime.now(UTC)).total_seconds() if eta else 0.0)
    if wait > LATEST_SECONDS:
        raise PermanentError(
            f"{task} would wait {wait:.0f} s in the broker, which loses it or runs it twice. Store when it is due in "
            "its row, and let a beat task find it.",
            code="task_too_late",
        )
    return now + max(0.0, wait)


def _words(error: Exception | None) -> str:
    if error is None:
        return ""
    if isinstance(error, SoftTimeLimitExceeded | TimeLimitExceeded):
        return "It ran for longer than it may. Let it do less at a time, or raise TASK_SECONDS."
    return error.message if isinstance(error, MartechError) else f"{type(error).__name__}: {error}"
