"""Profiles, their timelines and identifiers."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from asgiref.sync import async_to_sync
from django.conf import settings
from drf_spectacular.utils import OpenApiParameter, extend_schema
from msgspec import Raw
from rest_framework import serializers
from rest_framework.exceptions import APIException, NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cdp import audit, edits, lookup, masking, timeline
from cdp.api import erasures, lists
from cdp.api.access import masks
from cdp.collector import reads
from cdp.models import Identifier
from cdp.processing.decode import TYPES
from cdp.profiles import ProfileReader

READ = {"GET": "profiles:read"}
REFERENCE = OpenApiParameter(
    "reference", str, OpenApiParameter.PATH, description="A profile's id, or `namespace:value` of an identifier"
)


class IdentifierSerializer(serializers.Serializer):
    """A namespace and a value."""

    namespace = serializers.CharField()
    value = serializers.CharField()


class ProfileSerializer(serializers.Serializer):
    """A person as we know them."""

    id = serializers.UUIDField()
    identifiers = IdentifierSerializer(many=True)
    traits = serializers.DictField(help_text="What sources said")
    computed_traits = serializers.DictField(help_text="What the platform computed of the events")
    consent = serializers.DictField(
        help_text="By purpose and topic: whether it is granted, since when, and the evidence"
    )
    version = serializers.IntegerField(help_text="Counts accepted changes")
    as_of = serializers.DateTimeField(help_text="When this was true")
    created_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField()


class EventSerializer(serializers.Serializer):
    """An event of a timeline."""

    event_id = serializers.IntegerField()
    event_type = serializers.ChoiceField(choices=sorted(TYPES))
    name = serializers.CharField(help_text="The event's, page's or screen's name")
    properties = serializers.DictField(help_text="Properties, or the traits of identify and group")
    context = serializers.DictField()  # type: ignore[assignment]
    identifiers = IdentifierSerializer(many=True)
    occurred_at = serializers.DateTimeField(help_text="The sender's time, corrected")
    received_at = serializers.DateTimeField()
    ingested_at = serializers.DateTimeField()
    message_id = serializers.CharField()
    source = serializers.CharField(allow_null=True, help_text="Its name")  # type: ignore[assignment]
    flags = serializers.ListField(child=serializers.CharField(), help_text="What was remarkable, such as future_time")


class IdentifierRowSerializer(IdentifierSerializer):
    """An identifier of a profile."""

    created_at = serializers.DateTimeField()


class PositionQuery(lists.Query):
    """What every read of one profile takes."""

    min_position = serializers.CharField(
        required=False, default="", help_text="Of the header `X-Martech-Position`: wait until its effects are visible"
    )


class ProfilesQuery(lists.ListQuery):
    """What the list of profiles takes."""

    identifier = serializers.CharField(required=False, default="", help_text="`namespace:value`: only its profile")

    def validate_identifier(self, value: str) -> str:
        """Return the identifier; it has a namespace."""
        if value and ":" not in value:
            raise serializers.ValidationError("Write it as namespace:value, such as user_id:42.")
        return value


class TimelineQuery(lists.ListQuery, PositionQuery):
    """What a timeline takes."""

    type = serializers.ChoiceField(choices=sorted(TYPES), required=False, default="")
    name = serializers.CharField(required=False, default="", help_text="The event's exact name")
    since = serializers.DateTimeField(required=False, default=None, help_text="Included")
    until = serializers.DateTimeField(required=False, default=None, help_text="Not included")


class IdentifiersQuery(lists.ListQuery, PositionQuery):
    """What the list of a profile's identifiers takes."""


class NotYet(APIException):
    """The asked position has not been processed in time."""

    status_code = 504
    default_code = "position_not_reached"
    wait = 5


def wait_for(token: str) -> None:
    """Wait until the effects of a position token can be read; NotYet where that takes too long."""
    if token and not async_to_sync(_wait)(token):
        raise NotYet(f"Processing has not reached position {token[:200]} within {reads.WAIT_SECONDS:.0f} s. Try again.")


