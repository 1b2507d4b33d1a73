"""Profiles: found by their identifiers, and shown with what is known of them and what they did."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import partial
from itertools import groupby
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html, format_html_join
from unfold.decorators import display

from cdp import lookup, masking, timeline
from cdp.admin import accounts, profile_edits, timelines, unmerges
from cdp.admin.base import Records, context_of
from cdp.admin.traits import rows_of
from cdp.models import Identifier, IdentityDecision, Profile
from cdp.processing.decode import TYPES
from cdp.processing.identity import ANONYMOUS_ID, EMAIL, USER_ID

SEARCH_LIMIT = 200
# What one page shows of people who have very many.
MAX_IDENTIFIERS = 200
MAX_DECISIONS = 10


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
        """Add the addresses of a timeline's further pages, and of what changes a profile."""
        older = self.admin_site.admin_view(self.timeline_view)
        edit = self.admin_site.admin_view(self.edit_view)
        unmerge = self.admin_site.admin_view(self.unmerge_view)
        return [
            path("<uuid:profile_id>/timeline/", older, name="cdp_profile_timeline"),
            path("<uuid:profile_id>/edit/", edit, name="cdp_profile_edit"),
            path("<uuid:profile_id>/unmerge/", unmerge, name="cdp_profile_unmerge"),
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
            traits=rows_of(profile.traits),
            computed=rows_of(profile.computed_traits),
            accounts=accounts.of_profile(self, request, profile.pk),
            decisions=_decisions(self, request, profile.pk),
            types=sorted(TYPES),
            **profile_edits.shown(request, profile),
            **unmerges.shown(request, profile),
            **_timeline(request, profile.pk, masked=masks),
        )
        return TemplateResponse(request, "cdp/profile.html", context)

    def timeline_view(self, request: HttpRequest, profile_id: UUID) -> HttpResponse:
        """Show a further page of a timeline, to be put below the one before."""
        profile = self._found(request, str(profile_id))
        found = _timeline(request, profile.pk, masked=masking.applies_to(request.user))
        return TemplateResponse(request, "cdp/timeline.html", found)

    def edit_view(self, request: HttpRequest, profile_id: UUID) -> HttpResponse:
        """Show the form that changes a profile, or do what it asks for."""
        return profile_edits.view(self, request, self._found(request, str(profile_id)))

    def unmerge_view(self, request: HttpRequest, profile_id: UUID) -> HttpResponse:
        """Show what taking a profile apart would make of it, or do it."""
        return unmerges.unmerge_view(self, request, self._found(request, str(profile_id)))

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


def _decisions(page: admin.ModelAdmin, request: HttpRequest, profile_id: UUID) -> Iterable[IdentityDecision]:
    decisions = page.admin_site.get_model_admin(IdentityDecision).get_queryset(request)
    return decisions.filter(profile_id=profile_id).select_related("other").order_by("-id")[:MAX_DECISIONS]


def _timeline(request: HttpRequest, profile_id: UUID, *, masked: bool) -> dict[str, Any]:
    """Return a page of a person's timeline as its template wants it."""
    return timelines.page(request, partial(timeline.of_profile, profile_id), masked=masked) | {
        "page_address": reverse("admin:cdp_profile_change", args=[profile_id]),
        "part_address": reverse("admin:cdp_profile_timeline", args=[profile_id]),
    }
