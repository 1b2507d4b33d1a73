"""Files that events come from and go to: imports and the archive."""

from __future__ import annotations

from django.db import models

from cdp.models.sources import Source


class ArchiveFile(models.Model):
    """A Parquet file of the archive: the events of one closed table partition, of one bucket of anchors."""

    id = models.BigAutoField(primary_key=True)
    table = models.CharField(max_length=63, help_text="The partition of event_stream that it was written from")
    bucket = models.PositiveSmallIntegerField(help_text="The anchor's id modulo the number of buckets")
    buckets = models.PositiveSmallIntegerField()
    path = models.CharField(max_length=512, unique=True, help_text="In the storage `archive`")
    start = models.DateTimeField(help_text="The first instant of the partition")
    end = models.DateTimeField(help_text="The first instant after it")
    rows = models.BigIntegerField()
    size = models.BigIntegerField(help_text="Bytes")
    sha256 = models.CharField(max_length=64)
    written_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["table", "bucket"], name="archive_file_table_bucket")]

    def __str__(self) -> str:
        return self.path


class EventImport(models.Model):
    """A file of events on its way into the log: the ledger by which the same rows never go in twice."""

    class Status(models.TextChoices):
        READY = "ready", "Ready: uploaded, not begun"
        RUNNING = "running"
        STOPPED = "stopped", "Stopped: goes on where it was"
        DONE = "done"

    id = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=255, help_text="The file's")
    sha256 = models.CharField(max_length=64, help_text="Of the file's bytes")
    source = models.ForeignKey(Source, models.PROTECT, related_name="imports")
    file_format = models.CharField(max_length=16, help_text="csv or ndjson")
    mapping = models.JSONField(default=dict, help_text="Column → field of the message")
    stored_path = models.CharField(max_length=512, blank=True, help_text="Of an uploaded file, in the default storage")
    status = models.CharField(max_length=16, choices=Status, default=Status.READY)
    size = models.BigIntegerField(help_text="Bytes")
    offset = models.BigIntegerField(default=0, help_text="Bytes whose rows are in the log")
    lines = models.BigIntegerField(default=0, help_text="Lines read up to there")
    events = models.BigIntegerField(default=0, help_text="Rows given to the log")
    errors = models.BigIntegerField(default=0, help_text="Lines that could not be read")
    errors_path = models.CharField(max_length=512, blank=True, help_text="The file that names each of them")
    trouble = models.TextField(blank=True, help_text="Why it stopped by itself")
    author = models.CharField(max_length=255, blank=True)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["sha256", "source"], name="event_import_file_source")]

    def __str__(self) -> str:
        return self.name
