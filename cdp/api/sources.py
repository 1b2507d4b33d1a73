"""Sources and their write keys."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.validators import UniqueValidator

from cdp import keys
from cdp.api import lists
from cdp.api.access import allows
from cdp.api.audited import AuditedView
from cdp.models import Source
from cdp.sources import RULES, check_rules, rotate_write_key

WRITE = "sources:write"


class RulesField(serializers.JSONField):
    """A source's rules."""

    def to_internal_value(self, data: Any) -> dict[str, list[str]]:
        """Return the rules, of a closed set."""
        try:
            return check_rules(super().to_internal_value(data))
        except ValueError as error:
            raise serializers.ValidationError(str(error)) from error


class SourceInput(lists.Query):
    """What a source may be told."""

    name = serializers.CharField(max_length=128, validators=[UniqueValidator(Source.objects.all())])
    kind = serializers.ChoiceField(choices=Source.Kind.choices, required=False, help_text="How far it is believed")
    enabled = serializers.BooleanField(required=False)
    quota = serializers.IntegerField(
        min_value=0, max_value=2**31 - 1, allow_null=True, required=False,
        help_text="Events a second and web worker it may still send while the log fills up; null: SOURCE_QUOTA",
    )  # fmt: skip
    rules = RulesField(required=False, help_text=f"Overrides of its kind: lists of texts named {', '.join(RULES)}")


class SourceSerializer(serializers.ModelSerializer):
    """A sender of events. `write_key` is shown with the scope `sources:write` only."""

    write_key = serializers.CharField(required=False)

    class Meta:
        model = Source
        fields = ["id", "name", "kind", "enabled", "rules", "quota", "write_key", "created_at"]

    def to_representation(self, instance: Source) -> dict[str, Any]:
        """Leave the write key out for those who may not see it."""
        row = super().to_representation(instance)
        if not allows(self.context["request"], WRITE):
            del row["write_key"]
        return row


class Sources(AuditedView):
    """All sources."""

    scopes = {"GET": "sources:read", "POST": WRITE}
    audited = {"POST": ("source.create", "source")}

    @extend_schema(operation_id="list_sources", parameters=[lists.ListQuery], responses=lists.page_of(SourceSerializer))
    def get(self, request: Request) -> Response:
        """List sources, newest first."""
        return lists.by_id(request, Source.objects.all(), lists.read(request, lists.ListQuery), shown(request))

    @extend_schema(operation_id="create_source", request=SourceInput, responses={201: SourceSerializer})
    def post(self, request: Request) -> Response:
        """Create a source; the answer has its write key."""
        given = lists.body(request, SourceInput)
        with transaction.atomic():
            source = keys.create_source(name=given.pop("name"), kind=given.pop("kind", Source.Kind.SERVER))
            change(source, given)
        return Response(shown(request)(source), 201)


class SourceDetail(AuditedView):
    """One source."""

    scopes = {"GET": "sources:read", "PATCH": WRITE}
    audited = {"PATCH": ("source.change", "source")}

    @extend_schema(operation_id="get_source", responses=SourceSerializer)
    def get(self, request: Request, source_id: int) -> Response:
        """Get a source."""
        return Response(shown(request)(get_object_or_404(Source, pk=source_id)))

    @extend_schema(operation_id="change_source", request=SourceInput(partial=True), responses=SourceSerializer)
    def patch(self, request: Request, source_id: int) -> Response:
        """Rename a source, switch it on or off, change its kind, rules or quota."""
        source = get_object_or_404(Source, pk=source_id)
        change(source, lists.body(request, SourceInput, instance=source))
        return Response(shown(request)(source))


class RotateKey(AuditedView):
    """A source's write key."""

    scopes = {"POST": WRITE}
    audited = {"POST": ("source.rotate_key", "source")}

    @extend_schema(operation_id="rotate_write_key", request=None, responses=SourceSerializer)
    def post(self, request: Request, source_id: int) -> Response:
        """Give a source a new write key; the old one is refused within 5 s."""
        source = get_object_or_404(Source, pk=source_id)
        rotate_write_key(source)
        return Response(shown(request)(source))


def change(source: Source, given: dict[str, Any]) -> None:
    """Write the given fields of a source."""
    if given:
        for name, value in given.items():
            setattr(source, name, value)
        source.save(update_fields=list(given))


def shown(request: Request) -> Any:
    """Return what shows a source to the one who asks."""
    return lambda source: SourceSerializer(source, context={"request": request}).data
