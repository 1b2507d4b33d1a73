"""What people may ask of us, and who changed what."""

from __future__ import annotations

import uuid

from django.db import models

from cdp.models.identity import Profile


class Erasure(models.Model):
    """A request to erase a person, and what became of it in each store."""

    class Status(models.TextChoices):
        REQUESTED = "requested"
        RUNNING = "running"
        DONE = "done"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    status = models.CharField(max_length=16, choices=Status, default=Status.REQUESTED)
    profile = models.ForeignKey(Profile, models.PROTECT, null=True, blank=True, related_name="erasures")
    requested_by = models.CharField(max_length=255)
    reason = models.TextField(blank=True)
    requested_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)
    receipts = models.JSONField(default=dict, blank=True, help_text="By store: what was erased, and when")
    work = models.JSONField(
        default=dict, blank=True, help_text="What the stores still need to know; emptied at the end"
    )

    def __str__(self) -> str:
        return str(self.id)


class SuppressedIdentifier(models.Model):
    """An identifier that may not come back, known by a keyed hash only."""

    digest = models.BinaryField(primary_key=True, help_text="HMAC-SHA256 of namespace and value, with PRIVACY_KEY")
    erasure = models.ForeignKey(Erasure, models.CASCADE, null=True, related_name="suppressed")
    created_at = models.DateTimeField()

    def __str__(self) -> str:
        return bytes(self.digest).hex()


class AuditEntry(models.Model):
    """What a person or an API key did: never with the values, which an erasure would have to find here."""

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField()
    actor = models.CharField(max_length=255, help_text="admin:NAME, key:NAME or command:USER")
    action = models.CharField(max_length=64, help_text="Such as profile.edit, profile.export or profile.erase")
    object_type = models.CharField(max_length=64)
    object_id = models.CharField(max_length=255)
    detail = models.JSONField(default=dict, blank=True)

    class Meta:
        indexes = [models.Index(fields=["object_type", "object_id", "-id"], name="audit_object")]

    def __str__(self) -> str:
        return f"{self.action} {self.object_type} {self.object_id}"
