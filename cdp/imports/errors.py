"""Where the lines are named that did not go in: a file beside the input, or parts in a storage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
from django.core.files.base import ContentFile
from django.core.files.storage import Storage

from cdp.imports.portions import Portion, as_line


class Errors(Protocol):
    """Keeps bad lines as NDJSON: line, reason, detail, text."""

    path: str

    def resume(self, lines: int) -> None:
        """Forget what was written of lines after `lines`: they are read again."""

    def add(self, portion: Portion) -> None:
        """Write a portion's bad lines, durably; called before the ledger moves."""


class LocalErrors:
    """A file that only its owner may read: it holds what was in the rows."""

    def __init__(self, path: Path) -> None:
        self._file, self.path = path, str(path)

    def resume(self, lines: int) -> None:
        """Cut off what is read again, and what a crash left half written."""
        if not self._file.exists():
            return
        with self._file.open("r+b") as stream:
            stream.truncate(_kept(stream, lines))

    def add(self, portion: Portion) -> None:
        """Append to the file, and wait for the disk."""
        if not portion.bad:
            return
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab") as stream:
            stream.writelines(map(as_line, portion.bad))
            stream.flush()
            os.fsync(stream.fileno())


def _kept(stream: Iterable[bytes], lines: int) -> int:
    """Return how many bytes are of whole lines that are not read again."""
    end = 0
    for text in stream:
        try:
            line = msgspec.json.decode(text)["line"]
        except (msgspec.DecodeError, UnicodeDecodeError):
            break
        if line > lines or not text.endswith(b"\n"):
            break
        end += len(text)
    return end


class StoredErrors:
    """Parts in a storage that cannot append, one a portion, named by where that begins: twice is once."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage, self.path = storage, path

    def resume(self, lines: int) -> None:
        """Do nothing: a portion that is read again replaces its part."""

    def add(self, portion: Portion) -> None:
        """Write the portion's part."""
        if not portion.bad:
            return
        name = f"{self.path}/{portion.start:016}.ndjson"
        if self._storage.exists(name):
            self._storage.delete(name)
        self._storage.save(name, ContentFile(b"".join(map(as_line, portion.bad))))

    def read(self) -> Iterator[bytes]:
        """Give the content of all parts, by line."""
        for name in self._parts():
            with self._storage.open(f"{self.path}/{name}") as stream:
                yield stream.read()

    def clear(self) -> None:
        """Remove all parts."""
        for name in self._parts():
            self._storage.delete(f"{self.path}/{name}")

    def _parts(self) -> list[str]:
        try:
            return sorted(self._storage.listdir(self.path)[1])
        except FileNotFoundError:
            return []
