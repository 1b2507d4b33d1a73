"""Who may do what: API keys by their scopes, people of the admin by their permissions."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.contrib.auth.models import AnonymousUser
from django.db.models import Q
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.authentication import SessionAuthentication as SessionBase
from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated, PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from cdp import masking
from cdp.collector.keys import hash_key
from cdp.models import ApiKey
from martech.lib import clock

if TYPE_CHECKING:  # the settings name this module's classes while the framework is being imported
    from rest_framework.views import APIView

ALL = "all"
# Each scope, what it allows, and the permission that a person needs for the same.
SCOPES = {
    "profiles:read": ("Read profiles, their events, identifiers and decisions, and the rules", "cdp.view_profile"),
    "profiles:write": ("Change profiles", "cdp.change_profile"),
    "accounts:read": ("Read accounts; their members and events need profiles:read", "cdp.view_account"),
    "accounts:write": ("Change accounts", "cdp.change_account"),
    "profiles:export": ("Export everything on a person", "cdp.view_personal_data"),
    "profiles:erase": ("Erase people, and see what became of it", "cdp.add_erasure"),
    "identity:write": ("Take profiles apart, review decisions, draft identity rules", "cdp.unmerge_profile"),
    "identity_rules:write": ("Publish identity rules", "cdp.change_identityrules"),
    "definitions:write": ("Change merge policies", "cdp.change_mergepolicy"),
    "sources:read": ("Read sources, without their write keys", "cdp.view_source"),
    "sources:write": ("Create and change sources, see and rotate their write keys", "cdp.change_source"),
    "imports:read": ("Read imports", "cdp.view_eventimport"),
    "imports:write": ("Import files of events", "cdp.change_eventimport"),
    "keys:write": ("Create, list and revoke API keys", "cdp.change_apikey"),
    "dead_letters:read": ("Read dead letters", "cdp.view_deadletter"),
    "dead_letters:write": ("Replay dead letters", "cdp.replay_deadletter"),
    "audit:read": ("Read who did what", "cdp.view_auditentry"),
    ALL: ("Everything", ""),
}
# One code for all that a key can lack, as the collector has it.
UNKNOWN = NotAuthenticated.default_code
# How exact `last_used_at` is: a busy key writes its row once in this time.
LAST_USED_GRAIN = timedelta(minutes=1)


class ApiKeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer KEY`."""

    def authenticate(self, request: Request) -> tuple[AnonymousUser, ApiKey] | None:
        """Return the key that the request shows; None where it shows none, so that a session may do."""
        scheme, _, secret = get_authorization_header(request).partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        key = _usable(ApiKey.objects.filter(key_hash=hash_key(secret.strip().decode("latin-1"))).first())
        _note_use(key)
        return AnonymousUser(), key

    def authenticate_header(self, request: Request) -> str:
        """Return the challenge that a 401 carries."""
        return "Bearer"


def _usable(key: ApiKey | None) -> ApiKey:
    if key is None:
        raise AuthenticationFailed("This API key is not known. Create one with `manage.py create_api_key`.", UNKNOWN)
    if key.revoked_at is not None:
        raise AuthenticationFailed(f"The API key {key.prefix}… was revoked. Use another.", UNKNOWN)
    if key.expires_at is not None and key.expires_at <= clock.now():
        raise AuthenticationFailed(f"The API key {key.prefix}… has expired. Use another.", UNKNOWN)
    return key


def _note_use(key: ApiKey) -> None:
    now = clock.now()
    if key.last_used_at is None or key.last_used_at < now - LAST_USED_GRAIN:
        stale = Q(last_used_at=None) | Q(last_used_at__lt=now - LAST_USED_GRAIN)
        ApiKey.objects.filter(stale, pk=key.pk).update(last_used_at=now)


class SessionAuthentication(SessionBase):
    """The admin's log-in, with CSRF protection."""


class ApiKeyScheme(OpenApiAuthenticationExtension):
    """How the API's description names API keys."""

    target_class = ApiKeyAuthentication
    name = "api_key"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """Return the security scheme."""
        scopes = "; ".join(f"`{scope}`: {meaning}" for scope, (meaning, _permission) in SCOPES.items())
        return {"type": "http", "scheme": "bearer", "description": f"An API key. Scopes: {scopes}."}


class SessionScheme(OpenApiAuthenticationExtension):
    """How the API's description names the admin's log-in."""

    target_class = SessionAuthentication
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """Return the security scheme."""
        return {"type": "apiKey", "in": "cookie", "name": "sessionid", "description": "The admin's log-in."}


def allows(request: Request, scope: str) -> bool:
    """Return whether the request's key has the scope, or its person the permission."""
    if isinstance(request.auth, ApiKey):
        return ALL in request.auth.scopes or scope in request.auth.scopes
    return person_may(request.user, scope)


def person_may(user: masking.User, scope: str) -> bool:
    """Return whether somebody has the permission that stands for a scope; for `all`, every one of them."""
    wanted = [permission for name, (_, permission) in SCOPES.items() if scope in (name, ALL) and permission]
    return all(user.has_perm(permission) for permission in wanted)


def masks(request: Request) -> bool:
    """Return whether personal data is masked in the answer: for people without the permission, not for keys."""
    return not isinstance(request.auth, ApiKey) and masking.applies_to(request.user)


class HasScope(BasePermission):
    """Asks for the scope that the view names for the request's method."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Return True; NotAuthenticated or PermissionDenied say what is missing."""
        scope = view.scopes.get("GET" if request.method == "HEAD" else request.method or "")  # type: ignore[attr-defined]
        if scope is None:  # OPTIONS, and methods that the view does not have: answered 405 once somebody is known
            scope = next(iter(view.scopes.values()))  # type: ignore[attr-defined]
        if request.auth is None and not request.user.is_authenticated:
            raise NotAuthenticated("Send `Authorization: Bearer KEY` with an API key, or log in at /admin/.")
        if not allows(request, scope):
            raise PermissionDenied(f"This needs the scope `{scope}`.")
        return True
