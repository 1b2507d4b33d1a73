"""Merge policies of given traits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cdp import audit, merge_policies
from cdp.api import lists
from cdp.models import MergePolicy

READ, WRITE = "profiles:read", "definitions:write"


class MergePolicySerializer(serializers.ModelSerializer):
    """How the values of a given trait that sources disagree on become one."""

    sources = serializers.ListField(
        child=serializers.IntegerField(), required=False,
        help_text="Of source priority alone: ids of sources, the most trusted first",
    )  # fmt: skip

    class Meta:
        model = MergePolicy
        fields = ["id", "trait", "policy", "sources", "version"]


class MergePolicyChange(lists.Query):
    """What a policy may be told later."""

    policy = serializers.ChoiceField(choices=MergePolicy.Policy.choices)
    sources = serializers.ListField(
        child=serializers.IntegerField(), required=False, help_text="Ids of sources, the most trusted first"
    )


class MergePolicyInput(MergePolicyChange):
    """A policy of a trait that has none."""

    trait = serializers.CharField(max_length=255)


class MergePolicies(APIView):
    """All policies."""

    scopes = {"GET": READ, "POST": WRITE}

    @extend_schema(
        operation_id="list_merge_policies",
        parameters=[lists.ListQuery],
        responses=lists.page_of(MergePolicySerializer),
    )
    def get(self, request: Request) -> Response:
        """List the merge policies of given traits, newest first; a trait without one is kept as its newest value."""
        query = lists.read(request, lists.ListQuery)
        return lists.by_id(request, MergePolicy.objects.all(), query, _shown)

    @extend_schema(operation_id="create_merge_policy", request=MergePolicyInput, responses={201: MergePolicySerializer})
    def post(self, request: Request) -> Response:
        """Give a trait a merge policy: what is said from now on is kept by it."""
        given = lists.body(request, MergePolicyInput)
        with _refusing():
            policy = merge_policies.create(**given)
        _record(request, policy)
        return Response(_shown(policy), 201)


class MergePolicyDetail(APIView):
    """One policy."""

    scopes = {"GET": READ, "PATCH": WRITE}

    @extend_schema(operation_id="get_merge_policy", responses=MergePolicySerializer)
    def get(self, request: Request, policy_id: int) -> Response:
        """Get a merge policy."""
        return Response(_shown(get_object_or_404(MergePolicy, pk=policy_id)))

    @extend_schema(
        operation_id="change_merge_policy", request=MergePolicyChange(partial=True), responses=MergePolicySerializer
    )
    def patch(self, request: Request, policy_id: int) -> Response:
        """Change a merge policy, whose version rises; `newest` makes the trait as one without a policy.

        What was kept before shows until something new is said; `manage.py replay --repair` brings all of it under the
        new policy.
        """
        policy = get_object_or_404(MergePolicy, pk=policy_id)
        given = lists.body(request, MergePolicyChange, instance=policy)
        kind = given.get("policy", policy.policy)
        kept = policy.sources if kind == policy.policy else []
        with _refusing():
            merge_policies.change(policy, kind=kind, sources=given.get("sources", kept))
        _record(request, policy)
        return Response(_shown(policy))


@contextmanager
def _refusing() -> Iterator[None]:
    """Answer 400 for a policy that cannot be."""
    try:
        yield
    except ValueError as error:
        raise serializers.ValidationError(str(error)) from error


def _record(request: Request, policy: MergePolicy) -> None:
    audit.record(
        actor=audit.actor_of(request), action="merge_policy.change", object_type="merge_policy", object_id=policy.pk,
        detail=_shown(policy),
    )  # fmt: skip


def _shown(policy: MergePolicy) -> dict[str, Any]:
    return MergePolicySerializer(policy).data
