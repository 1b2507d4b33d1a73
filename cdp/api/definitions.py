"""Computed traits and identity decisions."""

from __future__ import annotations

from typing import Any

from django.db.models import Q
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cdp import masking
from cdp.api import lists
from cdp.api.access import masks
from cdp.api.profiles import found
from cdp.models import IdentityDecision, TraitDefinition

READ = {"GET": "profiles:read"}


class TraitSerializer(serializers.ModelSerializer):
    """A computed trait's definition."""

    class Meta:
        model = TraitDefinition
        fields = ["id", "name", "kind", "event_type", "event_name", "options", "version", "enabled", "description"]


class DecisionSerializer(serializers.ModelSerializer):
    """A merge, a refused merge or an unmerge."""

    profile = serializers.UUIDField(source="profile_id", help_text="The one that stays")
    other = serializers.UUIDField(source="other_id", allow_null=True)
    source = serializers.CharField(source="source.name", allow_null=True, default=None, help_text="Its name")  # type: ignore[assignment]

    class Meta:
        model = IdentityDecision
        fields = [
            "id", "kind", "reason", "detail", "profile", "other", "source", "message_id", "occurred_at", "decided_at",
        ]  # fmt: skip


class DecisionsQuery(lists.ListQuery):
    """What the list of identity decisions takes."""

    profile = serializers.CharField(required=False, default="", help_text="A profile's id, or `namespace:value`")
    kind = serializers.ChoiceField(choices=IdentityDecision.Kind.choices, required=False, default="")


class Traits(APIView):
    """Computed traits."""

    scopes = READ

    @extend_schema(operation_id="list_traits", parameters=[lists.ListQuery], responses=lists.page_of(TraitSerializer))
    def get(self, request: Request) -> Response:
        """List the definitions of computed traits, newest first."""
        query = lists.read(request, lists.ListQuery)
        return lists.by_id(request, TraitDefinition.objects.all(), query, lambda trait: TraitSerializer(trait).data)


class Decisions(APIView):
    """Identity decisions."""

    scopes = READ

    @extend_schema(
        operation_id="list_identity_decisions",
        parameters=[DecisionsQuery],
        responses=lists.page_of(DecisionSerializer),
    )
    def get(self, request: Request) -> Response:
        """List merges, refusals and unmerges, newest first."""
        query, masked = lists.read(request, DecisionsQuery), masks(request)
        decisions = IdentityDecision.objects.select_related("source")
        if query["profile"]:
            profile_id = found(query["profile"])
            decisions = decisions.filter(Q(profile_id=profile_id) | Q(other_id=profile_id))
        if query["kind"]:
            decisions = decisions.filter(kind=query["kind"])
        return lists.by_id(request, decisions, query, lambda decision: _shown(decision, masked=masked))


def _shown(decision: IdentityDecision, *, masked: bool) -> dict[str, Any]:
    row = DecisionSerializer(decision).data
    if masked:
        row["detail"] = masking.everything(row["detail"])
        row["message_id"] = masking.addresses(row["message_id"])
    return row
