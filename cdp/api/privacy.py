"""The export of a person, and the audit trail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cdp import audit, export, subjects
from cdp.api import lists
from cdp.api.profiles import REFERENCE
from cdp.models import AuditEntry


class ExportSerializer(serializers.Serializer):
    """Everything on a person; a list of each store's rows, as they are kept."""

    exported_at = serializers.DateTimeField()
    asked_for = serializers.ListField(child=serializers.CharField(), help_text="The person's identifiers")
    profiles = serializers.ListField(child=serializers.DictField(), help_text="Those that became part of it, too")
    identifiers = serializers.ListField(child=serializers.DictField(), help_text="With what each one's events built")
    accounts = serializers.ListField(child=serializers.DictField())
    edges = serializers.ListField(child=serializers.DictField(), help_text="What joined the identifiers")
    decisions = serializers.ListField(child=serializers.DictField())
    events = serializers.ListField(child=serializers.DictField(), help_text="Oldest first, by identifier")
    archived_events = serializers.ListField(child=serializers.DictField(), help_text="Those that only the archive has")
    dead_letters = serializers.ListField(child=serializers.DictField())
    audit = serializers.ListField(child=serializers.DictField(), help_text="Who did what with the profile")
    holders = serializers.DictField(help_text="What other parts keep of the person, by their names")
    counts = serializers.DictField(
        child=serializers.IntegerField(), help_text="Rows of each section: an export that ends without is not whole"
    )


class Export(APIView):
    """Everything on one person."""

    scopes = {"GET": "profiles:export"}

    @extend_schema(operation_id="export_profile", parameters=[REFERENCE], responses=ExportSerializer)
    def get(self, request: Request, reference: str) -> HttpResponseBase:
        """Export everything on a person as one JSON document, by a profile's id or any identifier."""
        try:
            return streamed(request._request, reference, actor=audit.actor_of(request))
        except subjects.UnknownPerson as error:
            raise NotFound(error.message) from error


def streamed(request: HttpRequest, reference: str, *, actor: str) -> StreamingHttpResponse:
    """Answer an export piece by piece, as the server that asks takes it; the file is called without a value."""
    pieces = export.joined(export.written(reference, actor=actor))
    # Under ASGI Django would gather a plain iterator in memory before it sends anything.
    body: Any = _each(pieces) if isinstance(request, ASGIRequest) else pieces
    answered = StreamingHttpResponse(body, content_type="application/json")
    answered["Content-Disposition"] = 'attachment; filename="export.json"'
    answered["Cache-Control"] = "no-store"
    return answered


async def _each(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    following = sync_to_async(lambda: next(pieces, b""))
    while piece := await following():
        yield piece


class AuditEntrySerializer(serializers.ModelSerializer):
    """What a person or an API key did: names and ids, never values."""

    class Meta:
        model = AuditEntry
        fields = ["id", "at", "actor", "action", "object_type", "object_id", "detail"]


class AuditQuery(lists.ListQuery):
    """What the audit trail takes."""

    action = serializers.CharField(required=False, default="", help_text="Such as profile.erase")
    object_type = serializers.CharField(required=False, default="", help_text="Such as profile or source")
    object_id = serializers.CharField(required=False, default="")
    actor = serializers.CharField(required=False, default="", help_text="admin:NAME, key:NAME or command:USER")


class AuditEntries(APIView):
    """The audit trail."""

    scopes = {"GET": "audit:read"}

    @extend_schema(
        operation_id="list_audit_entries", parameters=[AuditQuery], responses=lists.page_of(AuditEntrySerializer)
    )
    def get(self, request: Request) -> Response:
        """List who did what, newest first."""
        query = lists.read(request, AuditQuery)
        asked = {name: query[name] for name in ("action", "object_type", "object_id", "actor") if query[name]}
        rows = AuditEntry.objects.filter(**asked)
        return lists.by_id(request, rows, query, lambda entry: AuditEntrySerializer(entry).data)
