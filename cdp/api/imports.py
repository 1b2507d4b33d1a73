"""Imports: files of events, and how far each is."""

from __future__ import annotations

from typing import Any

import msgspec
from django.conf import settings
from django.db import transaction
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cdp import audit, tasks
from cdp.api import lists
from cdp.imports import ledger, uploads
from cdp.imports.mapping import Mapping, complete
from cdp.imports.records import FORMATS, layout_of
from cdp.models import EventImport, Source


class MappingField(serializers.CharField):
    """A mapping, as JSON."""

    def to_internal_value(self, data: Any) -> Any:
        """Return the mapping; what it names is checked against the file."""
        try:
            return msgspec.json.decode(super().to_internal_value(data), type=Mapping)
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise serializers.ValidationError(f"This is no mapping: {error}.") from error


class ImportInput(lists.Query):
    """A file, and what its columns are."""

    source = serializers.PrimaryKeyRelatedField(queryset=Source.objects.all(), help_text="Whose events they are")  # type: ignore[assignment]
    file = serializers.FileField(help_text="CSV with a header row, or one JSON object a line; may end in .gz")
    file_format = serializers.ChoiceField(choices=FORMATS, required=False, help_text="Default: what its name says")
    mapping = MappingField(
        required=False,
        help_text="JSON: `columns` (column → field), `constants` (field → text), `types` (column → type), "
        "`only_mapped`, `time_zone`, `time_format`, `encoding`, `delimiter`; as the command's options of these names",
    )

    def validate_file(self, value: Any) -> Any:
        """Refuse a file that is too large."""
        if value.size > settings.IMPORT_UPLOAD_BYTES:
            raise serializers.ValidationError("The file is too large. Raise IMPORT_UPLOAD_MB, or use the command.")
        return value


class ImportSerializer(serializers.ModelSerializer):
    """An import: `events` are rows in the log, `errors` lines that could not be read, `offset` bytes that were."""

    class Meta:
        model = EventImport
        fields = [
            "id", "name", "sha256", "source", "file_format", "status", "size", "offset", "events", "errors", "trouble",
            "author", "created_at", "updated_at", "finished_at",
        ]  # fmt: skip


def shown(found: EventImport) -> Any:
    """Return what the API says of an import."""
    return ImportSerializer(found).data


class Imports(APIView):
    """All imports."""

    scopes = {"GET": "imports:read", "POST": "imports:write"}
    parser_classes = [MultiPartParser]

    @extend_schema(operation_id="list_imports", parameters=[lists.ListQuery], responses=lists.page_of(ImportSerializer))
    def get(self, request: Request) -> Response:
        """List imports, newest first."""
        return lists.by_id(request, EventImport.objects.all(), lists.read(request, lists.ListQuery), shown)

    @extend_schema(
        operation_id="import_file", request=ImportInput, responses={200: ImportSerializer, 202: ImportSerializer}
    )
    def post(self, request: Request) -> Response:
        """Import a file of events (202); one that was imported already changes nothing (200)."""
        given = lists.body(request, ImportInput)
        found = uploads.receive(
            upload=given["file"], source=given["source"], file_format=given.get("file_format", ""),
            author=audit.actor_of(request),
        )  # fmt: skip
        if found.status == ledger.Status.DONE:
            return Response(shown(found))
        found = _begin(found, given.get("mapping", Mapping()), audit.actor_of(request))
        return Response(shown(found), 202)


def _begin(found: EventImport, asked: Mapping, author: str) -> EventImport:
    with uploads.content(found) as stream:
        layout = layout_of(stream, found.file_format, encoding=asked.encoding, delimiter=asked.delimiter)
    with transaction.atomic():
        begun = ledger.begin(sha256=found.sha256, source=found.source, mapping=complete(asked, layout), author=author)
        transaction.on_commit(lambda: tasks.run_import.delay(begun.pk))
    return begun


class ImportDetail(APIView):
    """One import."""

    scopes = {"GET": "imports:read"}

    @extend_schema(operation_id="get_import", responses=ImportSerializer)
    def get(self, request: Request, import_id: int) -> Response:
        """Get an import: how far it is, and why it stopped if it did."""
        return Response(shown(get_object_or_404(EventImport, pk=import_id)))
