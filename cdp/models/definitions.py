"""What is computed of a person, defined as data."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models


class TraitDefinition(models.Model):
    """A computed trait: its kind (a monoid of `cdp.processing.kinds`) and what it counts."""

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


class MergePolicy(models.Model):
    """How the values of a given trait that sources disagree on become one; without a row the newest counts."""

    class Policy(models.TextChoices):
        NEWEST = "newest", "The newest value"
        SOURCE_PRIORITY = "source_priority", "The value of the most trusted source, then the newest"
        UNION = "union", "All values together, each until it is removed"
        COUNTER = "counter", "A number that sources add to and subtract from"
        ASK = "ask", "Keep the values of all sources, and ask"

    id = models.AutoField(primary_key=True)
    trait = models.CharField(max_length=255, unique=True)
    policy = models.CharField(max_length=32, choices=Policy)
    sources = ArrayField(
        models.IntegerField(), db_default=[], blank=True, help_text="Ids of sources, the most trusted first"
    )
    version = models.PositiveIntegerField(default=1, help_text="States of an older one count for nothing")

    def __str__(self) -> str:
        return f"{self.trait}: {self.policy}"
