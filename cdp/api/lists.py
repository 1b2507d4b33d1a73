"""Lists: newest first, a page at a time, by opaque cursors; nothing is ever counted."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.utils.encoding import escape_uri_path
from rest_framework import serializers
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.response import Response

DEFAULT_LIMIT = 50
MAX_LIMIT = 500
_MAX_ID = 2**63 - 1


class BadCursor(APIException):
    """The cursor of a list cannot be read."""

    status_code = 400
    default_code = "bad_cursor"
    default_detail = "This cursor cannot be read. Follow `next` as it was given, or start again without a cursor."


class Query(serializers.Serializer):
    """An input: a name that is not declared is refused, so that a misspelt filter is not taken for none."""

    def to_internal_value(self, data: Any) -> Any:
        """Check for unknown names first."""
        unknown = sorted(set(data) - set(self.fields)) if isinstance(data, Mapping) else []
        if unknown:
            known = ", ".join(sorted(self.fields)) or "none"
            raise serializers.ValidationError({name: [f"There is no such field. Known: {known}."] for name in unknown})
        return super().to_internal_value(data)


class ListQuery(Query):
    """What every list takes."""

    limit = serializers.IntegerField(
        required=False,
        default=DEFAULT_LIMIT,
        min_value=1,
        help_text=f"Rows in a page; more than {MAX_LIMIT} count as {MAX_LIMIT}",
    )
    cursor = serializers.CharField(required=False, default="", help_text="Where to go on: part of `next`")

    def validate_limit(self, value: int) -> int:
        """Return the limit, which a page's greatest size bounds."""
        return min(value, MAX_LIMIT)


def read(request: Request, query: type[Query]) -> dict[str, Any]:
    """Return the checked parameters of a request's address."""
    checked = query(data=request.query_params)
    checked.is_valid(raise_exception=True)
    return checked.validated_data


def body(request: Request, given: type[Query], *, instance: Any = None) -> dict[str, Any]:
    """Return the checked body of a request; to change an `instance` it may leave fields out."""
    checked = given(instance, data=request.data, partial=instance is not None)
    checked.is_valid(raise_exception=True)
    return checked.validated_data


def row_id(text: Any) -> int:
    """Read a row's number in a cursor."""
    number = int(text)
    if not 0 <= number <= _MAX_ID:
        raise ValueError(text)
    return number


def instant(text: Any) -> datetime:
    """Read an instant in a cursor."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment


def uuid(text: Any) -> UUID:
    """Read a profile's or an account's id in a cursor."""
    return UUID(text)


def cursor(values: Sequence[Any]) -> str:
    """Return a position as an opaque text."""
    plain = [value.isoformat() if isinstance(value, datetime) else str(value) for value in values]
    return base64.urlsafe_b64encode(json.dumps(plain).encode()).decode("ascii")


def position(cursor: str, *readers: Callable[[Any], Any]) -> tuple[Any, ...] | None:
    """Return what a cursor says, one value a reader, None for an empty one; BadCursor where it cannot be read."""
    if not cursor:
        return None
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
        return tuple(reader(value) for reader, value in zip(readers, values, strict=True))
    except (ValueError, TypeError, binascii.Error, AttributeError, OverflowError) as error:
        raise BadCursor from error


def respond(
    request: Request,
    rows: Sequence[Any],
    limit: int,
    *,
    position: Callable[[Any], Sequence[Any]],
    show: Callable[[Any], Any],
) -> Response:
    """Answer a page, given one row more than `limit` where there are more; `position` says where a row stands."""
    shown = rows[:limit]
    following = _address(request, position(shown[-1])) if len(rows) > limit else None
    return Response({"results": [show(row) for row in shown], "next": following})


def by_id(request: Request, rows: QuerySet[Any], query: dict[str, Any], show: Callable[[Any], Any]) -> Response:
    """Answer a page of rows by falling id."""
    before = position(query["cursor"], row_id)
    if before:
        rows = rows.filter(pk__lt=before[0])
    found = list(rows.order_by("-pk")[: query["limit"] + 1])
    return respond(request, found, query["limit"], position=lambda row: (row.pk,), show=show)


def _address(request: Request, values: Sequence[Any]) -> str:
    parameters = request.query_params.copy()
    parameters["cursor"] = cursor(values)
    return request.build_absolute_uri(f"{escape_uri_path(request.path)}?{parameters.urlencode()}")


@cache
def page_of(row: type[serializers.BaseSerializer]) -> type[serializers.Serializer]:
    """Return the serializer that describes a page of rows."""
    fields = {
        "__doc__": "A page of a list.",
        "results": row(many=True),
        "next": serializers.URLField(allow_null=True, help_text="The next page's address; null on the last"),
    }
    return type(f"{row.__name__}Page", (serializers.Serializer,), fields)
