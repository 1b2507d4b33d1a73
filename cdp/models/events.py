"""The event stream, the dead letters and the keys that recognise duplicates.

`event_stream` and `event_duplicate` are partitioned and written by COPY, so migrations create them in SQL
(see `cdp/partitions.py`) and Django only reads them.
"""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models


class Event(models.Model):
    """One event as it was after transformations: what a replay reads."""

    event_id = models.BigAutoField(primary_key=True)
    ingested_at = models.DateTimeField()
    profile = models.ForeignKey(
        "cdp.Profile", models.DO_NOTHING, null=True, help_text="As resolved when it was processed; none of an account's"
    )
    anchor = models.ForeignKey("cdp.Identifier", models.DO_NOTHING, help_text="The identifier the sender gave")
    identifiers = models.JSONField(help_text="All identifiers of the message, by namespace")
    event_type = models.CharField(max_length=255, help_text="track, identify, page, screen, group or alias")
    name = models.TextField(help_text="The event's name, the page's or the screen's")
    properties = models.JSONField(help_text="Properties, or the traits of identify and group")
    context = models.JSONField()
    extra = models.JSONField(null=True, help_text="What else the message said at its top level")
    source = models.ForeignKey("cdp.Source", models.DO_NOTHING)
    message_id = models.TextField()
    occurred_at = models.DateTimeField(help_text="The sender's time, corrected and clamped")
    original_timestamp = models.TextField(null=True, help_text="The sender's time as it was sent")
    received_at = models.DateTimeField()
    flags = ArrayField(models.TextField(), help_text="What was remarkable, such as future_time")
    log_partition = models.SmallIntegerField(null=True)
    log_position = models.TextField(null=True)
    plan_version = models.IntegerField(null=True)
    transformation_version = models.IntegerField(null=True)
    trace_parent = models.TextField(null=True, help_text="W3C trace context of the request that brought it")

    class Meta:
        managed = False
        db_table = "event_stream"

    def __str__(self) -> str:
        return self.name or self.event_type


class DuplicateKey(models.Model):
    """What a repeated message is recognised by: hashes of (source, message id) and of the payload.

    The rows are in the tables `event_duplicate_N`, one a generation, which inherit from this one.
    """

    id_hash = models.UUIDField(primary_key=True, help_text="16 bytes of source and message id")
    payload_hash = models.BigIntegerField(help_text="8 bytes of what was said, without sending times")
    ingested_at = models.DateTimeField(help_text="That of the event's row")

    class Meta:
        managed = False
        db_table = "event_duplicate"

    def __str__(self) -> str:
        return str(self.id_hash)


class DuplicateGeneration(models.Model):
    """A time in which keys were kept in one table: the newest takes new ones, a sealed one never changes again."""

    id = models.AutoField(primary_key=True)
    opened_at = models.DateTimeField()
    sealed_at = models.DateTimeField(null=True, help_text="When the next one was opened")
    keys = models.BigIntegerField(null=True, help_text="Counted once it is sealed")

    class Meta:
        constraints = [
            # One takes keys at a time.
            models.UniqueConstraint(
                models.Value(1), condition=models.Q(sealed_at=None), name="duplicate_generation_open"
            ),
        ]

    def __str__(self) -> str:
        return f"event_duplicate_{self.id}"


class DeadLetter(models.Model):
    """An event that could not be processed, whole, with the reason; it can be replayed after a fix."""

    class Status(models.TextChoices):
        NEW = "new"
        REPLAYING = "replaying", "Replaying: given back to the log"
        REPLAYED = "replayed", "Replayed: processed since"

    id = models.BigAutoField(primary_key=True)
    status = models.CharField(max_length=16, choices=Status, default=Status.NEW)
    reason = models.CharField(max_length=64, help_text="Stable code, such as too_large or missing_id")
    detail = models.TextField(help_text="The cause in words, and what to do")
    # No constraint: what cannot be stored must always have a place to go.
    source = models.ForeignKey("cdp.Source", models.PROTECT, related_name="dead_letters", db_constraint=False)
    message_id = models.CharField(max_length=255, blank=True)
    delivery = models.BinaryField(help_text="The log's Delivery with this one event, as MessagePack")
    received_at = models.DateTimeField()
    log_partition = models.SmallIntegerField(null=True)
    log_position = models.TextField(null=True)
    created_at = models.DateTimeField()
    replayed_at = models.DateTimeField(null=True, blank=True, help_text="When it was last given back to the log")
    attempts = models.PositiveSmallIntegerField(db_default=0, help_text="Replays that were put aside again")

    class Meta:
        indexes = [
            # The quarantine page: by status, reason and source, newest first.
            models.Index(fields=["status", "reason", "source", "-id"], name="dead_letter_group"),
            # Tracing one message.
            models.Index(fields=["message_id"], name="dead_letter_message"),
        ]
        permissions = [("replay_deadletter", "Can replay dead letters")]

    def __str__(self) -> str:
        return f"{self.reason} ({self.id})"
