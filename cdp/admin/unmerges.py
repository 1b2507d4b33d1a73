"""The pages that take a profile apart and that lift an unmerge: what would come of it first, then the deed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID
from zlib import crc32

from django.contrib import messages
from django.contrib.admin import ModelAdmin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from cdp import audit, identity_graph, masking, unmerging
from cdp.admin import graph_picture, profile_edits
from cdp.admin.base import context_of, masked
from cdp.models import Identifier, IdentityDecision, Profile
from cdp.processing.identity import Identifier as Named
from cdp.unmerging import Part
from martech.lib.errors import MartechError

PERMISSION = "cdp.unmerge_profile"


@dataclass(frozen=True, slots=True)
class Side:
    """A profile as it would be, ready to show."""

    part: Part
    name: str
    fate: str
    consent: list[profile_edits.Choice]


def may(request: HttpRequest) -> bool:
    """Return whether somebody may take profiles apart, of which they see everything."""
    return request.user.has_perm(PERMISSION) and not masking.applies_to(request.user)


def shown(request: HttpRequest, profile: Profile) -> dict[str, Any]:
    """Return what the profile's page shows of who it is: the graph, its evidence, and the unmerges that stand."""
    hidden = masking.applies_to(request.user)
    graph = identity_graph.read(profile.pk, masked=hidden)
    stands = unmerging.standing(profile.pk)
    return {
        "identities": graph,
        "picture": graph_picture.draw(graph),
        "evidence": graph_picture.rows(graph.links),
        "unmerges": [masked(one) for one in stands] if hidden else stands,
        "may_unmerge": may(request) and profile.merged_into_id is None,
        "separable": len(graph.nodes) > 1 and sum(one.inside for one in graph.nodes) > 1,
    }


def unmerge_view(page: ModelAdmin, request: HttpRequest, profile: Profile) -> HttpResponse:
    """Show what taking identifiers out of a profile would make of it; once that is confirmed, do it."""
    if not may(request):
        raise PermissionDenied
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    back = reverse("admin:cdp_profile_change", args=[profile.pk])
    asked = {int(one) for one in request.POST.getlist("identifier") if one.isdecimal() and len(one) < 19}
    held = list(Identifier.objects.filter(profile_id=profile.pk).only("namespace", "value").order_by("pk"))
    chosen = [Named(row.namespace, row.value) for row in held if row.pk in asked]
    if len(chosen) != len(asked):
        return _said(page, request, back, "Some of them are another profile's by now. Choose again.")
    state = str(crc32(",".join(str(row.pk) for row in held).encode()))
    try:
        if "confirmed" not in request.POST or request.POST.get("state") != state:
            planned = unmerging.plan(profile_id=profile.pk, identifiers=chosen)
            return _preview(
                page, request, planned, title=f"Take {profile.display_name} apart", original=profile, back=back,
                identifiers=sorted(asked), state=state, moved="confirmed" in request.POST,
            )  # fmt: skip
        note = request.POST.get("note", "").strip()[:2000]
        done = unmerging.unmerge(profile_id=profile.pk, identifiers=chosen, author=audit.actor_of(request), note=note)
    except MartechError as error:
        return _said(page, request, back, error.message)
    page.message_user(request, _told(done, len(chosen)), messages.SUCCESS)
    return HttpResponseRedirect(reverse("admin:cdp_profile_change", args=[done.parts[-1].profile_id]))


def lift_view(page: ModelAdmin, request: HttpRequest, decision: IdentityDecision) -> HttpResponse:
    """Show what lifting an unmerge would make of its people; once that is confirmed, do it."""
    if not may(request):
        raise PermissionDenied
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    back = reverse("admin:cdp_identitydecision_change", args=[decision.pk])
    try:
        if "confirmed" not in request.POST:
            planned = unmerging.plan_lift(decision.pk)
            return _preview(page, request, planned, title="Lift an unmerge", decision=decision, back=back)
        done = unmerging.lift(decision.pk, author=audit.actor_of(request))
    except MartechError as error:
        return _said(page, request, back, error.message)
    words = "The unmerge is lifted: evidence decides again who is who."
    page.message_user(request, words, messages.SUCCESS)
    return HttpResponseRedirect(reverse("admin:cdp_profile_change", args=[done.parts[-1].profile_id]))


def _said(page: ModelAdmin, request: HttpRequest, back: str, trouble: str) -> HttpResponse:
    page.message_user(request, trouble, messages.ERROR)
    return HttpResponseRedirect(back)


def _preview(
    page: ModelAdmin, request: HttpRequest, planned: unmerging.Unmerged, *, title: str, **more: Any
) -> TemplateResponse:
    # It was taken back, so these are the profiles that there are without it.
    there = set(
        Profile.objects.filter(pk__in=[one.profile_id for one in planned.parts], merged_into=None).values_list(
            "pk", flat=True
        )
    )
    sides = [_side(one, there) for one in planned.parts]
    return TemplateResponse(request, "cdp/unmerge.html", context_of(page, request, title=title, sides=sides, **more))


def _side(part: Part, there: set[UUID]) -> Side:
    fate = "stays" if not part.is_new else "takes them in" if part.profile_id in there else "becomes a profile"
    return Side(part, _name(part), fate, list(profile_edits.choices(part.consent)))


def _name(part: Part) -> str:
    graph: dict[str, list[str]] = {}
    for namespace, value in part.identifiers:
        graph.setdefault(namespace, []).append(value)
    return Profile(id=part.profile_id, traits=part.traits, identity_graph=graph).display_name


def _told(done: unmerging.Unmerged, number: int) -> str:
    ids = "1 identifier is" if number == 1 else f"{number} identifiers are"
    others = ", ".join(_name(one) for one in done.parts[:-1])
    return f"Taken apart: {ids} this profile's now. The others stayed with {others}."


def taken_by(decision: IdentityDecision, profile_id: UUID) -> list[int]:
    """Return the rows of the identifiers that a merge brought into a profile, as far as they are still there."""
    if decision.other_id is None:
        return []
    origins = Profile.objects.raw(
        "WITH RECURSIVE came AS (SELECT id, 0 AS depth FROM customer_profiles WHERE id = %s UNION ALL"
        " SELECT p.id, depth + 1 FROM came JOIN customer_profiles p ON p.merged_into_id = came.id WHERE depth < 64)"
        " SELECT id FROM came LIMIT 10000",
        [decision.other_id],
    )
    mine = Identifier.objects.filter(profile_id=profile_id)
    taken = list(mine.filter(origin__in=[one.pk for one in origins]).order_by("pk").values_list("pk", flat=True)[:200])
    return taken if len(taken) < mine[:201].count() else []
