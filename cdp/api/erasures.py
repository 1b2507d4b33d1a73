"""Erasures: asking for one, and what became of it; identifiers that are kept out."""

from __future__ import annotations

from typing import Any

from django.db.models import Q
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cdp import audit, privacy, subjects, suppressions
from cdp.api import lists
from cdp.models import Erasure

ERASE = "profiles:erase"


class ErasureSerializer(serializers.ModelSerializer):
    """A request to erase a person, and what became of it in each store."""

    profile = serializers.UUIDField(source="profile_id", allow_null=True, help_text="Its empty stub; null: had none")
    receipts = serializers.DictField(help_text="By store: what was erased there, and when")

    class Meta:
        model = Erasure
        fields = ["id", "status", "profile", "requested_by", "reason", "requested_at", "finished_at", "receipts"]


class ErasureQuery(lists.Query):
    """What an erasure takes."""

    reason = serializers.CharField(required=False, default="", max_length=1000, help_text="Why, for the record")


class SuppressedQuery(lists.Query):
    """Which identifier may come back."""

    namespace = serializers.CharField(max_length=64)
    value = serializers.CharField(max_length=512)


def requested(request: Request, reference: str) -> Response:
    """Ask for the erasure of the person that an address names, and answer 202 with it."""
    given = lists.read(request, ErasureQuery)
    try:
        erasure = privacy.request(reference=reference, actor=audit.actor_of(request), reason=given["reason"])
    except subjects.UnknownPerson as error:
        raise NotFound(error.message) from error
    return Response(ErasureSerializer(erasure).data, 202)


class Erasures(APIView):
    """All erasures."""

    scopes = {"GET": ERASE}

    @extend_schema(
        operation_id="list_erasures", parameters=[lists.ListQuery], responses=lists.page_of(ErasureSerializer)
    )
    def get(self, request: Request) -> Response:
        """List erasures, newest first."""
        query = lists.read(request, lists.ListQuery)
        before = lists.position(query["cursor"], lists.instant, lists.uuid)
        rows = Erasure.objects.order_by("-requested_at", "-id")
        if before:
            at, row_id = before
            rows = rows.filter(Q(requested_at__lt=at) | Q(requested_at=at, pk__lt=row_id))
        return lists.respond(
            request, list(rows[: query["limit"] + 1]), query["limit"],
            position=lambda row: (row.requested_at, row.pk), show=lambda row: ErasureSerializer(row).data,
        )  # fmt: skip


class ErasureDetail(APIView):
    """One erasure."""

    scopes = {"GET": ERASE}

    @extend_schema(operation_id="get_erasure", responses=ErasureSerializer)
    def get(self, request: Request, erasure_id: Any) -> Response:
        """Get an erasure with the receipts of the stores that are done."""
        return Response(ErasureSerializer(get_object_or_404(Erasure, pk=erasure_id)).data)


class Suppressed(APIView):
    """Identifiers of erased people, which are known by a hash alone."""

    scopes = {"DELETE": ERASE}

    @extend_schema(operation_id="lift_suppression", parameters=[SuppressedQuery], responses={204: None})
    def delete(self, request: Request) -> Response:
        """Let an erased identifier come back, as its person wishes; what was erased stays so."""
        given = lists.read(request, SuppressedQuery)
        identifier = subjects.identifier(f"{given['namespace']}:{given['value']}")
        if not suppressions.lift(identifier, actor=audit.actor_of(request)):
            raise NotFound("This identifier is not kept out. Check its namespace and spelling.")
        return Response(status=204)
