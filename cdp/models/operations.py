"""The platform's own rows: how far the log was processed, and what tasks did."""

from __future__ import annotations

import uuid

from django.contrib.postgres.fields import ArrayField
from django.db import models


class Checkpoint(models.Model):
    """How far a partition of a log has been processed; locked and compared by every batch."""

    id = models.BigAutoField(primary_key=True)
    log = models.CharField(max_length=255, help_text="The log's name")
    partition = models.SmallIntegerField()
    position = models.TextField(blank=True, help_text="The last entry processed")
    events = models.BigIntegerField(default=0, help_text="Events taken from the log so far")
    updated_at = models.DateTimeField()
    owner = models.UUIDField(null=True, help_text="The processor that holds the partition")
    epoch = models.BigIntegerField(db_default=0, help_text="Raised by each take-over: a batch of an older one is void")
    crashes = models.PositiveSmallIntegerField(db_default=0, help_text="Processors that died at this position")
    done_at = models.DateTimeField(null=True, help_text="Everything received before has been processed")
    trial = models.JSONField(null=True, help_text="Which event of the next entry is tried alone, and what it did")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["log", "partition"], name="checkpoint_log_partition")]

    def __str__(self) -> str:
        return f"{self.log}[{self.partition}] {self.position}"


class Processor(models.Model):
    """A process that takes events from a log: it holds partitions while `expires_at` is ahead and its session lives.

    Times are the database's. `backend_pid` and `backend_started_at` name the session that commits its batches.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    log = models.CharField(max_length=255, help_text="The log's name")
    host = models.CharField(max_length=255)
    pid = models.IntegerField()
    partitions = ArrayField(models.SmallIntegerField(), null=True, help_text="Those it was given; null: it shares")
    backend_pid = models.IntegerField()
    backend_started_at = models.DateTimeField()
    started_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    halted = models.TextField(blank=True, db_default="", help_text="Why it stands still, if so")

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class TaskRun(models.Model):
    """A Celery task's life: how often it was started, and how it ended."""

    class Status(models.TextChoices):
        STARTED = "started"
        SUCCEEDED = "succeeded"
        RETRYING = "retrying"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, help_text="Celery's task id")
    task = models.CharField(max_length=255)
    status = models.CharField(max_length=16, choices=Status)
    attempts = models.PositiveIntegerField(default=0)
    error = models.TextField(blank=True)
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)
    slot = models.CharField(
        max_length=255, null=True, unique=True, help_text="The line of the schedule and the time it was due, if so"
    )

    class Meta:
        indexes = [
            models.Index(fields=["task", "-started_at"], name="task_run_newest"),
            # Closing lost runs, each minute.
            models.Index(
                fields=["started_at"], condition=models.Q(status__in=["started", "retrying"]), name="task_run_open"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.task} {self.id}"
