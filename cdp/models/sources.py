"""Where events come from, and who may read."""

from __future__ import annotations

import secrets

from django.contrib.postgres.fields import ArrayField
from django.db import models


def new_write_key() -> str:
    """Return a fresh write key: 144 random bits."""
    return "wk_" + secrets.token_urlsafe(18)


class Source(models.Model):
    """A sender of events. Its kind says how far it is believed (design: trust by source)."""

    class Kind(models.TextChoices):
        SERVER = "server"
        BROWSER = "browser"
        MOBILE = "mobile"
        # What people change in the admin and by the API.
        PEOPLE = "people"

    id = models.AutoField(primary_key=True)
    name = models.CharField(max_length=128, unique=True)
    kind = models.CharField(max_length=16, choices=Kind, default=Kind.SERVER)
    write_key = models.CharField(max_length=64, unique=True, default=new_write_key)
    enabled = models.BooleanField(default=True, help_text="Off: its write key answers 401 within 5 s")
    rules = models.JSONField(
        default=dict, blank=True, help_text="Overrides of its kind: refused_namespaces, refused_traits, refused_calls"
    )
    quota = models.PositiveIntegerField(
        null=True, blank=True, help_text="Events a second it may still send while the log fills up; empty: SOURCE_QUOTA"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name


class ApiKey(models.Model):
    """A key to the REST API: only its hash is kept, with a prefix to recognise it by."""

    id = models.AutoField(primary_key=True)
    name = models.CharField(max_length=128)
    prefix = models.CharField(max_length=16, help_text="The key's visible beginning")
    key_hash = models.CharField(max_length=64, unique=True, help_text="SHA-256 of the key, hexadecimal")
    scopes = ArrayField(models.CharField(max_length=64), default=list)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, help_text="To the minute")

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"
