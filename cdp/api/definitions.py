"""Computed traits."""

from __future__ import annotations

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cdp.api import lists
from cdp.models import TraitDefinition

READ = {"GET": "profiles:read"}


class TraitSerializer(serializers.ModelSerializer):
    """A computed trait's definition."""

    class Meta:
        model = TraitDefinition
        fields = ["id", "name", "kind", "event_type", "event_name", "options", "version", "enabled", "description"]


class Traits(APIView):
    """Computed traits."""

    scopes = READ

    @extend_schema(operation_id="list_traits", parameters=[lists.ListQuery], responses=lists.page_of(TraitSerializer))
    def get(self, request: Request) -> Response:
        """List the definitions of computed traits, newest first."""
        query = lists.read(request, lists.ListQuery)
        return lists.by_id(request, TraitDefinition.objects.all(), query, lambda trait: TraitSerializer(trait).data)
