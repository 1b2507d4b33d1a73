"""Profiles: found by their identifiers, and shown with what is known of them and what they did."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple
from uuid import UUID

from django.contrib import admin
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html, format_html_join
from unfold.decorators import display

from cdp import lookup, masking, timeline
from cdp.admin import profile_edits, trace
from cdp.admin.base import Records, context_of
from cdp.api import lists
from cdp.models import Identifier, IdentityDecision, Profile
from cdp.processing.decode import TYPES
from cdp.processing.identity import ANONYMOUS_ID, EMAIL, USER_ID

SEARCH_LIMIT = 200
PAGE = 25
# What one page shows of people who have very many.
MAX_IDENTIFIERS = 200
MAX_DECISIONS = 10
COLOURS = {"track": "success", "identify": "info", "page": "", "screen": "", "group": "warning", "alias": "warning"}


class Entry(NamedTuple):
    """An event of the timeline, ready to show; `body` is JSON that people can read, `trace` where it is followed."""

    event: dict[str, Any]
    title: str
    colour: str
    body: str
    trace: str


class Trait(NamedTuple):
    """A trait, ready to show."""

    name: str
    value: str


@admin.register(Profile)
class ProfileAdmin(Records):
    """People."""

    list_display = ["name_shown", "identifiers_shown", "events", "last_seen", "created_at"]
    list_display_links = ["name_shown"]
    search_fields = ["identifiers__value"]
    search_help_text = "Identifier, namespace:value or profile id"
    ordering = ["-created_at", "-id"]

    @display(description="Name")
    def name_shown(self, profile: Profile) -> str:
        """Show what people call the profile."""
        return profile.display_name

    @display(description="Identifiers")
    def identifiers_shown(self, profile: Profile) -> str:
        """Show the first identifier of the first namespaces."""
        namespaces = sorted(filter(profile.identity_graph.get, profile.identity_graph), key=_rank)
        shown = [(namespace, profile.identity_graph[namespace][0]) for namespace in namespaces[:3]]
        rest = " …" if len(namespaces) > 3 else ""
        listed = format_html_join(" ", '<span class="mt-identifier"><b>{}</b> {}</span>', shown)
        return format_html("{}{}", listed, rest)

    @display(description="Events")
    def events(self, profile: Profile) -> Any:
        """Show how many events the person caused."""
        return profile.computed_traits.get("event_count", 0)

    @display(description="Last seen")
    def last_seen(self, profile: Profile) -> datetime | None:
        """Show the time of the latest event."""
        value = profile.computed_traits.get("last_seen")
        return parse_datetime(value) if isinstance(value, str) else None

    def get_queryset(self, request: HttpRequest) -> QuerySet[Profile]:
        """Leave out what only processors read."""
        return super().get_queryset(request).defer("registers", "trait_states")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Profile], search_term: str
    ) -> tuple[QuerySet[Profile], bool]:
        """Find profiles by an identifier, or its beginning for those who may read it anyway."""
        term = search_term.strip()
        if not term:
            return queryset.filter(merged_into=None), False
        prefix = not masking.applies_to(request.user)
        return queryset.filter(pk__in=lookup.search(term, limit=SEARCH_LIMIT, prefix=prefix)), False

    def get_urls(self) -> list[Any]:
        """Add the addresses of a timeline's further pages, and of the form that changes a profile."""
        older = self.admin_site.admin_view(self.timeline_view)
        edit = self.admin_site.admin_view(self.edit_view)
        return [
            path("<uuid:profile_id>/timeline/", older, name="cdp_profile_timeline"),
            path("<uuid:profile_id>/edit/", edit, name="cdp_profile_edit"),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show a profile; of a merged one, where it went."""
        profile = self._found(request, object_id)
        masks = masking.applies_to(request.user)
        survivor = lookup.survivor(profile.pk) if profile.merged_into_id else None
        context = context_of(
            self,
            request,
            title=profile.display_name,
            original=profile,
            profile=profile,
            survivor=self._found(request, str(survivor)) if survivor else None,
            graph=_graph(profile.pk, masked=masks),
            traits=_traits(profile.traits),
            computed=_traits(profile.computed_traits),
            decisions=_decisions(self, request, profile.pk),
            types=sorted(TYPES),
            **profile_edits.shown(request, profile),
            **_timeline(request, profile.pk, masked=masks),
        )
        return TemplateResponse(request, "cdp/profile.html", context)

    def timeline_view(self, request: HttpRequest, profile_id: UUID) -> HttpResponse:
        """Show a further page of a timeline, to be put below the one before."""
        profile = self._found(request, str(profile_id))
        found = _timeline(request, profile.pk, masked=masking.applies_to(request.user))
        return TemplateResponse(request, "cdp/timeline.html", {"profile": profile, **found})

    def edit_view(self, request: HttpRequest, profile_id: UUID) -> HttpResponse:
        """Show the form that changes a profile, or do what it asks for."""
        return profile_edits.view(self, request, self._found(request, str(profile_id)))

    def _found(self, request: HttpRequest, object_id: str) -> Profile:
        profile = self.get_object(request, object_id)
        if profile is None or not self.has_view_permission(request, profile):
            raise Http404(f"There is no profile {object_id}.")
        return profile


def _graph(profile_id: UUID, *, masked: bool) -> list[tuple[str, list[Identifier]]]:
    """Return a profile's identifiers by namespace, user ids first."""
    rows = Identifier.objects.filter(profile_id=profile_id).only("namespace", "value", "created_at")
    found = sorted(rows.order_by("id")[:MAX_IDENTIFIERS], key=lambda row: _rank(row.namespace))
    for row in found:
        row.value = masking.text(row.value) if masked else row.value
    return [(namespace, list(group)) for namespace, group in groupby(found, lambda row: row.namespace)]


def _rank(namespace: str) -> tuple[int, str]:
    """Order namespaces: what people call somebody by comes first, and cookies last."""
    return {USER_ID: 0, EMAIL: 1, ANONYMOUS_ID: 3}.get(namespace, 2), namespace


def _traits(traits: dict[str, Any]) -> list[Trait]:
    return [Trait(name, _readable(value)) for name, value in sorted(traits.items())]


def _readable(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _decisions(page: admin.ModelAdmin, request: HttpRequest, profile_id: UUID) -> Iterable[IdentityDecision]:
    decisions = page.admin_site.get_model_admin(IdentityDecision).get_queryset(request)
    return decisions.filter(profile_id=profile_id).select_related("other").order_by("-id")[:MAX_DECISIONS]


def _timeline(request: HttpRequest, profile_id: UUID, *, masked: bool) -> dict[str, Any]:
    """Return a page of a timeline as its template wants it."""
    kind = request.GET.get("type", "")
    try:
        position = lists.position(request.GET.get("before", ""), lists.instant, lists.row_id)
    except lists.BadCursor:
        position = None
    rows = timeline.of_profile(
        profile_id,
        limit=PAGE + 1,
        before=timeline.Position(*position) if position else None,
        wanted=timeline.Filter(event_type=kind if kind in TYPES else ""),
    )
    shown = [timeline.decoded(row) for row in rows[:PAGE]]
    older = lists.cursor((shown[-1]["occurred_at"], shown[-1]["event_id"])) if len(rows) > PAGE else ""
    return {"entries": [_entry(masking.event(row) if masked else row) for row in shown], "older": older, "type": kind}


def _entry(event: dict[str, Any]) -> Entry:
    said = event["properties"]
    title = event["name"] or (", ".join(list(said)[:6]) if isinstance(said, dict) else "")
    shown = {
        "properties": said,
        **({"context": event["context"]} if event["context"] else {}),
        "identifiers": {row["namespace"]: row["value"] for row in event["identifiers"]},
        "message_id": event["message_id"],
        "received_at": event["received_at"].isoformat(),
        **({"flags": event["flags"]} if event["flags"] else {}),
    }
    try:
        body = json.dumps(shown, indent=2, ensure_ascii=False)
    except RecursionError:
        body = json.dumps(shown | {"properties": "…", "context": "…"}, indent=2, ensure_ascii=False)
    return Entry(event, title, COLOURS.get(event["event_type"], ""), body, trace.address(event["message_id"]))
