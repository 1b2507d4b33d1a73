"""Errors of the REST API as RFC 9457 problem+json, with the stable `code` and `message` that SDKs read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import psycopg
from django.core.exceptions import PermissionDenied
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views import defaults
from rest_framework import exceptions, views
from rest_framework.response import Response

from martech.lib.errors import MartechError, PermanentError, RetryableError

CONTENT_TYPE = "application/problem+json"
API_PREFIX = "/v1/"
# What a form would call by no field's name.
_WHOLE = "non_field_errors"
_AWAY = (OperationalError, InterfaceError, psycopg.OperationalError)


def body(status: int, code: str, message: str, **more: Any) -> dict[str, Any]:
    """Return the members of a problem; `more` are members of this problem's own."""
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": message,
        "code": code,
        "message": message,
        **more,
    }


def respond(status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """Return a problem as a response of the REST framework."""
    return Response(body(status, code, message, **more), status, headers=dict(headers or {}), content_type=CONTENT_TYPE)


def handle(error: Exception, context: dict[str, Any]) -> Response | None:
    """Answer an exception of a view: the REST framework's exception handler."""
    if isinstance(error, (MartechError, *_AWAY)):
        views.set_rollback()
        return _ours(error)
    # Fills in the headers (WWW-Authenticate, Retry-After) and rolls back.
    answered = views.exception_handler(error, context)
    if answered is None:
        return None
    headers = {name: answered.headers[name] for name in ("WWW-Authenticate", "Retry-After") if name in answered.headers}
    headers |= getattr(error, "headers", {})
    return respond(answered.status_code, headers=headers, **_members(error, answered), **getattr(error, "members", {}))


def _ours(error: Exception) -> Response:
    if isinstance(error, RetryableError):
        retry = {"Retry-After": str(math.ceil(max(1.0, error.retry_after)))}
        return respond(503, error.code, error.message, headers=retry)
    if isinstance(error, PermanentError):
        return respond(400, error.code, error.message)
    if isinstance(error, MartechError):
        return respond(500, error.code, error.message)
    return respond(503, "database_unavailable", "PostgreSQL does not answer. Try again.", headers={"Retry-After": "1"})


def _members(error: Exception, answered: Response) -> dict[str, Any]:
    if isinstance(error, exceptions.ValidationError):
        return {"code": "invalid", "message": _sentence(error.detail), "errors": _by_field(error.detail)}
    if isinstance(error, Http404):
        return {"code": "not_found", "message": str(error) or "There is nothing at this address."}
    if isinstance(error, PermissionDenied):
        return {"code": "permission_denied", "message": "You do not have permission to do this."}
    if isinstance(error, exceptions.APIException):
        # `default_code`s of the REST framework are stable; get_codes() gives the one this error was raised with.
        return {"code": str(error.get_codes()), "message": str(error.detail)}
    return {"code": "error", "message": str(answered.data)}


def _by_field(detail: Any) -> dict[str, Any]:
    return detail if isinstance(detail, dict) else {_WHOLE: detail}


def _sentence(detail: Any) -> str:
    """Return every complaint of a validation error as one line, each after its field's name."""
    return " ".join(_complaints(_by_field(detail), "")) or "The request is not valid."


def _complaints(detail: Any, path: str) -> list[str]:
    if isinstance(detail, Mapping):
        return [
            line
            for name, inner in detail.items()
            for line in _complaints(inner, path if name == _WHOLE else f"{path}.{name}".strip("."))
        ]
    if isinstance(detail, list):
        return [line for inner in detail for line in _complaints(inner, path)]
    return [f"{path}: {detail}" if path else str(detail)]


def _page(status: int, code: str, message: str) -> JsonResponse:
    return JsonResponse(body(status, code, message), status=status, content_type=CONTENT_TYPE)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer what Django refuses before a view: `handler400`."""
    if not request.path.startswith(API_PREFIX):
        return defaults.bad_request(request, exception)
    return _page(400, "bad_request", "The request cannot be understood. Correct it before you try again.")


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer a refusal outside of the REST framework: `handler403`."""
    if not request.path.startswith(API_PREFIX):
        return defaults.permission_denied(request, exception)
    return _page(403, "permission_denied", "You do not have permission to do this.")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer an address that no view has: `handler404`."""
    if not request.path.startswith(API_PREFIX):
        return defaults.page_not_found(request, exception)
    return _page(404, "not_found", f"There is nothing at {request.path}. See /v1/docs.")


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer an unexpected exception: `handler500`."""
    if not request.path.startswith(API_PREFIX):
        return defaults.server_error(request)
    return _page(500, "internal_error", "Something went wrong on our side. It has been logged.")