async def _wait(token: str) -> bool:
    reader = ProfileReader(settings.CONFIG.cache_url, settings.CONFIG.database_url)
    try:
        return await reader.wait_for(token, reads.WAIT_SECONDS)
    finally:
        await reader.aclose()


def found(reference: str) -> UUID:
    """Return the id of the profile that an address names, or answer 404."""
    profile_id = lookup.by_reference(reference)
    if profile_id is None:
        raise NotFound(f"There is no profile {reference}. Check its namespace and spelling.")
    return profile_id


def shown(document: bytes, *, masked: bool) -> Any:
    """Return a profile's document as it is answered."""
    return masking.document(msgspec.json.decode(document)) if masked else Raw(document)


class Version(msgspec.Struct):
    """What an ETag is made of."""

    version: int = 0


class Profiles(APIView):
    """All profiles."""

    scopes = READ

    @extend_schema(operation_id="list_profiles", parameters=[ProfilesQuery], responses=lists.page_of(ProfileSerializer))
    def get(self, request: Request) -> Response:
        """List profiles, newest first."""
        query, masked = lists.read(request, ProfilesQuery), masks(request)
        if query["identifier"]:
            profile_id = lookup.by_identifier(*query["identifier"].split(":", 1))
            document = lookup.document(profile_id) if profile_id else None
            return Response({"results": [shown(document, masked=masked)] if document else [], "next": None})
        rows = lookup.newest(
            limit=query["limit"] + 1, before=lists.position(query["cursor"], lists.instant, lists.uuid)
        )
        return lists.respond(
            request, rows, query["limit"], position=lambda row: row[:2], show=lambda row: shown(row[2], masked=masked)
        )


class EditSerializer(serializers.Serializer):
    """What to change of a profile."""

    traits = serializers.DictField(
        required=False,
        help_text="Values by name; null takes one away. By merge policy also $union, $remove, $set, $add",
    )
    consent = serializers.DictField(
        required=False, help_text="By purpose false, or {granted, evidence, topics}; an opt-in needs evidence"
    )


class Edit(msgspec.Struct, forbid_unknown_fields=True):
    """The same as it is read, with exact numbers."""

    traits: dict[str, Any] = {}
    consent: dict[str, Any] = {}


_edit = msgspec.json.Decoder(Edit, float_hook=Decimal)
IF_MATCH = OpenApiParameter(
    "If-Match", str, OpenApiParameter.HEADER, required=True, description="The ETag that the profile was read with"
)


class BadEdit(APIException):
    """The body is not of the form of an edit."""

    status_code = 400
    default_code = "invalid"


class VersionRequired(APIException):
    """An edit does not say what it was decided on."""

    status_code = 428
    default_code = "version_required"
    default_detail = "Send `If-Match` with the ETag that the profile was read with."


class VersionMoved(APIException):
    """Somebody was quicker."""

    status_code = 412

    def __init__(self, error: edits.Moved) -> None:
        super().__init__(error.message, error.code)
        self.headers = {"ETag": f'"{error.version}"'}
        self.members = {"version": error.version}


class Refused(APIException):
    """The merge policy of a trait has another source decide."""

    status_code = 409


def versions_of(request: Request) -> set[int]:
    """Return the versions that `If-Match` names; VersionRequired without any."""
    versions = {int(number) for number in re.findall(r'"([0-9]{1,18})"', request.headers.get("If-Match", ""))}
    if not versions:
        raise VersionRequired
    return versions


