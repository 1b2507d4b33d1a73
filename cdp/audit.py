"""The audit trail: who did what to which row, in names and ids alone."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from typing import Any

from cdp.models import ApiKey, AuditEntry
from martech.lib import clock


def record(
    *, actor: str, action: str, object_type: str, object_id: object, detail: Mapping[str, Any] | None = None
) -> AuditEntry:
    """Write down that `actor` did `action` (`noun.verb`) to a row; call it in the transaction that does it.

    `detail` says which fields, how many rows and the like: never a person's values, which an erasure would have to
    find here. An object without a profile is named by a row of ours (an erasure), not by its identifier.
    """
    return AuditEntry.objects.create(
        at=clock.now(), actor=actor[:255], action=action, object_type=object_type, object_id=str(object_id)[:255],
        detail=dict(detail or {}),
    )  # fmt: skip


def actor_of(request: Any) -> str:
    """Return who makes a request, of the admin or of the API: `admin:NAME` or `key:NAME`."""
    key = getattr(request, "auth", None)
    return f"key:{key.name}" if isinstance(key, ApiKey) else f"admin:{request.user.get_username()}"


def commander() -> str:
    """Return who runs a command: `command:USER`."""
    try:
        return f"command:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        return "command:unknown"
