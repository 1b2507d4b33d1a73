"""Uploaded files: kept in the default storage until their rows are in the log, and carried on by tasks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, BinaryIO, cast

from django.conf import settings
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import UploadedFile

from cdp.imports import aside, ledger
from cdp.imports.errors import StoredErrors
from cdp.imports.records import format_of, opened
from cdp.imports.running import run
from cdp.models import EventImport, Source
from martech.lib import clock
from martech.lib.errors import PermanentError

Status = ledger.Status

# A running import whose ledger has not moved for so long may have lost its message or its worker.
QUIET = timedelta(minutes=2)
# How long a file that nobody began, and the errors of one that is done, are kept: both hold people's data.
KEPT = timedelta(days=30)
STORED = "imports/"
ERRORS = ".errors"


def receive(*, upload: UploadedFile[Any], source: Source, author: str, file_format: str = "") -> EventImport:
    """Keep an uploaded file and return its import; one that is known already is returned as it is.

    PermanentError where the source may not import, or the format cannot be told.
    """
    ledger.check_source(source)
    name = str(upload.name)
    file_format = file_format or format_of(name)
    sha256 = _hash(upload)
    found = ledger.known(sha256=sha256, source=source)
    if found is None:
        now = clock.now()
        found, _ = EventImport.objects.get_or_create(
            sha256=sha256, source=source,
            defaults={"name": name[-255:], "file_format": file_format, "size": upload.size or 0, "author": author,
                      "created_at": now, "updated_at": now},
        )  # fmt: skip
    if found.status != Status.DONE and not found.stored_path:
        ending = ".gz" if name.lower().endswith(".gz") else ""
        found.stored_path = default_storage.save(f"{STORED}{found.pk}.{file_format}{ending}", upload)
        found.save(update_fields=["stored_path"])
    return found


def _hash(upload: UploadedFile[Any]) -> str:
    digest = hashlib.sha256()
    for chunk in upload.chunks():
        digest.update(chunk)
    upload.seek(0)
    return digest.hexdigest()


@contextmanager
def content(found: EventImport) -> Iterator[BinaryIO]:
    """Give the content of an uploaded file, decompressed; PermanentError where the storage lost it."""
    try:
        stored = default_storage.open(found.stored_path)
    except (FileNotFoundError, ValueError) as error:
        raise PermanentError(
            f"The upload of {found.name} is gone. Upload it again: it goes on where it was."
        ) from error
    with stored:
        yield opened(cast(BinaryIO, stored), found.stored_path)


def errors_of(found: EventImport) -> StoredErrors:
    """Return where an uploaded file's bad lines are named."""
    return StoredErrors(default_storage, f"{STORED}{found.pk}{ERRORS}")


def carry_on(import_id: int, *, seconds: float) -> bool:
    """Run an import for so long; True where there is more to do. ImportBusy while another process is at it."""
    found = EventImport.objects.select_related("source").get(pk=import_id)
    if found.status != Status.RUNNING:
        return False
    until = time.monotonic() + seconds
    try:
        with content(found) as stream:
            done = run(
                found, stream, errors_of(found), config=settings.CONFIG, stop=lambda: time.monotonic() > until
            )  # fmt: skip
    except PermanentError as error:
        ledger.set_status(found, Status.STOPPED, trouble=error.message)
        raise
    if done:
        ledger.set_status(found, Status.DONE)
        _forget(found)
    return not done and found.status == Status.RUNNING


def lost(*, now: datetime) -> list[int]:
    """Return the ids of the running imports of which nothing has been heard for a while."""
    quiet = EventImport.objects.filter(status=Status.RUNNING, updated_at__lt=now - QUIET).exclude(stored_path="")
    return list(quiet.values_list("pk", flat=True))


def prune(*, now: datetime) -> None:
    """Remove uploads that nobody began or went on with, and the errors of imports that are long done."""
    old = EventImport.objects.filter(updated_at__lt=now - KEPT).exclude(status=Status.RUNNING)
    for found in old.exclude(stored_path=""):
        _forget(found)
    # Of a file that the command took they are beside it, and its owner's, unless nobody may write there.
    aside.prune(before=now - KEPT)
    for found in old.filter(errors_path__startswith=STORED):
        errors_of(found).clear()
        EventImport.objects.filter(pk=found.pk).update(errors_path="")


def forget_upload(path: str) -> None:
    """Remove an upload that names somebody who is erased; its import can go on when it is uploaded again.

    RetryableError while it is running: its rows are then refused by the core, and the file goes at its end.
    """
    found = EventImport.objects.filter(stored_path=path).first()
    if found is None:
        default_storage.delete(path)
        return
    if found.status == Status.RUNNING:
        raise ledger.ImportBusy(f"{found.name} is being imported, and is removed at its end.", retry_after=60)
    _forget(found)


def _forget(found: EventImport) -> None:
    default_storage.delete(found.stored_path)
    found.stored_path = ""
    found.save(update_fields=["stored_path"])
