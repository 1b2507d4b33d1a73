"""Conditions on what an event or a person has: a closed grammar as data, made into predicates.

A condition is `{"property": "details.plan", "operator": "equals", "value": "gold"}`; its SQL form is in
`cdp.processing.condition_sql`, and says the same of every value. What is of another type than the operator wants
meets no condition but the negated ones, `not_equals`, `not_contains`, `not_in` and `absent`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from cdp.processing.kinds import DAY_US, number_of
from martech.lib import clock
from martech.lib.errors import PermanentError

Predicate = Callable[[Any, int], bool]
MAX_CONDITIONS = 20
MAX_OPERANDS = 1000
# A day, or an instant with its offset: what PostgreSQL and Python read alike.
INSTANT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(?:Z|([+-])(\d\d):(\d\d)))?", re.ASCII
)


class UnfitCondition(PermanentError):
    """A condition that cannot be."""

    code = "unfit_condition"


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"of": "property"}):
    """What a value has to be like; `of`, as data `property`, is a path of names with dots between them."""

    of: str
    operator: str
    value: Any = None

    @property
    def path(self) -> tuple[str, ...]:
        """The names that lead to the value."""
        return tuple(self.of.split("."))


def conditions(data: Any) -> tuple[Condition, ...]:
    """Return the conditions that JSON data say, in their one form; UnfitCondition says what is wrong."""
    if not isinstance(data, list) or len(data) > MAX_CONDITIONS:
        raise UnfitCondition(f"Conditions are a list of at most {MAX_CONDITIONS}.")
    return tuple(_checked(one) for one in data)


def _checked(data: Any) -> Condition:
    try:
        one = msgspec.convert(data, Condition)
    except msgspec.ValidationError as error:
        raise UnfitCondition(
            f"A condition is an object of property, operator and value: {str(error).split(' - ')[0]}."
        ) from error
    if not all(one.path):
        raise UnfitCondition("A condition's property is a name, or names with dots between them.")
    if one.operator not in OPERANDS:
        raise UnfitCondition(f"'{one.operator}' is no operator. Known: {', '.join(OPERANDS)}.")
    wanted, is_fit = OPERANDS[one.operator]
    if not is_fit(one.value):
        raise UnfitCondition(f"The operator {one.operator} on {one.of} needs {wanted} as its value.")
    return one


def predicate(condition: Condition) -> Predicate:
    """Return what tells whether a value (None where there is none) meets a condition, at an instant (µs)."""
    return _PREDICATES[condition.operator](exact(condition.value))


def exact(value: Any) -> Any:
    """Return an operand with its numbers as decimals, as values of events have them."""
    if isinstance(value, list):
        return [exact(one) for one in value]
    return Decimal(repr(value)) if isinstance(value, float) else value


def instant_of(value: Any) -> int | None:
    """Return a day's or an instant's text as microseconds since 1970, None for anything else."""
    found = INSTANT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, offset_hours, offset_minutes = found.groups(default="")
    try:
        at = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=UTC)
    except ValueError:
        return None
    if sign and (int(offset_hours) > 14 or int(offset_minutes) > 59):
        return None
    offset = (int(offset_hours or 0) * 60 + int(offset_minutes or 0)) * 60_000_000
    return clock.to_us(at) + int((fraction or "0").ljust(6, "0")) + (offset if sign == "-" else -offset)


def same(value: Any, other: Any) -> bool:
    """Tell whether two JSON values are the same text, boolean or number; 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, str) or isinstance(other, str):
        return isinstance(value, str) and isinstance(other, str) and value == other
    one, two = number_of(value), number_of(other)
    return one is not None and one == two


def _equals(wanted: Any) -> Predicate:
    return lambda value, at: same(value, wanted)


def _contains(wanted: str) -> Predicate:
    return lambda value, at: isinstance(value, str) and wanted in value


def _starts(wanted: str) -> Predicate:
    return lambda value, at: isinstance(value, str) and value.startswith(wanted)


def _ends(wanted: str) -> Predicate:
    return lambda value, at: isinstance(value, str) and value.endswith(wanted)


def _in(wanted: Sequence[Any]) -> Predicate:
    return lambda value, at: any(same(value, one) for one in wanted)


def _exists(wanted: None) -> Predicate:
    return lambda value, at: value is not None


def _less(wanted: Any) -> Predicate:
    return _compared(lambda number: number < Decimal(wanted))


def _at_most(wanted: Any) -> Predicate:
    return _compared(lambda number: number <= Decimal(wanted))


def _greater(wanted: Any) -> Predicate:
    return _compared(lambda number: number > Decimal(wanted))


def _at_least(wanted: Any) -> Predicate:
    return _compared(lambda number: number >= Decimal(wanted))


def _between(wanted: Sequence[Any]) -> Predicate:
    low, high = map(Decimal, wanted)
    return _compared(lambda number: low <= number <= high)


def _compared(holds: Callable[[Decimal], bool]) -> Predicate:
    return lambda value, at: (number := number_of(value)) is not None and holds(number)


def _before(wanted: str) -> Predicate:
    limit = instant_of(wanted)
    return lambda value, at: (found := instant_of(value)) is not None and limit is not None and found < limit


def _after(wanted: str) -> Predicate:
    limit = instant_of(wanted)
    return lambda value, at: (found := instant_of(value)) is not None and limit is not None and found > limit


def _within(wanted: int) -> Predicate:
    """In the last so many days, as of the instant."""
    return lambda value, at: (found := instant_of(value)) is not None and at - wanted * DAY_US < found <= at


def _not(make: Callable[[Any], Predicate]) -> Callable[[Any], Predicate]:
    def made(wanted: Any) -> Predicate:
        holds = make(wanted)
        return lambda value, at: not holds(value, at)

    return made


_PREDICATES: Mapping[str, Callable[[Any], Predicate]] = {
    "equals": _equals, "not_equals": _not(_equals), "contains": _contains, "not_contains": _not(_contains),
    "starts": _starts, "ends": _ends, "in": _in, "not_in": _not(_in), "exists": _exists, "absent": _not(_exists),
    "less": _less, "at_most": _at_most, "greater": _greater, "at_least": _at_least, "between": _between,
    "before": _before, "after": _after, "within": _within,
}  # fmt: skip


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bool) or _is_number(value)


def _is_number(value: Any) -> bool:
    return number_of(exact(value)) is not None


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MAX_OPERANDS and all(map(_is_scalar, value))


def _is_instant(value: Any) -> bool:
    return instant_of(value) is not None


def _is_days(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 36_500


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


_SCALAR, _NUMBER = ("a text, a number or a boolean", _is_scalar), ("a number", _is_number)
_TEXT, _LIST = ("a text", _is_text), (f"a list of 1 to {MAX_OPERANDS} texts, numbers or booleans", _is_list)
_NOTHING = ("nothing", lambda value: value is None)
_INSTANT = ("a day (2026-11-24) or an instant with its offset (2026-11-24T09:00:00Z)", _is_instant)
# What each operator wants as its value: in words, and what tells.
OPERANDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "equals": _SCALAR, "not_equals": _SCALAR, "contains": _TEXT, "not_contains": _TEXT, "starts": _TEXT, "ends": _TEXT,
    "in": _LIST, "not_in": _LIST, "exists": _NOTHING, "absent": _NOTHING, "less": _NUMBER, "at_most": _NUMBER,
    "greater": _NUMBER, "at_least": _NUMBER, "between": ("two numbers", _is_pair), "before": _INSTANT,
    "after": _INSTANT, "within": ("a whole number of days", _is_days),
}  # fmt: skip
