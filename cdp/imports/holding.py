"""What uploads and the errors of imports hold of people: named in exports, and gone with an erasure.

Neither knows identifiers: a line is of a person when one of its values is one of theirs, or names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, cast
from uuid import UUID

import msgspec
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage

from cdp import redaction
from cdp.holders import Holder
from cdp.imports import aside
from cdp.imports.records import opened
from cdp.imports.uploads import ERRORS, STORED, forget_upload
from cdp.processing.identity import Identifier

_decode = msgspec.json.Decoder(dict[str, Any]).decode_lines
_BETWEEN = re.compile(r"[,;\t|\"\r\n]")


class ImportHolder(Holder):
    """Bad lines, and files that wait to be imported: in the default storage, and bad lines in a directory of ours."""

    name = "imports"

    def unmerged(self, moved: Mapping[Identifier, UUID]) -> None:
        """Do nothing: lines are found by their values."""

    def export(self, identifiers: Iterable[Identifier]) -> dict[str, Any]:
        """Return the bad lines that name somebody; what waits in an upload is not ours yet."""
        names = _Names(identifiers)
        found = {path: [line["text"] for line in _lines(path) if names.are_in(line["text"])] for path in _parts(names)}
        for path in aside.files() if names else []:
            found[path.name] = [text for text in aside.texts(path) if names.are_in(text)]
        return {path: texts for path, texts in found.items() if texts}

    def erase(self, identifiers: Iterable[Identifier]) -> int:
        """Take bad lines out that name somebody, and whole files that wait and do; RetryableError while one is read."""
        names = _Names(identifiers)
        lines = sum(_take_out(path, names) for path in list(_parts(names)))
        lines += aside.take_out(names.are_in) if names else 0
        files = [path for path in _stored(names) if path.rpartition("/")[0] == STORED.rstrip("/") and names.of(path)]
        for path in files:
            forget_upload(path)
        return lines + len(files)

    def standing(self, identifiers: Iterable[Identifier]) -> str:
        """Name the errors' files of this machine that could not be read or written."""
        names = _Names(identifiers)
        left = aside.untouched(names.are_in) if names else []
        if not left:
            return ""
        return (
            f"Errors' files of imports could not be read or written, and stay: {', '.join(map(str, left))}. "
            "Give them to the user of the worker, or remove them."
        )


class _Names:
    """The values by which a person is found in texts."""

    def __init__(self, identifiers: Iterable[Identifier]) -> None:
        self._values = {one.value.lower() for one in identifiers}
        self._pattern = redaction.pattern(self._values)
        forms = {form for one in self._values for form in (one.encode(), msgspec.json.encode(one)[1:-1])}
        self._forms = forms | {one.encode("ascii", "backslashreplace") for one in self._values}

    def __bool__(self) -> bool:
        return bool(self._values)

    def are_in(self, text: str) -> bool:
        """Tell whether a line names the person."""
        return not self._values.isdisjoint(_values_of(text)) or bool(self._pattern.search(text))

    def of(self, path: str) -> bool:
        """Tell whether an upload names the person."""
        with default_storage.open(path) as stored:
            stream = opened(cast(BinaryIO, stored), path)
            try:
                return any(self._may_be_in(line) and self.are_in(line.decode("utf-8", "replace")) for line in stream)
            except (OSError, EOFError):
                # Nobody can say what a broken archive holds, nor ever import the rest of it.
                return True

    def _may_be_in(self, line: bytes) -> bool:
        lower = line.lower()
        return any(form in lower for form in self._forms)


def _values_of(text: str) -> Iterator[str]:
    """Give the values of a line of JSON or CSV, in lower case."""
    with suppress(msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        yield from _leaves(msgspec.json.decode(text))
    yield from (cell.strip().lower() for cell in _BETWEEN.split(text))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)
    else:
        yield str(value).lower()


def _stored(names: _Names) -> list[str]:
    """Return the uploads; none where nobody is asked for."""
    return [f"{STORED}{name}" for name in _listed(STORED)[1]] if names else []


def _parts(names: _Names) -> Iterator[str]:
    """Give the parts of all errors."""
    for folder in _listed(STORED)[0] if names else []:
        if folder.endswith(ERRORS):
            yield from (f"{STORED}{folder}/{name}" for name in _listed(f"{STORED}{folder}")[1])


def _listed(path: str) -> tuple[list[str], list[str]]:
    try:
        return default_storage.listdir(path)
    except FileNotFoundError:
        return [], []


def _lines(path: str) -> list[dict[str, Any]]:
    with default_storage.open(path) as stream:
        return _decode(stream.read())


def _take_out(path: str, names: _Names) -> int:
    lines = _lines(path)
    kept = [line for line in lines if not names.are_in(line["text"])]
    if len(kept) < len(lines):
        default_storage.delete(path)
        default_storage.save(path, ContentFile(b"".join(msgspec.json.encode(line) + b"\n" for line in kept)))
    return len(lines) - len(kept)
