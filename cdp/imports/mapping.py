"""From a row to a message of the tracking API: which column is which field. Pure functions.

What no column or constant is mapped to goes to the properties, of identify and group calls to the traits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from cdp.imports import values
from cdp.imports.records import Layout, check_encoding
from cdp.imports.values import Reader, Times, UnusableValue
from martech.lib.errors import PermanentError

# Fields at the top of a message, in the order in which the README has them.
FIELDS = (
    "type", "event", "name", "userId", "anonymousId", "messageId", "timestamp", "originalTimestamp", "groupId",
    "previousId",
)  # fmt: skip
TIMES = frozenset({"timestamp", "originalTimestamp"})
# Of an identify call it is a trait, of others a trait in the context: an identifier of the person in any case.
EMAIL = "email"
CONTAINERS = ("properties", "traits", "context")
EXTERNAL = "externalIds"
# Of objects whose keys are values, there is no end.
MOST_KEYS = 10_000
LEFT_OUT = "-"
# These are recognised by a column's name; `name` may be anybody's.
_GUESSED = {field.lower(): field for field in (*FIELDS, EMAIL) if field != "name"}
_TRAITS = frozenset({"identify", "group"})
_REST = ("",)

Path = tuple[str, ...]


class UnusableMapping(PermanentError):
    """The mapping names what there is not."""

    code = "unusable_mapping"


class Mapping(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How rows become messages. `columns` are column → field, `constants` field → text, `types` column → type.

    Fields are those of `FIELDS`, `email`, `properties.x.y`, `traits.x`, `context.x`, `externalIds.NAMESPACE`, and `-`
    for a column that is left out. `whole` is True where each line of an NDJSON file is a message already.
    """

    columns: dict[str, str] = {}
    constants: dict[str, str] = {}
    types: dict[str, str] = {}
    only_mapped: bool = False
    time_zone: str = "UTC"
    time_format: str = ""
    encoding: str = "utf-8"
    delimiter: str = ""
    whole: bool = False


class Step(NamedTuple):
    """Where a column's value goes, and what reads it."""

    path: Path
    read: Reader | None
    column: str


def complete(mapping: Mapping, layout: Layout, *, guessing: bool = True) -> Mapping:
    """Return the mapping with what is known of the file, and with the columns whose names say what they are.

    Without `guessing` a column that is not mapped is a property. UnusableMapping names what is wrong with it.
    """
    check(mapping, layout)
    known = msgspec.structs.replace(mapping, encoding=layout.encoding)
    if layout.file_format == "csv":
        guessed = guess(layout.columns, mapping) if guessing else {}
        return msgspec.structs.replace(known, columns=guessed | mapping.columns, delimiter=layout.delimiter)
    # Whatever is said of its columns says that the lines are flat objects.
    nothing = msgspec.structs.replace(mapping, encoding="utf-8", delimiter="", whole=False) == Mapping()
    return msgspec.structs.replace(known, whole=nothing)


def guess(columns: Iterable[str], mapping: Mapping) -> dict[str, str]:
    """Return the fields that columns are called like, whatever their case and signs, less those that are given."""
    taken = {*mapping.columns.values(), *mapping.constants}
    found: dict[str, str] = {}
    for column in columns:
        field = named(column)
        if field and column not in mapping.columns and field not in taken:
            found[column] = field
            taken.add(field)
    return found


def named(column: str) -> str:
    """Return the field that a column is called like, "" for none."""
    if path_of(column) is not None and "." in column:
        return column
    return _GUESSED.get(re.sub("[^a-z0-9]", "", column.lower()), "")


def check(mapping: Mapping, layout: Layout) -> None:
    """Raise UnusableMapping where the mapping names a field, a type or a column that there is not."""
    check_encoding(mapping.encoding)
    values.zone_of(mapping.time_zone)
    for field in (*mapping.columns.values(), *mapping.constants):
        if path_of(field) is None and field != LEFT_OUT:
            raise UnusableMapping(
                f"There is no field {field}. Map to one of {', '.join(FIELDS)}, {EMAIL}, or to properties.x, traits.x, "
                f"context.x, {EXTERNAL}.x, or to {LEFT_OUT} to leave the column out."
            )
    for kind in mapping.types.values():
        if kind not in values.TYPES:
            raise UnusableMapping(f"There is no type {kind}. Use one of {', '.join(values.TYPES)}.")
    unknown = [name for name in (*mapping.columns, *mapping.types) if layout.columns and name not in layout.columns]
    if unknown:
        raise UnusableMapping(f"The file has no column {unknown[0]}. It has {', '.join(layout.columns)}.")
    _check_once([field for field in mapping.columns.values() if field != LEFT_OUT])


def _check_once(fields: Sequence[str]) -> None:
    twice = next((field for field in fields if fields.count(field) > 1), None)
    if twice is not None:
        raise UnusableMapping(f"Two columns are mapped to {twice}. Leave one of them out: --map column={LEFT_OUT}.")


def path_of(field: str) -> Path | None:
    """Return where a field is in a message, None where there is no such field."""
    if field in FIELDS or field in (EMAIL, *CONTAINERS):
        return (field,)
    head, *rest = field.split(".")
    if not rest or not all(rest):
        return None
    if head == EXTERNAL:
        return (head, ".".join(rest))
    return (head, *rest) if head in CONTAINERS else None


