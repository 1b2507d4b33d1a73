"""Who is who: the graph of a profile, the decisions on it, and taking people apart."""

from __future__ import annotations

from typing import Any

from django.db.models import Q, QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cdp import audit, identity_graph, masking, reviews, unmerging
from cdp.api import lists
from cdp.api.access import masks
from cdp.api.profiles import REFERENCE, IdentifierSerializer, found
from cdp.models import IdentityDecision
from cdp.processing.identity import MAX_NAMESPACE, MAX_VALUE, Identifier, clean

READ, WRITE = {"GET": "profiles:read"}, {"POST": "identity:write"}
MOST_IDENTIFIERS = 1000


class DecisionSerializer(serializers.ModelSerializer):
    """A merge, a refused merge, a split or an unmerge."""

    profile = serializers.UUIDField(source="profile_id", help_text="The one that stays")
    other = serializers.UUIDField(source="other_id", allow_null=True)
    source = serializers.CharField(source="source.name", allow_null=True, default=None, help_text="Its name")  # type: ignore[assignment]
    author = serializers.CharField(help_text="Who took it; empty where the rules did")
    lifted_at = serializers.DateTimeField(allow_null=True, help_text="Of an unmerge: it stands until then")

    class Meta:
        model = IdentityDecision
        fields = [
            "id", "kind", "reason", "detail", "profile", "other", "source", "message_id", "occurred_at", "decided_at",
            "author", "lifted_at", "lifted_by", "reviewed_at", "reviewed_by",
        ]  # fmt: skip


class DecisionsQuery(lists.ListQuery):
    """What the list of identity decisions takes."""

    profile = serializers.CharField(required=False, default="", help_text="A profile's id, or `namespace:value`")
    kind = serializers.ChoiceField(choices=IdentityDecision.Kind.choices, required=False, default="")
    reason = serializers.CharField(required=False, default="", help_text="Such as limit_user_id or unmerged")
    reviewed = serializers.BooleanField(
        required=False, allow_null=True, default=None, help_text="Whether a person has looked at it"
    )


class GraphNodeSerializer(IdentifierSerializer):
    """An identifier of the graph."""

    id = serializers.IntegerField()
    profile_id = serializers.UUIDField()
    inside = serializers.BooleanField(help_text="The profile's own; others are neighbours that it is kept apart from")
    since = serializers.DateTimeField()


class GraphEdgeSerializer(serializers.Serializer):
    """The strongest evidence that two identifiers are one person, and what the rules made of it."""

    id = serializers.IntegerField(allow_null=True, help_text="Null where an unmerge alone keeps the two apart")
    left = serializers.IntegerField(help_text="A node's id")
    right = serializers.IntegerField(help_text="A node's id")
    refused = serializers.CharField(help_text="Why the two are kept apart; empty where they are joined")
    source = serializers.CharField(help_text="Its name")  # type: ignore[assignment]
    source_class = serializers.CharField(help_text="Server or Browser: servers' evidence counts first")
    occurred_at = serializers.DateTimeField()
    message_id = serializers.CharField(help_text="Of the event: `GET /v1/trace/{message_id}` follows it")
    rule_version = serializers.IntegerField(allow_null=True)
    decision_id = serializers.IntegerField(allow_null=True, help_text="The unmerge that keeps the two apart")


class GraphSerializer(serializers.Serializer):
    """A profile's identity graph."""

    profile_id = serializers.UUIDField()
    nodes = GraphNodeSerializer(many=True)
    edges = GraphEdgeSerializer(many=True)
    more_identifiers = serializers.IntegerField(help_text="Of the profile's, how many have no room here")
    more_edges = serializers.BooleanField()


class DryRun(lists.Query):
    """Whether it is meant."""

    dry_run = serializers.BooleanField(required=False, default=False, help_text="Only say what would come of it")


class GivenIdentifier(lists.Query):
    """A namespace and a value."""

    namespace = serializers.CharField(max_length=MAX_NAMESPACE)
    value = serializers.CharField(max_length=MAX_VALUE, trim_whitespace=False)


class UnmergeInput(DryRun):
    """What to take out of a profile."""

    identifiers = serializers.ListField(
        child=GivenIdentifier(), max_length=MOST_IDENTIFIERS, help_text="Some of the profile's, not all"
    )
    note = serializers.CharField(required=False, default="", allow_blank=True, max_length=2000, help_text="Why")


class PartSerializer(serializers.Serializer):
    """A profile as it is left."""

    id = serializers.UUIDField()
    is_new = serializers.BooleanField(help_text="It was none of the profiles concerned before")
    identifiers = IdentifierSerializer(many=True)
    traits = serializers.DictField()
    computed_traits = serializers.DictField()
    consent = serializers.DictField()
    events = serializers.IntegerField(help_text="How many events are its")


class UnmergedSerializer(serializers.Serializer):
    """What an unmerge, or lifting one, makes of the people concerned."""

    decision = serializers.IntegerField(allow_null=True, help_text="Null of a dry run")
    dry_run = serializers.BooleanField()
    profiles = PartSerializer(many=True, help_text="The one that holds what was taken out comes last")


