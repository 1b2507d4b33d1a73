"""Erasures with their receipts, the export of a person, and the audit trail."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html
from django.views.decorators.http import require_POST
from unfold.decorators import display

from cdp import audit, masking, privacy
from cdp.admin.base import Records, context_of
from cdp.api.privacy import streamed
from cdp.models import AuditEntry, Erasure
from cdp.subjects import UnknownPerson


class Receipt(NamedTuple):
    """What a store said, ready to show: "" and no time where it has not been asked yet."""

    store: str
    said: str
    at: Any


@admin.register(Erasure)
class ErasureAdmin(Records):
    """Requests to erase people, and what became of them."""

    list_display = ["requested_at", "status_label", "profile_shown", "requested_by", "finished_at"]
    list_display_links = ["requested_at"]
    list_filter = ["status"]
    ordering = ["-requested_at"]

    @display(description="Status", label={"requested": "warning", "running": "info", "done": "success"})
    def status_label(self, erasure: Erasure) -> str:
        """Show the status as a label."""
        return erasure.status

    @display(description="Profile", empty_value="none had it")
    def profile_shown(self, erasure: Erasure) -> str | None:
        """Show the id of the stub."""
        return str(erasure.profile_id) if erasure.profile_id else None

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return whether somebody may erase people."""
        return request.user.has_perm("cdp.add_erasure")

    def get_urls(self) -> list[Any]:
        """Add the address of an export."""
        export = self.admin_site.admin_view(require_POST(self.export_view))
        return [path("export/", export, name="cdp_person_export"), *super().get_urls()]

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show what an erasure would do; sent by a form, do it."""
        if not self.has_add_permission(request):
            return HttpResponse(status=403)
        if request.method == "POST":
            return self._requested(request)
        reference = request.GET.get("reference", "").strip()
        context = context_of(self, request, title="Erase a person", reference=reference)
        try:
            if reference:
                context["found"] = found = privacy.consequences(reference)
                masks = masking.applies_to(request.user)
                context["shown"] = [
                    (one.namespace, masking.text(one.value) if masks else one.value)
                    for one in found.subject.identifiers
                ]
        except UnknownPerson as error:
            context["trouble"] = error.message
        return TemplateResponse(request, "cdp/erasure_ask.html", context)

    def _requested(self, request: HttpRequest) -> HttpResponse:
        try:
            erasure = privacy.request(
                reference=request.POST.get("reference", ""), actor=audit.actor_of(request),
                reason=request.POST.get("reason", "")[:1000],
            )  # fmt: skip
        except UnknownPerson as error:
            self.message_user(request, error.message, messages.ERROR)
            return HttpResponseRedirect(reverse("admin:cdp_erasure_changelist"))
        self.message_user(request, "Nothing of the person comes in any more. The stores follow.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:cdp_erasure_change", args=[erasure.pk]))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show an erasure with its receipts."""
        erasure = self.get_object(request, object_id)
        if not self.has_view_permission(request, erasure):
            raise PermissionDenied
        if erasure is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        context = context_of(
            self, request, title="Erasure", original=erasure, erasure=erasure, receipts=_receipts(erasure)
        )
        return TemplateResponse(request, "cdp/erasure.html", context)

    def export_view(self, request: HttpRequest) -> HttpResponseBase:
        """Send everything on a person as a file."""
        if masking.applies_to(request.user):
            return HttpResponse(status=403)
        try:
            return streamed(request, request.POST.get("reference", ""), actor=audit.actor_of(request))
        except UnknownPerson as error:
            self.message_user(request, error.message, messages.ERROR)
            return HttpResponseRedirect(reverse("admin:cdp_profile_changelist"))


def _receipts(erasure: Erasure) -> list[Receipt]:
    """Return what the stores said, those that were not asked yet too, in the order of their turns."""
    shown = []
    for store in ("suppression", *privacy.STEPS):
        found = dict(erasure.receipts.get(store, {}))
        at = parse_datetime(found.pop("at", ""))
        standing = found.pop("standing", "")
        counts = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in found.items())
        shown.append(Receipt(store.replace("_", " "), standing or counts, at))
    return shown


@admin.register(AuditEntry)
class AuditEntryAdmin(Records):
    """Who did what."""

    list_display = ["at", "actor", "action", "object_type", "object_id"]
    list_display_links = ["at"]
    list_filter = ["action", "object_type"]
    search_fields = ["=object_id", "=actor"]
    search_help_text = "Id of an object, or an actor such as admin:NAME"
    ordering = ["-id"]
    fields = ["at", "actor", "action", "object_type", "object_id", "detail_shown"]

    @display(description="Detail")
    def detail_shown(self, entry: AuditEntry) -> str:
        """Show what else is known of it."""
        return format_html('<pre class="mt-json">{}</pre>', json.dumps(entry.detail, indent=2, ensure_ascii=False))
