"""Dead letters: what could not be processed, and giving it back to the log."""

from __future__ import annotations

from typing import Any

import msgspec
from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import PolymorphicProxySerializer, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cdp import dead_letters, masking, rehearsal
from cdp.api import lists
from cdp.api.access import masks
from cdp.api.audited import AuditedView
from cdp.models import DeadLetter, Source

READ = {"GET": "dead_letters:read"}
FILTERS = ("reason", "source", "message_id", "since", "until")


class SourceName(serializers.SlugRelatedField):
    """A source by its name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(slug_field="name", queryset=Source.objects.all(), **options)


class DeadLetterSerializer(serializers.ModelSerializer):
    """An event that could not be processed, with the reason."""

    source = serializers.CharField(source="source.name", help_text="Its name")  # type: ignore[assignment]

    class Meta:
        model = DeadLetter
        fields = [
            "id", "status", "reason", "detail", "source", "message_id", "received_at", "created_at", "replayed_at",
            "attempts",
        ]  # fmt: skip


class DeadLetterDetailSerializer(DeadLetterSerializer):
    """A dead letter with what the sender sent."""

    payload = serializers.CharField(help_text="What the sender sent, as text; indented where it is JSON")
    payload_json = serializers.JSONField(help_text="The same as JSON; null where it is not")
    truncated = serializers.BooleanField(help_text=f"Only its first {dead_letters.SHOWN_BYTES} bytes are shown")

    class Meta(DeadLetterSerializer.Meta):
        fields = [*DeadLetterSerializer.Meta.fields, "payload", "payload_json", "truncated"]


class LetterFilter(lists.Query):
    """Which dead letters are meant."""

    reason = serializers.CharField(required=False, default="", allow_blank=True)
    source = SourceName(required=False, default=None, allow_null=True, help_text="Its name")  # type: ignore[assignment]
    message_id = serializers.CharField(required=False, default="", allow_blank=True, trim_whitespace=False)
    since = serializers.DateTimeField(required=False, default=None, allow_null=True, help_text="Received then or later")
    until = serializers.DateTimeField(required=False, default=None, allow_null=True, help_text="Received before")


class DeadLettersQuery(LetterFilter, lists.ListQuery):
    """What the list of dead letters takes."""

    status = serializers.ChoiceField(choices=DeadLetter.Status.choices, required=False, default="")


class GroupSerializer(serializers.Serializer):
    """The dead letters of one status, reason and source."""

    status = serializers.ChoiceField(choices=DeadLetter.Status.choices)
    reason = serializers.CharField()
    source = serializers.CharField(help_text="Its name")  # type: ignore[assignment]
    count = serializers.IntegerField(help_text=f"Counted up to {dead_letters.COUNT_CAP}")
    shown = serializers.CharField(help_text=f"The count as text: `{dead_letters.COUNT_CAP}+` where there are more")
    newest_at = serializers.DateTimeField()


class SummarySerializer(serializers.Serializer):
    """All groups."""

    results = GroupSerializer(many=True)


class ReplayInput(LetterFilter):
    """Which dead letters to replay: those of which all of this is true."""

    ids = serializers.ListField(child=serializers.IntegerField(min_value=1, max_value=2**63 - 1), required=False)
    dry_run = serializers.BooleanField(required=False, default=False, help_text="Only say what would become of them")

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        """Refuse an empty wish: everything at once is hardly ever meant."""
        if "ids" not in given and not any(given[name] for name in FILTERS):
            raise serializers.ValidationError(f"Say which: `ids`, {', '.join(f'`{name}`' for name in FILTERS)}.")
        return given


class ReplayedSerializer(serializers.Serializer):
    """How a replay went."""

    matched = serializers.IntegerField(help_text=f"Letters found, {dead_letters.REPLAY_LIMIT} at the most")
    replayed = serializers.IntegerField(help_text="Letters given back to the log")
    more = serializers.BooleanField(help_text="There are more: ask again")


class RehearsalSerializer(serializers.Serializer):
    """What a replay would do, asked with `dry_run`."""

    matched = serializers.IntegerField(help_text=f"Letters found, {dead_letters.REPLAY_LIMIT} at the most")
    would_store = serializers.IntegerField(help_text="Events that would be stored")
    would_repeat = serializers.IntegerField(help_text="Events that are stored already, and would be dropped")
    would_reject = serializers.DictField(
        child=serializers.IntegerField(), help_text="Events that would be put aside again, by reason"
    )
    more = serializers.BooleanField(help_text="There are more than were tried")


ReplayAnswer = PolymorphicProxySerializer(
    component_name="ReplayAnswer", serializers=[ReplayedSerializer, RehearsalSerializer], resource_type_field_name=None
)


def _matching(given: dict[str, Any]) -> QuerySet[DeadLetter]:
    source = given["source"]
    return dead_letters.matching(
        ids=given.get("ids"),
        reason=given["reason"],
        source_id=source.pk if source else None,
        message_id=given["message_id"],
        since=given["since"],
        until=given["until"],
    )


def _shown(letter: DeadLetter, *, masked: bool) -> dict[str, Any]:
    row = DeadLetterSerializer(letter).data
    if masked:
        row["detail"] = masking.prose(row["detail"])
        row["message_id"] = masking.addresses(row["message_id"])
    return row


class DeadLetters(APIView):
    """All dead letters."""

    scopes = READ

    @extend_schema(
        operation_id="list_dead_letters", parameters=[DeadLettersQuery], responses=lists.page_of(DeadLetterSerializer)
    )
    def get(self, request: Request) -> Response:
        """List dead letters, newest first."""
        query, masked = lists.read(request, DeadLettersQuery), masks(request)
        letters = _matching(query).select_related("source").defer("delivery")
        if query["status"]:
            letters = letters.filter(status=query["status"])
        return lists.by_id(request, letters, query, lambda letter: _shown(letter, masked=masked))


class Summary(APIView):
    """Dead letters by group."""

    scopes = READ

    @extend_schema(operation_id="summarise_dead_letters", responses=SummarySerializer)
    def get(self, request: Request) -> Response:
        """Count dead letters by status, reason and source."""
        return Response(SummarySerializer({"results": dead_letters.summary()}).data)


class DeadLetterDetail(APIView):
    """One dead letter."""

    scopes = READ

    @extend_schema(operation_id="get_dead_letter", responses=DeadLetterDetailSerializer)
    def get(self, request: Request, letter_id: int) -> Response:
        """Get a dead letter with what the sender sent."""
        letter = get_object_or_404(DeadLetter.objects.select_related("source"), pk=letter_id)
        masked = masks(request)
        payload = dead_letters.payload_of(letter)
        readable = payload.parsed and not masked
        return Response(
            {
                **_shown(letter, masked=masked),
                "payload": masking.DOTS if masked else payload.text,
                "payload_json": msgspec.Raw(payload.text.encode()) if readable else None,
                "truncated": payload.truncated,
            }
        )


class Replay(AuditedView):
    """Giving dead letters back to the log."""

    scopes = {"POST": "dead_letters:write"}
    audited = {"POST": ("dead_letter.replay", "deadletter")}

    @extend_schema(operation_id="replay_dead_letters", request=ReplayInput, responses=ReplayAnswer)
    def post(self, request: Request) -> Response:
        """Give dead letters back to the log, or say with `dry_run` what would become of them."""
        given = lists.body(request, ReplayInput)
        letters = _matching(given)
        if given["dry_run"]:
            return Response(RehearsalSerializer(rehearsal.rehearse(letters)).data)
        return Response(ReplayedSerializer(dead_letters.replay(letters)).data)
