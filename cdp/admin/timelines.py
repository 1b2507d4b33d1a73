"""Timelines in pages: a page of events at a time, each ready to show."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from django.http import HttpRequest

from cdp import masking, timeline
from cdp.admin import trace
from cdp.api import lists
from cdp.processing.decode import TYPES

PAGE = 25
COLOURS = {"track": "success", "identify": "info", "page": "", "screen": "", "group": "warning", "alias": "warning"}


class Entry(NamedTuple):
    """An event of the timeline, ready to show; `body` is JSON that people can read, `trace` where it is followed."""

    event: dict[str, Any]
    title: str
    colour: str
    body: str
    trace: str


class Read(Protocol):
    """What reads a page of a timeline."""

    def __call__(
        self, *, limit: int, before: timeline.Position | None, wanted: timeline.Filter | None
    ) -> list[dict[str, Any]]:
        """Return up to `limit` events, newest first."""


def said_by(event: dict[str, Any]) -> str:
    """Return what an event is about: its name, else the names of what it says."""
    said = event["properties"]
    return event["name"] or (", ".join(list(said)[:6]) if isinstance(said, dict) else "")


def page(
    request: HttpRequest, read: Read, *, masked: bool, title: Callable[[dict[str, Any]], str] = said_by
) -> dict[str, Any]:
    """Return a page of a timeline as its template wants it, of the type and from the position that were asked for."""
    kind = request.GET.get("type", "")
    rows = read(
        limit=PAGE + 1,
        before=_position(request.GET.get("before", "")),
        wanted=timeline.Filter(event_type=kind if kind in TYPES else ""),
    )
    shown = [timeline.decoded(row) for row in rows[:PAGE]]
    older = lists.cursor((shown[-1]["occurred_at"], shown[-1]["event_id"])) if len(rows) > PAGE else ""
    entries = [_entry(masking.event(row) if masked else row, title) for row in shown]
    return {"entries": entries, "older": older, "type": kind}


def _position(cursor: str) -> timeline.Position | None:
    try:
        position = lists.position(cursor, lists.instant, lists.row_id)
    except lists.BadCursor:
        return None
    return timeline.Position(*position) if position else None


def _entry(event: dict[str, Any], title: Callable[[dict[str, Any]], str]) -> Entry:
    shown = {
        "properties": event["properties"],
        **({"context": event["context"]} if event["context"] else {}),
        "identifiers": {row["namespace"]: row["value"] for row in event["identifiers"]},
        "message_id": event["message_id"],
        "received_at": event["received_at"].isoformat(),
        **({"flags": event["flags"]} if event["flags"] else {}),
    }
    try:
        body = json.dumps(shown, indent=2, ensure_ascii=False)
    except RecursionError:
        body = json.dumps(shown | {"properties": "…", "context": "…"}, indent=2, ensure_ascii=False)
    return Entry(event, title(event), COLOURS.get(event["event_type"], ""), body, trace.address(event["message_id"]))