class Profile(APIView):
    """One profile."""

    scopes = {"GET": "profiles:read", "PATCH": "profiles:write", "DELETE": erasures.ERASE}

    @extend_schema(operation_id="get_profile", parameters=[REFERENCE, PositionQuery], responses=ProfileSerializer)
    def get(self, request: Request, reference: str) -> Response:
        """Get a profile by its id or one of its identifiers; a merged one answers as the profile it became part of."""
        wait_for(lists.read(request, PositionQuery)["min_position"])
        document = lookup.document(found(reference)) or b"{}"
        version = msgspec.json.decode(document, type=Version).version
        return Response(shown(document, masked=masks(request)), headers={"ETag": f'"{version}"'})

    @extend_schema(
        operation_id="change_profile",
        parameters=[REFERENCE, IF_MATCH],
        request=EditSerializer,
        responses=ProfileSerializer,
    )
    def patch(self, request: Request, reference: str) -> Response:
        """Change given traits and consent of a profile that is as it was read; 412 where somebody was quicker."""
        versions = versions_of(request)
        try:
            given = _edit.decode(request.body)
        except msgspec.DecodeError as error:
            raise BadEdit(f"The body is no edit: {error}. Send an object with `traits`, `consent` or both.") from error
        try:
            edited = edits.edit(
                profile_id=found(reference), versions=versions, traits=given.traits, consent=given.consent,
                actor=audit.actor_of(request),
            )  # fmt: skip
        except edits.Moved as error:
            raise VersionMoved(error) from error
        except edits.UnknownProfile as error:
            raise NotFound(error.message) from error
        except edits.Overruled as error:
            raise Refused(error.message, error.code) from error
        return Response(shown(edited.document, masked=masks(request)), headers={"ETag": f'"{edited.version}"'})

    @extend_schema(
        operation_id="erase_profile",
        parameters=[REFERENCE, erasures.ErasureQuery],
        request=None,
        responses={202: erasures.ErasureSerializer},
    )
    def delete(self, request: Request, reference: str) -> Response:
        """Erase a person from every store, by a profile's id or any identifier, and keep them out from now on."""
        return erasures.requested(request, reference)


class Timeline(APIView):
    """A profile's events."""

    scopes = READ

    @extend_schema(
        operation_id="list_profile_events",
        parameters=[REFERENCE, TimelineQuery],
        responses=lists.page_of(EventSerializer),
    )
    def get(self, request: Request, reference: str) -> Response:
        """List the events of a profile's identifiers, newest first."""
        query = lists.read(request, TimelineQuery)
        before = lists.position(query["cursor"], lists.instant, lists.row_id)
        wait_for(query["min_position"])
        rows = timeline.of_profile(
            found(reference),
            limit=query["limit"] + 1,
            before=timeline.Position(*before) if before else None,
            wanted=timeline.Filter(query["type"], query["name"], query["since"], query["until"]),
        )
        return events(request, rows, query["limit"])


def events(request: Request, rows: list[dict[str, Any]], limit: int) -> Response:
    """Answer a page of a timeline."""
    return lists.respond(
        request,
        rows,
        limit,
        position=lambda row: (row["occurred_at"], row["event_id"]),
        show=_masked_event if masks(request) else _event,
    )


def _event(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: Raw(row[name].encode()) for name in timeline.JSON_COLUMNS}


def _masked_event(row: dict[str, Any]) -> dict[str, Any]:
    return masking.event(timeline.decoded(row))


class Identifiers(APIView):
    """A profile's identifiers."""

    scopes = READ

    @extend_schema(
        operation_id="list_profile_identifiers",
        parameters=[REFERENCE, IdentifiersQuery],
        responses=lists.page_of(IdentifierRowSerializer),
    )
    def get(self, request: Request, reference: str) -> Response:
        """List a profile's identifiers, newest first."""
        query, masked = lists.read(request, IdentifiersQuery), masks(request)
        wait_for(query["min_position"])
        rows = Identifier.objects.filter(profile_id=found(reference)).only("namespace", "value", "created_at")
        return lists.by_id(request, rows, query, lambda row: _identifier(row, masked=masked))


def _identifier(row: Identifier, *, masked: bool) -> dict[str, Any]:
    value = masking.text(row.value) if masked else row.value
    return {"namespace": row.namespace, "value": value, "created_at": row.created_at}
