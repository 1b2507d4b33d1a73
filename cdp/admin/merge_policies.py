"""Merge policies: how the values of a trait that sources disagree on become one."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from unfold.decorators import display

from cdp import audit, merge_policies
from cdp.admin.base import Page
from cdp.models import MergePolicy, Source


class MergePolicyForm(forms.ModelForm):
    """A policy as people may set it."""

    class Meta:
        model = MergePolicy
        fields = ["trait", "policy", "sources"]
        help_texts = {
            "policy": "Counts from the next event on; manage.py replay --repair brings older values under it.",
        }

    def clean(self) -> dict[str, Any]:
        """Refuse a policy that cannot be, with the reason."""
        given = super().clean() or {}
        trait = given.get("trait") or self.instance.trait
        if trait and "policy" in given:
            try:
                merge_policies.check(trait=trait, policy=given["policy"], sources=given.get("sources") or [])
            except ValueError as error:
                raise forms.ValidationError(str(error)) from error
        return given


@admin.register(MergePolicy)
class MergePolicyAdmin(Page):
    """How given traits are kept; one without a policy is kept as its newest value."""

    form = MergePolicyForm
    list_display = ["trait", "policy_label", "sources_shown", "version"]
    list_filter = ["policy"]
    ordering = ["trait"]

    @display(description="Policy")
    def policy_label(self, policy: MergePolicy) -> str:
        """Show what the policy does."""
        return policy.get_policy_display()

    @display(description="Sources")
    def sources_shown(self, policy: MergePolicy) -> str:
        """Name the sources, the most trusted first."""
        names = dict(Source.objects.filter(pk__in=policy.sources).values_list("pk", "name"))
        return ", ".join(names.get(one, str(one)) for one in policy.sources)

    def get_fields(self, request: HttpRequest, obj: MergePolicy | None = None) -> list[str]:
        """Show the version of what exists."""
        return ["trait", "policy", "sources", *(["version"] if obj else [])]

    def get_readonly_fields(self, request: HttpRequest, obj: MergePolicy | None = None) -> list[str]:
        """Let a policy stay with its trait."""
        return ["trait", "version"] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: what it kept would stand above all that came later; set it to newest instead."""
        return False

    def save_model(self, request: HttpRequest, obj: MergePolicy, form: Any, change: bool) -> None:
        """Make or change the policy, which raises its version."""
        given = form.cleaned_data
        sources = given["sources"] or []
        if change:
            stored = MergePolicy.objects.get(pk=obj.pk)
            merge_policies.change(stored, kind=given["policy"], sources=sources)
        else:
            stored = merge_policies.create(trait=given["trait"], policy=given["policy"], sources=sources)
        obj.__dict__.update(stored.__dict__)
        detail = {"trait": obj.trait, "policy": obj.policy, "sources": obj.sources, "version": obj.version}
        audit.record(actor=audit.actor_of(request), action="merge_policy.change", object_type="merge_policy",
                     object_id=obj.pk, detail=detail)  # fmt: skip
