"""API keys: shown once, kept as a hash."""

from __future__ import annotations

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response

from cdp import keys
from cdp.api import lists
from cdp.api.access import SCOPES, allows
from cdp.api.audited import AuditedView
from cdp.models import ApiKey

WRITE = "keys:write"


class ApiKeyInput(lists.Query):
    """A key to create."""

    name = serializers.CharField(max_length=128)
    scopes = serializers.MultipleChoiceField(choices=sorted(SCOPES), allow_empty=False)
    expires_at = serializers.DateTimeField(required=False, allow_null=True, default=None, help_text="null: never")


class ApiKeySerializer(serializers.ModelSerializer):
    """An API key, without its secret."""

    class Meta:
        model = ApiKey
        fields = ["id", "name", "prefix", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at"]


class NewApiKeySerializer(ApiKeySerializer):
    """An API key with its secret, which is shown this once."""

    key = serializers.CharField()

    class Meta(ApiKeySerializer.Meta):
        fields = [*ApiKeySerializer.Meta.fields, "key"]


class ApiKeys(AuditedView):
    """All API keys."""

    scopes = {"GET": WRITE, "POST": WRITE}
    audited = {"POST": ("api_key.create", "apikey")}

    @extend_schema(
        operation_id="list_api_keys", parameters=[lists.ListQuery], responses=lists.page_of(ApiKeySerializer)
    )
    def get(self, request: Request) -> Response:
        """List API keys, newest first, revoked ones too."""
        query = lists.read(request, lists.ListQuery)
        return lists.by_id(request, ApiKey.objects.all(), query, lambda key: ApiKeySerializer(key).data)

    @extend_schema(operation_id="create_api_key", request=ApiKeyInput, responses={201: NewApiKeySerializer})
    def post(self, request: Request) -> Response:
        """Create an API key with scopes that its maker has; its secret is in this answer alone."""
        given = lists.body(request, ApiKeyInput)
        scopes = sorted(given["scopes"])
        beyond = [scope for scope in scopes if not allows(request, scope)]
        if beyond:
            raise PermissionDenied(f"You cannot give the scope `{beyond[0]}`, which you do not have.", "scope_exceeded")
        key, secret = keys.create_api_key(name=given["name"], scopes=scopes, expires_at=given["expires_at"])
        return Response({**ApiKeySerializer(key).data, "key": secret}, 201)


class RevokeApiKey(AuditedView):
    """An API key's end."""

    scopes = {"POST": WRITE}
    audited = {"POST": ("api_key.revoke", "apikey")}

    @extend_schema(operation_id="revoke_api_key", request=None, responses=ApiKeySerializer)
    def post(self, request: Request, key_id: int) -> Response:
        """Revoke an API key: it is refused within 5 s, and for good."""
        key = get_object_or_404(ApiKey, pk=key_id)
        keys.revoke_api_key(key)
        key.refresh_from_db()
        return Response(ApiKeySerializer(key).data)
