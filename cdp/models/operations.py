"""The platform's own rows: how far the log was processed, and what tasks did."""

from __future__ import annotations

from django.db import models


class Checkpoint(models.Model):
    """How far a partition of a log has been processed; locked and compared by every batch."""

    id = models.BigAutoField(primary_key=True)
    log = models.CharField(max_length=255, help_text="The log's name")
    partition = models.SmallIntegerField()
    position = models.TextField(blank=True, help_text="The last entry processed")
    events = models.BigIntegerField(default=0, help_text="Events taken from the log so far")
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["log", "partition"], name="checkpoint_log_partition")]

    def __str__(self) -> str:
        return f"{self.log}[{self.partition}] {self.position}"


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

    class Meta:
        indexes = [models.Index(fields=["task", "-started_at"], name="task_run_newest")]

    def __str__(self) -> str:
        return f"{self.task} {self.id}"
