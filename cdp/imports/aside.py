"""Errors' files of ours: of imports from where nobody may write, in a directory of this machine.

They are kept and erased as the errors of uploads are; those beside people's own files are theirs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from django.conf import settings

from cdp.imports import ledger
from cdp.models import EventImport

ENDING = ".errors.ndjson"


def folder() -> Path:
    """Return where they are."""
    found: Path = settings.OPTIONS.data / "imports"
    return found


def files() -> list[Path]:
    """Return all of them."""
    return sorted(folder().glob(f"*{ENDING}"))


def texts(path: Path) -> Iterator[str]:
    """Give the text of each bad line; one that a crash left half written stands for itself."""
    with path.open("rb") as stream:
        yield from map(_text, stream)


def _text(line: bytes) -> str:
    try:
        return str(msgspec.json.decode(line)["text"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return line.decode("utf-8", "replace")


def take_out(is_theirs: Callable[[str], bool]) -> int:
    """Take the lines out whose text somebody is in, and return how many; ImportBusy while an import is at such a file.

    A file that cannot be read or written halts nobody: it is `untouched`.
    """
    lines = 0
    for path in files():
        with suppress(OSError):
            # Looked at first: an import that writes of others is not waited for.
            lines += _take_out(path, is_theirs) if any(map(is_theirs, texts(path))) else 0
    return lines


def untouched(is_theirs: Callable[[str], bool]) -> list[Path]:
    """Return the files that somebody is in still, or may be: those that this process cannot read or write."""
    return [path for path in files() if _may_be_in(path, is_theirs)]


def _may_be_in(path: Path, is_theirs: Callable[[str], bool]) -> bool:
    try:
        return any(map(is_theirs, texts(path)))
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _take_out(path: Path, is_theirs: Callable[[str], bool]) -> int:
    found = EventImport.objects.filter(errors_path=str(path)).first()
    with ledger.held(found) if found else nullcontext():
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if not is_theirs(_text(line))]
        if len(kept) < len(lines):
            _replace(path, b"".join(kept))
    return len(lines) - len(kept)


def _replace(path: Path, content: bytes) -> None:
    # Named so that what a crash leaves of it is one of the files, and goes like them.
    part = path.with_name(f"part-{path.name}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


def prune(*, before: datetime) -> None:
    """Remove the files of imports that nobody went on with since, and those that are as old and nobody's."""
    for path in files():
        found = EventImport.objects.filter(errors_path=str(path)).first()
        touched = found.updated_at if found else datetime.fromtimestamp(path.stat().st_mtime, UTC)
        if touched < before and (found is None or found.status != ledger.Status.RUNNING):
            path.unlink(missing_ok=True)
            EventImport.objects.filter(errors_path=str(path)).update(errors_path="")
