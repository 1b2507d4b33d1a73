"""Dead letters: what could not be processed, and giving it back to the log."""

from __future__ import annotations

from typing import Any

import msgspec
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cdp import dead_letters, masking
from cdp.api import lists
from cdp.api.access import masks
from cdp.models import DeadLetter, Source

READ = {"GET": "dead_letters:read"}


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
        ]  # fmt: skip


class DeadLetterDetailSerializer(DeadLetterSerializer):
    """A dead letter with what the sender sent."""

    payload = serializers.CharField(help_text="What the sender sent, as text; indented where it is JSON")
    payload_json = serializers.JSONField(help_text="The same as JSON; null where it is not")
    truncated = serializers.BooleanField(help_text=f"Only its first {dead_letters.SHOWN_BYTES} bytes are shown")

    class Meta(DeadLetterSerializer.Meta):
        fields = [*DeadLetterSerializer.Meta.fields, "payload", "payload_json", "truncated"]


class DeadLettersQuery(lists.ListQuery):
    """What the list of dead letters takes."""

    status = serializers.ChoiceField(choices=DeadLetter.Status.choices, required=False, default="")
    reason = serializers.CharField(required=False, default="")
    source = SourceName(required=False, default=None, help_text="Its name")  # type: ignore[assignment]


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


class ReplayInput(lists.Query):
    """Which dead letters to replay: those of `ids`, or all new ones of a reason, a source or both."""

    ids = serializers.ListField(child=serializers.IntegerField(min_value=1, max_value=2**63 - 1), required=False)
    reason = serializers.CharField(required=False, default="", allow_blank=True)
    source = SourceName(required=False, default=None, allow_null=True, help_text="Its name")  # type: ignore[assignment]
    dry_run = serializers.BooleanField(required=False, default=False, help_text="Only say how many there are")

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        """Refuse an empty wish: everything at once is hardly ever meant."""
        if "ids" not in given and not given["reason"] and given["source"] is None:
            raise serializers.ValidationError("Say which: `ids`, `reason` or `source`.")
        return given


class ReplayedSerializer(serializers.Serializer):
    """How a replay went."""

    matched = serializers.IntegerField(help_text=f"New letters found, {dead_letters.REPLAY_LIMIT} at the most")
    replayed = serializers.IntegerField(help_text="Letters given back to the log")
    more = serializers.BooleanField(help_text="There are more: ask again")


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
        wanted = {name: query[name] for name in ("status", "reason", "source") if query[name]}
        letters = DeadLetter.objects.filter(**wanted).select_related("source").defer("delivery")
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


class Replay(APIView):
    """Giving dead letters back to the log."""

    scopes = {"POST": "dead_letters:write"}

    @extend_schema(operation_id="replay_dead_letters", request=ReplayInput, responses=ReplayedSerializer)
    def post(self, request: Request) -> Response:
        """Give new dead letters back to the log, to be processed as if they came now."""
        given = lists.body(request, ReplayInput)
        source = given["source"]
        letters = dead_letters.new_letters(
            ids=given.get("ids"), reason=given["reason"], source_id=source.pk if source else None
        )
        return Response(ReplayedSerializer(dead_letters.replay(letters, dry_run=given["dry_run"])).data)
