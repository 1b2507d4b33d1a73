"""What changes something by the API is written into the audit trail, in one place for all views."""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cdp import audit

# What an answer may tell of what was done; names and numbers only.
TOLD = ("name", "scopes", "matched", "replayed")


class AuditedView(APIView):
    """A view whose `audited` methods are written down when they succeed: the action and the kind of object, by method.

    Views whose domain function writes it down itself leave theirs out.
    """

    audited: ClassVar[dict[str, tuple[str, str]]] = {}

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        """Write down what was done."""
        answered = super().finalize_response(request, response, *args, **kwargs)
        done = self.audited.get(request.method or "")
        if done and isinstance(answered, Response) and answered.status_code < 400:
            self._record(request, answered, *done)
        return answered

    def _record(self, request: Request, answered: Response, action: str, kind: str) -> None:
        said = answered.data if isinstance(answered.data, dict) else {}
        # A rehearsal changes nothing.
        if "would_store" in said:
            return
        named = said.get("id", next(iter(self.kwargs.values()), ""))
        detail: dict[str, Any] = {name: said[name] for name in TOLD if name in said}
        if fields := _fields(request):
            detail["fields"] = fields
        audit.record(actor=audit.actor_of(request), action=action, object_type=kind, object_id=named, detail=detail)


def _fields(request: Request) -> list[str]:
    """Return the names of the fields that were given; of a body that no view has read, and that is no JSON, none."""
    try:
        return sorted(request.data) if isinstance(request.data, dict) else []
    except APIException:
        return []
