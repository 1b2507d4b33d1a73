"""Rows to look at: definitions, checkpoints, processors and task runs."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import CharField, OuterRef, Subquery, Value
from django.db.models.functions import Concat
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from unfold.decorators import display

from cdp.admin.base import Records
from cdp.models import Checkpoint, Processor, Profile, TaskRun, TraitDefinition

EMPTY = "–"


def profile_link(profile: Profile | None) -> str:
    """Return a link to a profile's page, by the name it goes by."""
    if profile is None:
        return EMPTY
    address = reverse("admin:cdp_profile_change", args=[profile.pk])
    return format_html('<a class="mt-link" href="{}">{}</a>', address, profile.display_name)


@admin.register(TraitDefinition)
class TraitDefinitionAdmin(Records):
    """Computed traits."""

    list_display = ["name", "kind", "counts", "version", "enabled", "description"]
    ordering = ["name"]

    @display(description="Of")
    def counts(self, trait: TraitDefinition) -> str:
        """Say which events it counts."""
        return " · ".join(part for part in (trait.event_type, trait.event_name) if part) or "all events"


@admin.register(Checkpoint)
class CheckpointAdmin(Records):
    """How far the log was processed."""

    list_display = ["partition", "position", "events", "holder", "epoch", "crashes", "updated_at", "log"]
    ordering = ["log", "partition"]

    def get_queryset(self, request: HttpRequest) -> Any:
        """Add the name of the process that holds each partition."""
        holder = Processor.objects.filter(pk=OuterRef("owner"))
        return super().get_queryset(request).annotate(
            held_by=Subquery(holder.annotate(name=Concat("host", Value(":"), "pid", output_field=CharField()))
                             .values("name")[:1])
        )  # fmt: skip

    @display(description="Held by", empty_value=EMPTY)
    def holder(self, checkpoint: Any) -> str | None:
        """Show the host and process id."""
        return checkpoint.held_by


@admin.register(Processor)
class ProcessorAdmin(Records):
    """Who takes events from the log."""

    list_display = ["name", "state", "given", "started_at", "expires_at", "log"]
    ordering = ["started_at"]

    @display(description="Processor")
    def name(self, processor: Processor) -> str:
        """Show the host and process id."""
        return str(processor)

    @display(description="State", label={"halted": "danger", "working": "success"})
    def state(self, processor: Processor) -> str:
        """Show whether it stands still."""
        return "halted" if processor.halted else "working"

    @display(description="Partitions")
    def given(self, processor: Processor) -> str:
        """Show the partitions that it was given."""
        return ", ".join(map(str, processor.partitions)) if processor.partitions is not None else "shared"


@admin.register(TaskRun)
class TaskRunAdmin(Records):
    """What tasks did."""

    list_display = ["task", "status_label", "attempts", "started_at", "ended_at"]
    list_filter = ["status"]
    ordering = ["-started_at"]

    @display(
        description="Status",
        label={"succeeded": "success", "failed": "danger", "retrying": "warning", "started": "info"},
    )
    def status_label(self, run: TaskRun) -> str:
        """Show the status as a label."""
        return run.status

    def get_queryset(self, request: HttpRequest) -> Any:
        """Leave errors, which may be long, to the page of one run."""
        rows = super().get_queryset(request)
        return rows.defer("error") if request.resolver_match.url_name.endswith("changelist") else rows  # type: ignore[union-attr]
