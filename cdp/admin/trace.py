"""Following one event, by its message id: a page in the place of a list that nobody could read."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.http import urlencode

from cdp import masking
from cdp import trace as tracing
from cdp.admin.base import Records, context_of
from cdp.models import Event, Source
from martech.lib.errors import PermanentError

COLOURS = {
    tracing.STORED: "success", tracing.WAITING: "warning", tracing.REPLAYING: "warning", tracing.QUARANTINED: "danger",
    tracing.REPLAYED: "success", tracing.UNKNOWN: "danger",
}  # fmt: skip


def address(message_id: str) -> str:
    """Return the address at which an event is followed, "" where its id is unknown or masked."""
    if not message_id or masking.DOTS in message_id:
        return ""
    return f"{reverse('admin:cdp_event_changelist')}?{urlencode({'q': message_id})}"


@admin.register(Event)
class EventAdmin(Records):
    """One event at a time."""

    def get_urls(self) -> list[Any]:
        """Return the one page."""
        return [path("", self.admin_site.admin_view(self.changelist_view), name="cdp_event_changelist")]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the search, and what is known of the event that was asked for."""
        if not self.has_view_permission(request):
            return HttpResponse(status=403)
        message_id, source = request.GET.get("q", "").strip(), request.GET.get("source", "")
        found, trouble = None, ""
        if message_id:
            try:
                found = tracing.trace(message_id, source=source or None)
            except PermanentError as error:
                trouble = error.message
        context = context_of(
            self,
            request,
            title="Trace an event",
            asked=message_id,
            source=source,
            sources=Source.objects.order_by("name").values_list("name", flat=True)[:500],
            trouble=trouble,
            found=_shown(found, masked=masking.applies_to(request.user)) if found else None,
            colour=COLOURS[found.status] if found else "",
        )
        return TemplateResponse(request, "cdp/trace.html", context)


def _shown(found: tracing.Trace, *, masked: bool) -> dict[str, Any]:
    shown = tracing.document(found, masked=masked)
    for event in shown["events"]:
        event["said"] = json.dumps(
            {"properties": event["properties"], "context": event["context"]}, indent=2, ensure_ascii=False
        )
        for one in (*event["effects"]["computed"], *event["effects"]["given"]):
            one |= {key: _readable(one[key]) for key in ("contributed", "value") if key in one}
    return shown


def _readable(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
