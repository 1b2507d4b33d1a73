"""What is computed of a person, defined as data."""

from __future__ import annotations

from django.db import models


class TraitDefinition(models.Model):
    """A computed trait: its kind (a monoid of `cdp.processing.traits`) and what it counts."""

    id = models.AutoField(primary_key=True)
    name = models.CharField(max_length=128, unique=True)
    kind = models.CharField(max_length=64)
    event_type = models.CharField(max_length=32, blank=True, help_text="Empty: every type")
    event_name = models.CharField(max_length=255, blank=True, help_text="Empty: every name")
    options = models.JSONField(default=dict, blank=True, help_text='Of the kind, such as {"property": "total"}')
    version = models.PositiveIntegerField(default=1)
    enabled = models.BooleanField(default=True)
    description = models.TextField(blank=True)

    def __str__(self) -> str:
        return self.name


class DefinitionVersion(models.Model):
    """One row that each change of a rule or definition raises; a batch reads it in its transaction."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    version = models.BigIntegerField(default=1)

    def __str__(self) -> str:
        return str(self.version)
