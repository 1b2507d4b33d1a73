"""The rules of who is who."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cdp import audit, identity_rules, masking, rule_drafts
from cdp.api import lists
from cdp.api.access import masks
from cdp.identity_rules import MAX_LIMIT
from cdp.models import IdentityRules

READ, DRAFT, PUBLISH = "profiles:read", "identity:write", "identity_rules:write"


class NamespaceSerializer(serializers.Serializer):
    """The rules of a namespace."""

    limit = serializers.IntegerField(help_text=f"How many values one person may have, 1 to {MAX_LIMIT}")
    priority = serializers.IntegerField(help_text="Of an event's identifiers the smaller joins first")
    blocked = serializers.ListField(child=serializers.CharField(), help_text="Values that stand for nobody")
    shared_after = serializers.IntegerField(
        help_text="With how many values of limit-1 namespaces one is seen before it stands for nobody; 0: with any"
    )


class ExampleSerializer(serializers.Serializer):
    """Somebody whom rules would split."""

    profile_id = serializers.UUIDField()
    becomes = serializers.IntegerField(help_text="How many profiles")
    sizes = serializers.ListField(child=serializers.IntegerField(), help_text="Identifiers of each, the largest first")


class OutcomeSerializer(serializers.Serializer):
    """What rules would do to the people there are."""

    looked_at = serializers.IntegerField(help_text="Profiles that would be made anew")
    split = serializers.IntegerField(help_text="Profiles that would become several")
    merged = serializers.IntegerField(help_text="Profiles that would take in identifiers of others")
    largest_before = serializers.IntegerField(help_text="Identifiers of the largest profile now")
    largest_after = serializers.IntegerField(help_text="The same, with these rules")
    words = serializers.CharField(help_text="The same in words")
    examples = ExampleSerializer(many=True)


class KeptOutcomeSerializer(OutcomeSerializer):
    """The dry run of a draft; while it runs it has no numbers."""

    state = serializers.ChoiceField(choices=["running", "done", "failed"])
    at = serializers.DateTimeField()
    against = serializers.IntegerField(help_text="The version that counted then")


class ProgressSerializer(serializers.Serializer):
    """How far published rules are with the past."""

    looked_at = serializers.IntegerField(help_text="Profiles done")
    of = serializers.IntegerField(help_text="Profiles that the rules may concern")
    split = serializers.IntegerField()
    merged = serializers.IntegerField()


class IdentityRulesSerializer(serializers.Serializer):
    """A version of the rules; the newest that is no draft counts."""

    version = serializers.IntegerField()
    status = serializers.ChoiceField(choices=IdentityRules.Status.choices)
    namespaces = serializers.DictField(child=NamespaceSerializer(), help_text="By name; `*` is for all others")
    note = serializers.CharField()
    author = serializers.CharField()
    created_at = serializers.DateTimeField()
    applied_at = serializers.DateTimeField(allow_null=True, help_text="When the past was done")
    dry_run = KeptOutcomeSerializer(allow_null=True)
    progress = ProgressSerializer(allow_null=True)


class RulesInput(lists.Query):
    """Rules to try."""

    namespaces = serializers.JSONField(
        help_text="By name {limit, priority, blocked, shared_after}; `*`, for all others, has to be among them"
    )


class DraftInput(RulesInput):
    """Rules to keep as a draft."""

    note = serializers.CharField(required=False, default="", allow_blank=True, max_length=2000, help_text="Why")


class IdentityRulesList(APIView):
    """All versions."""

    scopes = {"GET": READ, "POST": DRAFT}

    @extend_schema(
        operation_id="list_identity_rules",
        parameters=[lists.ListQuery],
        responses=lists.page_of(IdentityRulesSerializer),
    )
    def get(self, request: Request) -> Response:
        """List the versions of the rules of who is who, newest first."""
        query, masked = lists.read(request, lists.ListQuery), masks(request)
        return lists.by_id(request, IdentityRules.objects.all(), query, lambda row: _shown(row, masked=masked))

    @extend_schema(operation_id="draft_identity_rules", request=DraftInput, responses={201: IdentityRulesSerializer})
    def post(self, request: Request) -> Response:
        """Keep rules as a draft, with a dry run; one that takes long goes on in the background."""
        given = lists.body(request, DraftInput)
        row = identity_rules.draft(given["namespaces"], author=audit.actor_of(request), note=given["note"])
        return Response(_shown(rule_drafts.rehearse(row.pk), masked=masks(request)), 201)


class DryRun(APIView):
    """What rules would do."""

    scopes = {"POST": DRAFT}

    @extend_schema(operation_id="try_identity_rules", request=RulesInput, responses=OutcomeSerializer)
    def post(self, request: Request) -> Response:
        """Say what rules would do to the people there are; nothing is kept. 503 where a draft is needed for that."""
        outcome = rule_drafts.tried(lists.body(request, RulesInput)["namespaces"])
        return Response({**asdict(outcome), "words": str(outcome), "examples": rule_drafts.examples_of(outcome)})


class IdentityRulesDetail(APIView):
    """One version."""

    scopes = {"GET": READ}

    @extend_schema(operation_id="get_identity_rules", responses=IdentityRulesSerializer)
    def get(self, request: Request, version: int) -> Response:
        """Get a version of the rules of who is who: what it says, would do, or how far it is."""
        return Response(_shown(_found(version), masked=masks(request)))


class Publish(APIView):
    """Letting a draft count."""

    scopes = {"POST": PUBLISH}

    @extend_schema(operation_id="publish_identity_rules", request=None, responses={202: IdentityRulesSerializer})
    def post(self, request: Request, version: int) -> Response:
        """Let a draft count for new evidence from now on, and have a job apply it to the past."""
        _found(version)
        row = identity_rules.publish(version, author=audit.actor_of(request))
        return Response(_shown(row, masked=masks(request)), 202)


def _found(version: int) -> IdentityRules:
    return get_object_or_404(IdentityRules, pk=min(version, 2**31 - 1))


def _shown(row: IdentityRules, *, masked: bool) -> dict[str, Any]:
    plain = ("version", "status", "note", "author", "created_at", "applied_at")
    done = {name: row.progress[name] for name in ("looked_at", "of", "split", "merged") if name in row.progress}
    namespaces = masking.traits(row.namespaces) if masked else row.namespaces
    trial = rule_drafts.dry_run_of(row)
    return {name: getattr(row, name) for name in plain} | {
        "namespaces": namespaces, "dry_run": trial, "progress": done or None,
    }  # fmt: skip