class Mapper:
    """Makes messages of rows, by one mapping."""

    def __init__(self, mapping: Mapping, columns: Sequence[str] = ()) -> None:
        self._mapping = mapping
        self._times = Times(values.zone_of(mapping.time_zone), mapping.time_format)
        self._constants = [(path, text) for field, text in mapping.constants.items() if (path := path_of(field))]
        self._top = {path[0]: text for path, text in self._constants if len(path) == 1 and path[0] in FIELDS}
        self._deep = [(path, text) for path, text in self._constants if path[0] not in self._top]
        self._steps = [self._step(column) for column in columns]
        self._by_key: dict[str, Step | None] = {}

    def _step(self, column: str) -> Step | None:
        """Return what becomes of a column, None where it is left out."""
        field = self._mapping.columns.get(column, "")
        if field == LEFT_OUT or (not field and self._mapping.only_mapped):
            return None
        path = path_of(field) or (*_REST, column)
        kind = "time" if path[0] in TIMES else self._mapping.types.get(column)
        return Step(path, values.reader_of(kind, self._times) if kind else None, column)

    def of_row(self, cells: Sequence[str]) -> bytes:
        """Return the message of a CSV row; UnusableValue for a cell not of its type. Empty cells say nothing."""
        return self._message(
            (step, cell) for step, cell in zip(self._steps, cells, strict=True) if cell and step is not None
        )

    def of_object(self, body: bytes) -> bytes:
        """Return the message of a flat JSON object; UnusableValue for a value that is not of its type."""
        try:
            found = _object(body)
        except _unreadable as error:
            raise UnusableValue(f"The line is no JSON object: {error}.", code="malformed") from error
        return self._message(self._of_keys(found))

    def _of_keys(self, found: dict[str, Raw]) -> Iterator[tuple[Step, Any]]:
        for key, raw in found.items():
            if key not in self._by_key:
                if len(self._by_key) >= MOST_KEYS:
                    self._by_key.clear()
                self._by_key[key] = self._step_of_key(key)
            step = self._by_key[key]
            # A property may be null; a field of the message that is null says nothing.
            if step is None or (bytes(raw) == b"null" and step.path[0] != ""):
                continue
            if step.read is not None or step.path == ("type",):
                yield step, _value(raw)
            else:
                # What is only passed on stays as it is written, to the last digit.
                yield step, _members(raw) if step.path[0] in CONTAINERS and len(step.path) == 1 else raw

    def _step_of_key(self, key: str) -> Step | None:
        """Return what becomes of a key: an object's own names count, as a header's do."""
        if key not in self._mapping.columns and key not in self._top:
            field = key if key in CONTAINERS else named(key)
            if field and field not in {*self._mapping.columns.values(), *self._mapping.constants}:
                kind = "time" if field in TIMES else self._mapping.types.get(key)
                return Step(path_of(field) or (field,), values.reader_of(kind, self._times) if kind else None, key)
        return self._step(key)

    def _message(self, found: Iterable[tuple[Step, Any]]) -> bytes:
        message: dict[str, Any] = dict(self._top)
        rest: dict[str, Any] = {}
        deep: list[tuple[Path, Any]] = list(self._deep)
        for (path, read, column), given in found:
            try:
                value = given if read is None else read(given)
            except UnusableValue as error:
                raise UnusableValue(f"{column}: {error.message}", code=error.code) from error
            if path[0] == "":
                rest[path[1]] = value
            elif len(path) == 1 and path[0] != EMAIL:
                message[path[0]] = value
            else:
                deep.append((path, value))
        kind = message.get("type")
        if rest:
            bag = "traits" if isinstance(kind, str) and kind in _TRAITS else "properties"
            own = message.get(bag, {})
            # What is no object is left for the core to refuse.
            message[bag] = rest | own if isinstance(own, dict) else own
        for path, value in deep:
            _place(message, _resolved(path, kind), value)
        try:
            return _encode(message)
        except UnicodeEncodeError as error:
            raise UnusableValue("The row has bytes that are none of its encoding. Give the right one: --encoding.",
                                code="bad_encoding") from error  # fmt: skip


_encode = msgspec.json.Encoder().encode
_object = msgspec.json.Decoder(dict[str, Raw]).decode
_unreadable = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _value(raw: Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except _unreadable as error:
        raise UnusableValue(f"The line is no JSON object: {error}.", code="malformed") from error


def _members(raw: Any) -> Any:
    """Return an object's members, what is no object as it is."""
    try:
        return _object(raw) if isinstance(raw, Raw) else raw
    except _unreadable:
        return raw


def _resolved(path: Path, kind: object) -> Path:
    if path == (EMAIL,):
        return ("traits", EMAIL) if kind == "identify" else ("context", "traits", EMAIL)
    return path


def _place(message: dict[str, Any], path: Path, value: Any) -> None:
    """Put a value where its path says; what stands in its way, since it is no object, gives way."""
    if path[0] == EXTERNAL:
        _place_external(message, path[1], value)
        return
    here = message
    for name in path[:-1]:
        inner = here[name] = _members(here.get(name))
        if not isinstance(inner, dict):
            inner = here[name] = {}
        here = inner
    here[path[-1]] = value


def _place_external(message: dict[str, Any], namespace: str, value: Any) -> None:
    context = message.setdefault("context", {})
    if isinstance(context, dict):
        own = context.get(EXTERNAL)
        known = _value(own) if isinstance(own, Raw) else own
        found = {"id": value, "type": namespace, "collection": "users"}
        context[EXTERNAL] = [*known, found] if isinstance(known, list) else [found]