class IdentityGraph(APIView):
    """Who a profile is."""

    scopes = READ

    @extend_schema(operation_id="get_identity_graph", parameters=[REFERENCE], responses=GraphSerializer)
    def get(self, request: Request, reference: str) -> Response:
        """Get a profile's identifiers with the evidence that joined them, or that was refused."""
        profile_id = found(reference)
        graph = identity_graph.read(profile_id, masked=masks(request))
        return Response(
            {
                "profile_id": profile_id,
                "nodes": [_node(one) for one in graph.nodes],
                "edges": [_edge(one) for one in graph.links],
                "more_identifiers": graph.more_nodes,
                "more_edges": graph.more_links,
            }
        )


def _node(one: identity_graph.Node) -> dict[str, Any]:
    return {name: getattr(one, name) for name in ("id", "namespace", "value", "profile_id", "inside", "since")}


def _edge(one: identity_graph.Link) -> dict[str, Any]:
    plain = ("id", "refused", "source", "source_class", "occurred_at", "message_id", "rule_version", "decision_id")
    return {name: getattr(one, name) for name in plain} | {"left": one.left.id, "right": one.right.id}


class Unmerge(APIView):
    """Taking a profile apart."""

    scopes = WRITE

    @extend_schema(
        operation_id="unmerge_profile", parameters=[REFERENCE], request=UnmergeInput, responses=UnmergedSerializer
    )
    def post(self, request: Request, reference: str) -> Response:
        """Take identifiers out of a profile and keep the two sides apart, or say with `dry_run` what that would do."""
        given, profile_id = lists.body(request, UnmergeInput), found(reference)
        chosen = [Identifier(one["namespace"], clean(one["namespace"], one["value"])) for one in given["identifiers"]]
        if given["dry_run"]:
            return _answer(request, unmerging.plan(profile_id=profile_id, identifiers=chosen), dry_run=True)
        done = unmerging.unmerge(
            profile_id=profile_id, identifiers=chosen, author=audit.actor_of(request), note=given["note"]
        )
        return _answer(request, done, dry_run=False)


class Lift(APIView):
    """Taking an unmerge back."""

    scopes = WRITE

    @extend_schema(operation_id="lift_unmerge", request=DryRun, responses=UnmergedSerializer)
    def post(self, request: Request, decision_id: int) -> Response:
        """Let evidence join again what an unmerge keeps apart, or say with `dry_run` what that would do."""
        dry_run = lists.body(request, DryRun)["dry_run"]
        get_object_or_404(IdentityDecision, pk=decision_id, kind=IdentityDecision.Kind.UNMERGE)
        if dry_run:
            return _answer(request, unmerging.plan_lift(decision_id), dry_run=True)
        return _answer(request, unmerging.lift(decision_id, author=audit.actor_of(request)), dry_run=False)


def _answer(request: Request, done: unmerging.Unmerged, *, dry_run: bool) -> Response:
    masked = masks(request)
    parts = [_part(one) for one in done.parts]
    shown = [masking.document(one) for one in parts] if masked else parts
    return Response({"decision": None if dry_run else done.decision_id, "dry_run": dry_run, "profiles": shown})


def _part(one: unmerging.Part) -> dict[str, Any]:
    return {
        "id": one.profile_id, "is_new": one.is_new, "identifiers": [each._asdict() for each in one.identifiers],
        "traits": one.traits, "computed_traits": one.computed_traits, "consent": one.consent, "events": one.events,
    }  # fmt: skip


class Decisions(APIView):
    """Identity decisions."""

    scopes = READ

    @extend_schema(
        operation_id="list_identity_decisions",
        parameters=[DecisionsQuery],
        responses=lists.page_of(DecisionSerializer),
    )
    def get(self, request: Request) -> Response:
        """List merges, refusals, splits and unmerges, newest first."""
        query, masked = lists.read(request, DecisionsQuery), masks(request)
        return lists.by_id(request, _matching(query), query, lambda decision: _shown(decision, masked=masked))


def _matching(query: dict[str, Any]) -> QuerySet[IdentityDecision]:
    decisions = IdentityDecision.objects.select_related("source")
    if query["profile"]:
        profile_id = found(query["profile"])
        decisions = decisions.filter(Q(profile_id=profile_id) | Q(other_id=profile_id))
    if query["reviewed"] is not None:
        decisions = decisions.filter(reviewed_at__isnull=not query["reviewed"])
    return decisions.filter(**{name: query[name] for name in ("kind", "reason") if query[name]})


class Decision(APIView):
    """One identity decision."""

    scopes = READ

    @extend_schema(operation_id="get_identity_decision", responses=DecisionSerializer)
    def get(self, request: Request, decision_id: int) -> Response:
        """Get an identity decision."""
        return _one(request, decision_id)


class Review(APIView):
    """Looking over a decision."""

    scopes = WRITE

    @extend_schema(operation_id="review_identity_decision", request=None, responses=DecisionSerializer)
    def post(self, request: Request, decision_id: int) -> Response:
        """Mark an identity decision as reviewed; one that was stays as it is."""
        reviews.review([decision_id], author=audit.actor_of(request))
        return _one(request, decision_id)


def _one(request: Request, decision_id: int) -> Response:
    decision = get_object_or_404(IdentityDecision.objects.select_related("source"), pk=decision_id)
    return Response(_shown(decision, masked=masks(request)))


def _shown(decision: IdentityDecision, *, masked: bool) -> dict[str, Any]:
    row = DecisionSerializer(decision).data
    if masked:
        row["detail"] = masking.everything(row["detail"])
        row["message_id"] = masking.addresses(row["message_id"])
    return row
