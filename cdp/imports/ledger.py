"""The ledger: which files went in, and how far each one is. It moves after the log has the rows, never before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import msgspec
import psycopg
from django.db import connection, transaction

from cdp import audit, task_locks
from cdp.imports.mapping import Mapping
from cdp.imports.portions import Portion
from cdp.models import Event, EventImport, Source
from cdp.processing.rules import Trust, trust
from martech.lib import clock
from martech.lib.errors import PermanentError, RetryableError

# The first key of the advisory locks on imports; the second is the import's id.
LOCK_CLASS = 0x696D7073
Status = EventImport.Status
# No window of duplicates is as short as that.
LATE = timedelta(hours=1)
# The clocks of two machines may differ by so much.
SKEW = timedelta(minutes=10)

_ADVANCE = """
UPDATE cdp_eventimport SET "offset" = %(end)s, lines = %(line)s, events = events + %(rows)s,
    errors = errors + %(errors)s, errors_path = %(errors_path)s, updated_at = %(now)s
WHERE id = %(id)s AND "offset" = %(start)s
RETURNING status
"""


class ImportBusy(RetryableError):
    """Another process is at this import."""

    code = "import_busy"


class Overtaken(PermanentError):
    """The ledger is further than this process."""

    code = "import_overtaken"


class OtherMapping(PermanentError):
    """Some rows went in by another mapping."""

    code = "other_mapping"


def check_source(source: Source) -> Trust:
    """Return what a source may send; PermanentError where it may not import."""
    allowed = trust(source.kind, source.rules)
    if "import" in allowed.refused_calls:
        raise PermanentError(
            f"The source {source.name} may not import: it is of kind {source.kind}, or its rules say so. "
            "Use a server's source, or change the source's refused_calls.",
            code="refused_call",
        )
    if not source.enabled:
        raise PermanentError(f"The source {source.name} is switched off. Switch it on, or use another.")
    return allowed


def known(*, sha256: str, source: Source) -> EventImport | None:
    """Return the import of a file by a source, whatever the file's name was then; None for a new one."""
    return EventImport.objects.filter(sha256=sha256, source=source).first()


def begin(*, sha256: str, source: Source, mapping: Mapping, author: str, **fields: Any) -> EventImport:
    """Return the row of a file's import, running by this mapping; write down who began it.

    `fields` are name, file_format, size, stored_path. OtherMapping where some rows went in by another one.
    """
    now = clock.now()
    data = msgspec.to_builtins(mapping)
    with transaction.atomic():
        found, _ = EventImport.objects.select_for_update().get_or_create(
            sha256=sha256, source=source,
            defaults={"mapping": data, "author": author, "created_at": now, "updated_at": now, **fields},
        )  # fmt: skip
        if found.mapping != data and found.offset:
            raise OtherMapping(
                f"{found.events} rows of this file went in by another mapping. Go on without giving one, or put the "
                "rows that are left into a file of their own."
            )
        if found.status == Status.READY:
            found.updated_at = now
        if found.status != Status.DONE:
            found.mapping, found.status, found.trouble = data, Status.RUNNING, ""
            found.save(update_fields=["mapping", "status", "trouble", "updated_at"])
        audit.record(
            actor=author, action="import.start", object_type="import", object_id=found.pk,
            detail={"source": source.name, "sha256": sha256, "from_byte": found.offset},
        )  # fmt: skip
    return found


def mapping_of(found: EventImport) -> Mapping:
    """Return an import's mapping."""
    return msgspec.convert(found.mapping, Mapping)


@contextmanager
def held(found: EventImport) -> Iterator[None]:
    """Be the only one at an import, until the end of the block or of the process; ImportBusy while another is."""
    with psycopg.connect(**task_locks.address(), autocommit=True) as session:
        row = session.execute("SELECT pg_try_advisory_lock(%s, %s)", [LOCK_CLASS, found.pk % 2**31]).fetchone()
        if not (row and row[0]):
            raise ImportBusy(f"{found.name} is being imported by another process. Wait for its end.", retry_after=30)
        found.refresh_from_db()
        yield


def advance(found: EventImport, portion: Portion, *, errors_path: str) -> bool:
    """Note that a portion is in the log; False where the import was asked to stop. Overtaken: it was noted before."""
    values: dict[str, Any] = {
        "id": found.pk, "start": portion.start, "end": portion.end, "line": portion.line, "rows": portion.rows,
        "errors": len(portion.bad), "errors_path": errors_path, "now": clock.now(),
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(_ADVANCE, values)
        row = cursor.fetchone()
    if row is None:
        raise Overtaken(f"{found.name} is further than this process knows. Another one is at it: let it go on.")
    return bool(row[0] != Status.STOPPED)


def is_late(found: EventImport) -> bool:
    """Tell whether the ledger last moved so long ago that the core may have forgotten what came in after it."""
    return clock.now() - found.updated_at > LATE


def stored_of(found: EventImport, message_ids: Sequence[str]) -> set[str]:
    """Return which messages the event stream has since the ledger last moved; reads all events since then."""
    since = Event.objects.filter(source_id=found.source_id, ingested_at__gte=found.updated_at - SKEW)
    return set(since.filter(message_id__in=message_ids).values_list("message_id", flat=True))


def set_status(found: EventImport, status: str, *, trouble: str = "") -> None:
    """Move an import that is not done yet to another status; `trouble` says why it stopped by itself."""
    # Only what moves the ledger moves its time: `stored_of` looks for what came after it.
    times = dict.fromkeys(("finished_at", "updated_at"), clock.now()) if status == Status.DONE else {}
    EventImport.objects.filter(pk=found.pk).exclude(status=Status.DONE).update(status=status, trouble=trouble, **times)
    found.refresh_from_db()


def document(found: EventImport) -> dict[str, Any]:
    """Return what there is to say of an import."""
    return {
        "id": found.pk, "name": found.name, "sha256": found.sha256, "source": found.source.name,
        "status": found.status, "size": found.size, "offset": found.offset, "lines": found.lines,
        "events": found.events, "errors": found.errors, "errors_path": found.errors_path,
        "finished_at": found.finished_at.isoformat() if found.finished_at else None,
    }  # fmt: skip
