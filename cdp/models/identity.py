"""Profiles, their identifiers, the edges between these, and the decisions taken on them."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models.functions import Now


class Standing(models.IntegerChoices):
    """What new evidence on a profile's identifiers may do."""

    SETTLED = 0, "Settled: it can only join"
    CONTESTED = 1, "Contested: some of it was refused, or somebody unmerged, so the rules look at all of it again"
    BLOCKED = 2, "Blocked: its one identifier stands for nobody in particular, and joins nothing"


class Profile(models.Model):
    """A person as we know them: the combination of the identifiers that belong together.

    `traits` and `computed_traits` are what readers see; `registers` and `trait_states` are the
    combined state they are presented from (the sum over the identifiers, law 4). A profile that
    was merged into another keeps its row, pointing on, for ever.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    identity_graph = models.JSONField(default=dict, help_text="Values by namespace, in a readable form")
    traits = models.JSONField(default=dict)
    computed_traits = models.JSONField(default=dict)
    version = models.BigIntegerField(default=0, help_text="Counts accepted changes")
    timestamp = models.DateTimeField(help_text="When the profile last changed")
    created_at = models.DateTimeField()
    registers = models.JSONField(default=dict, help_text="name → [value, time µs, source rank, message id]")
    trait_states = models.JSONField(default=dict, help_text="definition.version → state")
    merged_into = models.ForeignKey("self", models.PROTECT, null=True, blank=True, related_name="merged")
    consent = models.JSONField(db_default={}, help_text="What may be done, by purpose, as readers see it")
    standing = models.SmallIntegerField(choices=Standing, db_default=Standing.SETTLED)
    erased_at = models.DateTimeField(null=True, blank=True, help_text="When everything on the person was erased")
    computed_at = models.DateTimeField(db_default=Now(), help_text="As of when `computed_traits` are")
    due_at = models.DateTimeField(
        null=True, blank=True, help_text="When time alone changes `computed_traits` next; empty where only events do"
    )

    class Meta:
        db_table = "customer_profiles"
        indexes = [
            # The admin's and the API's list: newest first, without counting or sorting.
            models.Index(fields=["-created_at", "-id"], name="profile_newest"),
            models.Index(fields=["due_at"], name="profile_due", condition=models.Q(due_at__isnull=False)),
        ]
        permissions = [
            ("view_personal_data", "Can see personal data unmasked"),
            ("unmerge_profile", "Can take profiles apart, and lift that"),
        ]

    def __str__(self) -> str:
        return self.display_name

    @property
    def display_name(self) -> str:
        """What people call this profile: a name, else an identifier, else the id."""
        for key in ("name", "email"):
            if isinstance(self.traits.get(key), str):
                return str(self.traits[key])
        for namespace in ("user_id", "email", "anonymous_id"):
            if self.identity_graph.get(namespace):
                return str(self.identity_graph[namespace][0])
        return str(self.id)


class Identifier(models.Model):
    """A namespace and a value, and the state that the events anchored to it have built.

    State lives here so that a merge and an unmerge only combine again, without reading events.
    """

    id = models.BigAutoField(primary_key=True)
    namespace = models.CharField(max_length=64)
    # Compared by code point: faster, and a prefix is a range of the unique index in every database.
    value = models.CharField(max_length=512, db_collation="C")
    profile = models.ForeignKey(Profile, models.PROTECT, related_name="identifiers")
    origin = models.UUIDField(
        null=True, help_text="The profile it was first given, which it gets back when it is split"
    )
    created_at = models.DateTimeField()
    registers = models.JSONField(default=dict, help_text="As Profile.registers, of this anchor's events alone")
    trait_states = models.JSONField(default=dict, help_text="As Profile.trait_states, of this anchor's events alone")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["namespace", "value"], name="identifier_namespace_value")]

    def __str__(self) -> str:
        return f"{self.namespace}:{self.value}"


class SourceClass(models.IntegerChoices):
    """How far a source is believed: lower goes first in canonical order."""

    SERVER = 0
    BROWSER = 1


class Edge(models.Model):
    """Evidence that two identifiers are one person: the strongest event that said so."""

    id = models.BigAutoField(primary_key=True)
    left = models.ForeignKey(Identifier, models.PROTECT, related_name="+")
    right = models.ForeignKey(Identifier, models.PROTECT, related_name="edges_right")
    source = models.ForeignKey("cdp.Source", models.PROTECT, related_name="+", db_constraint=False)
    source_class = models.SmallIntegerField(choices=SourceClass)
    occurred_at = models.DateTimeField(help_text="Clamped to the time of receipt")
    message_id = models.CharField(max_length=255)
    rule_version = models.IntegerField(default=1)
    refused = models.CharField(max_length=64, blank=True, help_text="Why the rules did not join the two, if so")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["left", "right"], name="edge_left_right"),
            models.CheckConstraint(condition=models.Q(left__lt=models.F("right")), name="edge_ordered"),
        ]

    def __str__(self) -> str:
        return f"{self.left} ~ {self.right}"


class IdentityDecision(models.Model):
    """A merge, a refused merge, a split or an unmerge: a fact, with its reason and its event or author.

    An unmerge stands until `lifted_at`: the identifiers of its two sides (`UnmergeSide`) are kept apart.
    """

    class Kind(models.TextChoices):
        MERGE = "merge"
        REFUSAL = "refusal"
        SPLIT = "split", "Split by the rules"
        UNMERGE = "unmerge"

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=16, choices=Kind)
    reason = models.CharField(max_length=64)
    detail = models.JSONField(default=dict, help_text="The identifiers and profiles concerned")
    profile = models.ForeignKey(Profile, models.PROTECT, related_name="decisions", help_text="The one that stays")
    other = models.ForeignKey(Profile, models.PROTECT, null=True, blank=True, related_name="+")
    source = models.ForeignKey(
        "cdp.Source", models.PROTECT, null=True, blank=True, related_name="+", db_constraint=False
    )
    message_id = models.CharField(max_length=255, blank=True)
    occurred_at = models.DateTimeField()
    decided_at = models.DateTimeField()
    author = models.CharField(max_length=255, db_default="", blank=True, help_text="Who took it, if a person did")
    lifted_at = models.DateTimeField(null=True, blank=True, help_text="An unmerge stands until then")
    lifted_by = models.CharField(max_length=255, db_default="", blank=True)
    reviewed_at = models.DateTimeField(null=True, blank=True, help_text="When a person looked at it")
    reviewed_by = models.CharField(max_length=255, db_default="", blank=True)

    class Meta:
        indexes = [
            # What nobody has looked at yet, newest first.
            models.Index(fields=["kind", "-id"], condition=models.Q(reviewed_at=None), name="decision_unreviewed"),
        ]

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


class UnmergeSide(models.Model):
    """Which side of an unmerge an identifier is on; those of one side stay together."""

    class Side(models.IntegerChoices):
        KEPT = 0, "Stayed"
        TAKEN = 1, "Taken out"

    id = models.BigAutoField(primary_key=True)
    decision = models.ForeignKey(IdentityDecision, models.CASCADE, related_name="sides")
    identifier = models.ForeignKey(Identifier, models.CASCADE, related_name="unmerges")
    side = models.SmallIntegerField(choices=Side)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["decision", "identifier"], name="unmerge_side_decision_identifier")
        ]

    def __str__(self) -> str:
        return f"{self.identifier} ({self.get_side_display()})"


class IdentityRules(models.Model):
    """A version of the rules that say which identifiers belong together; the newest one that is not a draft counts.

    `namespaces`: name → {limit, priority, blocked, shared_after}; "*" stands for every other namespace.
    """

    class Status(models.TextChoices):
        DRAFT = "draft"
        APPLYING = "applying", "Applying: counts for new evidence, the past is on its way"
        APPLIED = "applied"

    version = models.AutoField(primary_key=True)
    status = models.CharField(max_length=16, choices=Status, default=Status.DRAFT)
    namespaces = models.JSONField()
    note = models.TextField(blank=True, help_text="Why it was changed")
    author = models.CharField(max_length=255, blank=True)
    created_at = models.DateTimeField()
    applied_at = models.DateTimeField(null=True, blank=True)
    progress = models.JSONField(
        default=dict, blank=True, help_text="Of the job: profiles to look at, done, split, merged"
    )

    class Meta:
        verbose_name_plural = "identity rules"

    def __str__(self) -> str:
        return f"version {self.version}"
