"""What a cell holds, as JSON: text unless a type is given, since 00123 may be a number or an id."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from martech.lib import clock
from martech.lib.errors import PermanentError

TYPES = ("text", "number", "boolean", "time", "json")
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
# Beyond, a number could cost more to read than a row may.
MOST_DIGITS = 1000
_STAMP = re.compile(r"-?[0-9]{9,17}(?:\.[0-9]+)?")
_BOOLEANS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0"), False),
}

Reader = Callable[[Any], Any]


class UnusableValue(PermanentError):
    """A cell does not hold what its column's type says."""

    code = "unusable_value"


class Times(NamedTuple):
    """How times are written: the zone of those that name none, and their form (`strptime`) where it is not ISO 8601."""

    zone: tzinfo = UTC
    form: str = ""


def zone_of(name: str) -> tzinfo:
    """Return a time zone by its name; PermanentError for one that is not known."""
    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise PermanentError(f"There is no time zone {name}. Give one such as Europe/Berlin.") from error


def reader_of(kind: str, times: Times) -> Reader | None:
    """Return what reads values of a type, None where they stay as they are."""
    readers: dict[str, Reader | None] = {
        "text": _text, "number": _number, "boolean": _boolean, "json": _json, "time": time_reader(times),
    }  # fmt: skip
    return readers[kind]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _number(value: Any) -> Any:
    """Return a number as it is written, to the last digit."""
    if not isinstance(value, str):
        return _checked(value, isinstance(value, int | float) and not isinstance(value, bool), "number")
    text = value.strip()
    if len(text) <= MOST_DIGITS and NUMBER.fullmatch(text):
        return msgspec.Raw(text.encode())
    try:
        number = Decimal(text) if len(text) <= MOST_DIGITS else Decimal("NaN")
    except InvalidOperation:
        number = Decimal("NaN")
    return msgspec.Raw(str(_checked(number, number.is_finite(), "number", value)).encode())


def _boolean(value: Any) -> bool:
    found = value if isinstance(value, bool) else _BOOLEANS.get(str(value).strip().lower())
    return bool(_checked(found, found is not None, "boolean (true or false, yes or no, 1 or 0)", value))


def _json(value: Any) -> Any:
    try:
        return msgspec.json.decode(value) if isinstance(value, str) else value
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise UnusableValue(f"{_shown(value)} is not valid JSON: {error}.") from error


def _checked(result: Any, right: bool, expected: str, value: Any = None) -> Any:
    if not right:
        raise UnusableValue(f"{_shown(result if value is None else value)} is no {expected}.")
    return result


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def time_reader(times: Times) -> Reader:
    """Return what makes an ISO 8601 text of a time; UnusableValue for what is none.

    Takes ISO 8601, and seconds, milliseconds or microseconds since 1970 by how large the number is.
    """

    def read(value: Any) -> str:
        if not isinstance(value, str):
            return _stamp(value)
        text = value.strip()
        if times.form:
            return _iso(_parsed(text, times), times.zone)
        if _STAMP.fullmatch(text):  # eight digits are a day
            return _stamp(Decimal(text))
        found = _parsed(text, times)
        # As it was written, where that says all: the event keeps it beside its time.
        return text if found.tzinfo is not None or times.zone is UTC else _iso(found, times.zone)

    return read


def _parsed(text: str, times: Times) -> datetime:
    try:
        return datetime.strptime(text, times.form) if times.form else datetime.fromisoformat(text)  # noqa: DTZ007
    except ValueError as error:
        expected = f"of the form {times.form}" if times.form else "ISO 8601, or seconds or milliseconds since 1970"
        raise UnusableValue(f"{_shown(text)} is no time: it should be {expected}.") from error


def _iso(found: datetime, zone: tzinfo) -> str:
    placed = found if found.tzinfo is not None else found.replace(tzinfo=zone)
    try:
        return placed.astimezone(UTC).isoformat().replace("+00:00", "Z")
    except OverflowError as error:
        raise UnusableValue(f"{_shown(found)} is beyond the years that can be kept.") from error


def _stamp(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise UnusableValue(f"{_shown(value)} is no time.")
    number = Decimal(value)
    for limit, scale in ((10**11, 1_000_000), (10**14, 1000), (10**17, 1)):
        if abs(number) < limit:
            try:
                return clock.isoformat_us(int(number * scale))
            except OverflowError:
                break
    raise UnusableValue(f"{_shown(value)} is beyond the years that can be kept.")
