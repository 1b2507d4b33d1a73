"""A file of this machine: what it holds, by its hash, and whether it stayed as it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from cdp.imports.mapping import Mapping
from cdp.imports.records import Layout, UnusableFile, format_of, layout_of, opened


class LocalFile:
    """A file to import, to be closed after use. UnusableFile where it cannot be read."""

    def __init__(self, path: Path, file_format: str = "") -> None:
        self.path = path
        self.file_format = file_format or format_of(path.name)
        try:
            self._raw = path.open("rb")
            self._stat = os.fstat(self._raw.fileno())
        except OSError as error:
            raise UnusableFile(f"{path} cannot be read: {error.strerror}.") from error
        self.size = self._stat.st_size

    @cached_property
    def _sha256(self) -> str:
        self._raw.seek(0)
        return hashlib.file_digest(self._raw, "sha256").hexdigest()

    def sha256(self) -> str:
        """Return the hash of the file's bytes, by which it is known again."""
        return self._sha256

    @contextmanager
    def content(self) -> Iterator[BinaryIO]:
        """Give the content, decompressed."""
        self._raw.seek(0)
        yield opened(self._raw, self.path.name)

    def layout(self, mapping: Mapping) -> Layout:
        """Return how to read it."""
        with self.content() as stream:
            return layout_of(stream, self.file_format, encoding=mapping.encoding, delimiter=mapping.delimiter)

    def position(self, offset: int) -> int:
        """Return how many of the file's bytes are read when its content is at `offset`."""
        return self._raw.tell() if self.path.name.lower().endswith(".gz") else offset

    def errors_path(self, otherwise: Path) -> Path:
        """Return where to name bad lines: beside the file, or in a directory of ours where nobody may write there."""
        # Of the content: a file that was mended has errors of its own.
        name = f"{self.path.name}.{self.sha256()[:8]}.errors.ndjson"
        if os.access(self.path.parent, os.W_OK):
            return self.path.absolute().parent / name
        otherwise.mkdir(parents=True, exist_ok=True)
        return otherwise / name

    def close(self) -> None:
        """Let go of the file."""
        self._raw.close()

    def check_unchanged(self) -> None:
        """Raise UnusableFile where somebody wrote to the file since it was opened."""
        now = self.path.stat()
        if (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns):
            raise UnusableFile(
                f"{self.path} was changed while it was imported, so the ledger does not know what went in. Import "
                "files that nobody writes to any more."
            )
