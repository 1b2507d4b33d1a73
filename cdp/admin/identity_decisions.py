"""Identity decisions, to review: who was joined, kept apart or split, and on what evidence."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.http import require_POST
from unfold.contrib.filters.admin import RadioFilter
from unfold.decorators import display

from cdp import audit, identity_graph, identity_rules, lookup, masking, reviews
from cdp.admin import graph_picture, trace, unmerges
from cdp.admin.base import Records, context_of
from cdp.admin.records import EMPTY, profile_link
from cdp.models import IdentityDecision
from cdp.processing.clusters import ANY, UNMERGED

REVIEW = "cdp.change_identitydecision"
Kind = IdentityDecision.Kind


class ReviewedFilter(RadioFilter):
    """What nobody has looked at yet."""

    title = "review"
    parameter_name = "reviewed"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the choices."""
        return [("no", "Not reviewed"), ("yes", "Reviewed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[IdentityDecision]) -> QuerySet[IdentityDecision]:
        """Keep what was reviewed, or was not."""
        return queryset.filter(reviewed_at__isnull=self.value() == "no") if self.value() else queryset


class ReasonFilter(RadioFilter):
    """Why two were kept apart, or came together after all."""

    title = "reason"
    parameter_name = "reason"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return what the rules and people can say; the calls that merges come from are not looked for."""
        limits = [f"limit_{name}" for name in identity_rules.current().namespaces if name != ANY]
        names = [*sorted(limits), UNMERGED, "two_identified_people", "late_evidence", "rules", "replay", "by_hand"]
        return [(name, name) for name in names]

    def queryset(self, request: HttpRequest, queryset: QuerySet[IdentityDecision]) -> QuerySet[IdentityDecision]:
        """Keep the decisions of the reason."""
        return queryset.filter(reason=self.value()) if self.value() else queryset


@admin.register(IdentityDecision)
class IdentityDecisionAdmin(Records):
    """Merges, refusals, splits and unmerges."""

    list_display = ["kind_label", "reason", "profile_shown", "other_shown", "source", "decided_at", "reviewed"]
    list_display_links = ["kind_label"]
    list_filter = [ReviewedFilter, "kind", ReasonFilter]
    list_filter_submit = True
    list_filter_sheet = True
    list_select_related = ["profile", "other", "source"]
    ordering = ["-id"]
    actions = ["review_selected"]

    @display(
        description="Decision", label={"merge": "success", "refusal": "warning", "unmerge": "info", "split": "info"}
    )
    def kind_label(self, decision: IdentityDecision) -> str:
        """Show the kind as a label."""
        return decision.kind

    @display(description="Profile")
    def profile_shown(self, decision: IdentityDecision) -> str:
        """Link to the profile that stays."""
        return profile_link(decision.profile)

    @display(description="Other profile")
    def other_shown(self, decision: IdentityDecision) -> str:
        """Link to the other profile."""
        return profile_link(decision.other)

    @display(description="Reviewed", boolean=True)
    def reviewed(self, decision: IdentityDecision) -> bool:
        """Show whether somebody has looked at it."""
        return decision.reviewed_at is not None

    def has_review_permission(self, request: HttpRequest) -> bool:
        """Return whether somebody may say that a decision was looked at."""
        return request.user.has_perm(REVIEW)

    @admin.action(description="Mark as reviewed", permissions=["review"])
    def review_selected(self, request: HttpRequest, queryset: QuerySet[IdentityDecision]) -> None:
        """Mark the selected decisions as reviewed."""
        self._review(request, list(queryset.values_list("pk", flat=True)[: self.list_max_show_all]))

    def get_urls(self) -> list[Any]:
        """Add the addresses that review a decision and that lift an unmerge."""
        views = {"review": require_POST(self.review_view), "lift": self.lift_view}
        return [
            *(
                path(f"<int:pk>/{name}/", self.admin_site.admin_view(view), name=f"cdp_identitydecision_{name}")
                for name, view in views.items()
            ),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show a decision with its people, their identifiers and the evidence."""
        decision = self.get_object(request, object_id)
        if decision is None or not self.has_view_permission(request, decision):
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        survivor = lookup.survivor(decision.profile_id)
        takes = unmerges.may(request) and decision.kind == Kind.MERGE and survivor
        links = identity_graph.of_decision(decision.pk, masked=masking.applies_to(request.user))
        context = context_of(
            self,
            request,
            title=f"{decision.get_kind_display()} of {decision.decided_at:%-d %b %Y, %H:%M}",
            original=decision,
            decision=decision,
            why=graph_picture.why(decision.reason),
            identifiers=_identifiers(decision.detail),
            evidence=graph_picture.rows(links),
            trace=trace.address(decision.message_id),
            survivor=survivor,
            taken=unmerges.taken_by(decision, survivor) if takes and survivor else [],
            may_lift=unmerges.may(request) and decision.kind == Kind.UNMERGE and decision.lifted_at is None,
            may_review=self.has_review_permission(request) and decision.reviewed_at is None,
            empty=EMPTY,
        )
        return TemplateResponse(request, "cdp/identity_decision.html", context)

    def review_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Mark one decision as reviewed."""
        if not self.has_review_permission(request):
            raise PermissionDenied
        self._review(request, [pk])
        return HttpResponseRedirect(reverse("admin:cdp_identitydecision_change", args=[pk]))

    def lift_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Show what lifting an unmerge would do, or do it."""
        decision = self.get_object(request, str(pk))
        if decision is None:
            raise Http404(f"There is no decision {pk}.")
        return unmerges.lift_view(self, request, decision)

    def _review(self, request: HttpRequest, ids: list[int]) -> None:
        done = reviews.review(ids, author=audit.actor_of(request))
        words = "1 decision marked as reviewed." if done == 1 else f"{done} decisions marked as reviewed."
        self.message_user(request, words, messages.SUCCESS if done else messages.WARNING)


def _identifiers(detail: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the identifiers that a decision names."""
    found = detail.get("identifiers", [])
    return [(one[0], one[1]) for one in found if isinstance(one, list) and len(one) == 2]
