"""Sources: their write keys, and how to send with them."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import path, reverse
from django.utils.html import format_html
from django.views.decorators.http import require_POST
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextareaWidget

from cdp.admin.base import Page
from cdp.admin.snippets import snippets
from cdp.models import Source
from cdp.sources import check_rules, rotate_write_key


class SourceForm(forms.ModelForm):
    """A source as people may change it."""

    class Meta:
        model = Source
        fields = ["name", "kind", "enabled", "rules", "quota"]
        widgets = {"rules": UnfoldAdminTextareaWidget(attrs={"rows": 3})}

    def clean_rules(self) -> dict[str, list[str]]:
        """Refuse rules that are not of the closed set."""
        try:
            return check_rules(self.cleaned_data["rules"] or {})
        except ValueError as error:
            raise forms.ValidationError(str(error)) from error


@admin.register(Source)
class SourceAdmin(Page):
    """Senders of events."""

    form = SourceForm
    list_display = ["name", "kind_label", "enabled", "created_at"]
    list_filter = ["kind", "enabled"]
    search_fields = ["name"]
    ordering = ["name"]
    change_form_outer_after_template = "cdp/source_snippets.html"

    @display(description="Kind", label={"server": "info", "browser": "warning", "mobile": "warning"})
    def kind_label(self, source: Source) -> str:
        """Show the kind as a label."""
        return source.kind

    @display(description="Write key")
    def write_key_shown(self, source: Source) -> str:
        """Show the write key with a button that copies it."""
        return format_html(
            '<code class="mt-key">{}</code> <button type="button" class="mt-copy" data-copy="{}">Copy</button>',
            source.write_key,
            source.write_key,
        )

    def get_fields(self, request: HttpRequest, obj: Source | None = None) -> list[str]:
        """Show the write key to those who may change sources."""
        key = ["write_key_shown"] if obj and self.has_change_permission(request, obj) else []
        return ["name", "kind", "enabled", "rules", "quota", *key, *(["created_at"] if obj else [])]

    def get_readonly_fields(self, request: HttpRequest, obj: Source | None = None) -> list[str]:
        """Let keys and times be read only."""
        return ["write_key_shown", "created_at"]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: events name their source for ever; switch it off instead."""
        return False

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Add ready-made calls to the form."""
        source = self.get_object(request, object_id)
        more = extra_context or {}
        if source is not None and self.has_change_permission(request, source):
            more = more | {"source": source, "snippets": snippets(request.build_absolute_uri("/"), source.write_key)}
        return super().change_view(request, object_id, form_url, more)

    def get_urls(self) -> list[Any]:
        """Add the address that replaces a write key."""
        rotate = self.admin_site.admin_view(require_POST(self.rotate_view))
        return [path("<int:source_id>/rotate-key/", rotate, name="cdp_source_rotate_key"), *super().get_urls()]

    def rotate_view(self, request: HttpRequest, source_id: int) -> HttpResponse:
        """Give a source a new write key."""
        source = get_object_or_404(Source, pk=source_id)
        if not self.has_change_permission(request, source):
            return HttpResponse(status=403)
        rotate_write_key(source)
        self.log_change(request, source, "Rotated the write key.")
        self.message_user(request, "New write key. The old one is refused within 5 seconds.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:cdp_source_change", args=[source_id]))
