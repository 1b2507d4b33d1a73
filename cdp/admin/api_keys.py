"""API keys: made, shown once, revoked."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.http import require_POST
from unfold.decorators import display
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from cdp import keys
from cdp.admin.base import Page, context_of
from cdp.api.access import SCOPES, person_may
from cdp.masking import User
from cdp.models import ApiKey
from martech.lib import clock


class ApiKeyForm(forms.ModelForm):
    """A key to make."""

    scopes = forms.MultipleChoiceField(
        choices=[(scope, f"{scope} – {meaning}") for scope, (meaning, _permission) in SCOPES.items()],
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
    )

    maker: User

    class Meta:
        model = ApiKey
        fields = ["name", "scopes", "expires_at"]

    def clean_scopes(self) -> list[str]:
        """Refuse scopes that its maker does not have."""
        beyond = [scope for scope in self.cleaned_data["scopes"] if not person_may(self.maker, scope)]
        if beyond:
            raise forms.ValidationError(f"You cannot give the scope {beyond[0]}, which you do not have.")
        return self.cleaned_data["scopes"]


@admin.register(ApiKey)
class ApiKeyAdmin(Page):
    """Keys to the REST API."""

    form = ApiKeyForm
    list_display = ["name", "prefix_shown", "state", "scopes_shown", "created_at", "last_used_at"]
    search_fields = ["name"]
    ordering = ["-id"]
    change_form_outer_after_template = "cdp/api_key_revoke.html"

    @display(description="Key")
    def prefix_shown(self, key: ApiKey) -> str:
        """Show the visible beginning."""
        return f"{key.prefix}…"

    @display(description="Scopes")
    def scopes_shown(self, key: ApiKey) -> str:
        """Show the scopes as a list."""
        return ", ".join(key.scopes)

    @display(description="State", label={"active": "success", "revoked": "danger", "expired": "warning"})
    def state(self, key: ApiKey) -> str:
        """Say whether the key still opens anything."""
        if key.revoked_at:
            return "revoked"
        return "expired" if key.expires_at and key.expires_at <= clock.now() else "active"

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> list[str]:
        """Ask for little, show all but the secret."""
        if obj is None:
            return ["name", "scopes", "expires_at"]
        return [
            "name", "prefix_shown", "state", "scopes_shown", "created_at", "expires_at", "revoked_at", "last_used_at",
        ]  # fmt: skip

    def get_form(self, request: HttpRequest, obj: ApiKey | None = None, change: bool = False, **options: Any) -> Any:
        """Let the form know who makes the key."""
        form = super().get_form(request, obj, change=change, **options)
        return type(form.__name__, (form,), {"maker": request.user})

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False for a key that exists: it is revoked and made anew, not changed."""
        return obj is None and super().has_change_permission(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: a revoked key stays, so that it is known whose it was."""
        return False

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Make the key, and keep its secret for the answer to this request."""
        given = form.cleaned_data
        key, secret = keys.create_api_key(name=given["name"], scopes=given["scopes"], expires_at=given["expires_at"])
        obj.__dict__.update(key.__dict__)
        request.new_secret = secret  # type: ignore[attr-defined]

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        """Show the secret, this once: it is in this answer and nowhere else."""
        context = context_of(self, request, title="New API key", key=obj, secret=request.new_secret)  # type: ignore[attr-defined]
        return TemplateResponse(request, "cdp/api_key_made.html", context, headers={"Cache-Control": "no-store"})

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Say whether the key can be revoked."""
        key = self.get_object(request, object_id)
        allowed = key is not None and key.revoked_at is None and super().has_change_permission(request)
        return super().change_view(request, object_id, form_url, (extra_context or {}) | {"revocable": allowed})

    def get_urls(self) -> list[Any]:
        """Add the address that revokes a key."""
        revoke = self.admin_site.admin_view(require_POST(self.revoke_view))
        return [path("<int:key_id>/revoke/", revoke, name="cdp_apikey_revoke"), *super().get_urls()]

    def revoke_view(self, request: HttpRequest, key_id: int) -> HttpResponse:
        """Revoke a key."""
        if not super().has_change_permission(request):
            return HttpResponse(status=403)
        key = get_object_or_404(ApiKey, pk=key_id)
        if keys.revoke_api_key(key):
            self.log_change(request, key, "Revoked.")
        self.message_user(request, f"{key.name} is revoked: it is refused within 5 seconds.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:cdp_apikey_changelist"))
