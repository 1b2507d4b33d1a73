"""Following one event by its message id."""

from __future__ import annotations

from django.http import Http404
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cdp import effects
from cdp import trace as tracing
from cdp.api import lists
from cdp.api.access import allows, masks
from cdp.api.profiles import EventSerializer, IdentifierSerializer
from cdp.models import DeadLetter

STATUSES = (
    tracing.STORED, tracing.WAITING, tracing.REPLAYING, tracing.QUARANTINED, tracing.REPLAYED, tracing.UNKNOWN,
)  # fmt: skip
OUTCOMES = (
    effects.CURRENT, effects.OLDER, effects.COMBINED, effects.MISFIT, effects.REFUSED, effects.GONE,
)  # fmt: skip
MESSAGE_ID = OpenApiParameter("message_id", str, OpenApiParameter.PATH, description="As the sender gave it")


class ComputedSerializer(serializers.Serializer):
    """A computed trait that counts the event, by the definitions of now."""

    name = serializers.CharField()
    contributed = serializers.JSONField(help_text="What this event alone makes")
    value = serializers.JSONField(help_text="The profile's, now")


class GivenSerializer(serializers.Serializer):
    """A trait that the event set."""

    name = serializers.CharField()
    value = serializers.JSONField()
    outcome = serializers.ChoiceField(
        choices=OUTCOMES,
        help_text="older: a later one counts; combined, misfit: by its merge policy; refused: by the source's rules",
    )
    winner = serializers.CharField(help_text="The message whose value counts")
    won_at = serializers.DateTimeField(allow_null=True)


class TraceDecisionSerializer(serializers.Serializer):
    """An identity decision that the event led to."""

    id = serializers.IntegerField()
    kind = serializers.CharField()
    reason = serializers.CharField()
    profile_id = serializers.UUIDField()
    other_id = serializers.UUIDField(allow_null=True)
    identifiers = IdentifierSerializer(many=True)


class EdgeSerializer(serializers.Serializer):
    """Two identifiers that the event is the strongest evidence for."""

    left = IdentifierSerializer()
    right = IdentifierSerializer()
    refused = serializers.CharField(help_text="Why they were kept apart, if so")


class EffectsSerializer(serializers.Serializer):
    """What an event did."""

    computed = ComputedSerializer(many=True)
    given = GivenSerializer(many=True)
    decisions = TraceDecisionSerializer(many=True)
    edges = EdgeSerializer(many=True)


class TracedEventSerializer(EventSerializer):
    """A stored event, where it came from and what it did."""

    original_timestamp = serializers.CharField(allow_null=True, help_text="The sender's time as it was sent")
    trace_parent = serializers.CharField(allow_null=True, help_text="W3C trace context of its request")
    log_partition = serializers.IntegerField(allow_null=True)
    log_position = serializers.CharField(allow_null=True)
    profile_then = serializers.UUIDField(
        allow_null=True, help_text="Whose it was when it was processed; null where it concerns no person"
    )
    profile_id = serializers.UUIDField(allow_null=True, help_text="Whose it is now")
    profile_name = serializers.CharField()
    effects = EffectsSerializer()


class TracedLetterSerializer(serializers.Serializer):
    """A dead letter of the event."""

    id = serializers.IntegerField()
    source = serializers.CharField(help_text="Its name")  # type: ignore[assignment]
    status = serializers.ChoiceField(choices=DeadLetter.Status.choices)
    reason = serializers.CharField()
    detail = serializers.CharField(help_text="Empty without the scope `dead_letters:read`")
    received_at = serializers.DateTimeField()
    replayed_at = serializers.DateTimeField(allow_null=True)
    attempts = serializers.IntegerField(help_text="Replays that were put aside again")
    log_partition = serializers.IntegerField(allow_null=True)
    log_position = serializers.CharField(allow_null=True)


class WaitingSerializer(serializers.Serializer):
    """A copy that waits in the log."""

    source = serializers.CharField(help_text="Its name")  # type: ignore[assignment]
    partition = serializers.IntegerField()
    position = serializers.CharField()
    before = serializers.IntegerField(help_text="Entries of the partition that come first")
    received_at = serializers.DateTimeField()
    trace_parent = serializers.CharField()
    letter_id = serializers.IntegerField(help_text="The dead letter that was given back; 0: none")


class TraceSerializer(serializers.Serializer):
    """All that is known of a message id."""

    message_id = serializers.CharField()
    status = serializers.ChoiceField(choices=STATUSES)
    explanation = serializers.ListField(child=serializers.CharField(), help_text="The same in sentences")
    events = TracedEventSerializer(many=True)
    dead_letters = TracedLetterSerializer(many=True)
    waiting = WaitingSerializer(many=True)


class TraceQuery(lists.Query):
    """What a trace takes."""

    source = serializers.CharField(required=False, default="", help_text="Its name; all sources without it")  # type: ignore[assignment]


class Trace(APIView):
    """One event."""

    scopes = {"GET": "profiles:read"}

    @extend_schema(operation_id="trace_event", parameters=[MESSAGE_ID, TraceQuery], responses=TraceSerializer)
    def get(self, request: Request, message_id: str) -> Response:
        """Follow an event by its message id: where it is, what it did, or why it is not there."""
        source = lists.read(request, TraceQuery)["source"]
        try:
            found = tracing.trace(message_id, source=source or None)
        except tracing.UnknownSource as error:
            raise Http404(error.message) from error
        letters = allows(request, "dead_letters:read")
        return Response(tracing.document(found, masked=masks(request), letters=letters))
