"""The kinds of computed traits, as commutative monoids: `lift` an event, `combine` two states, `present` the value.

Pure functions. Whatever order events come in, and however they are split over batches, identifiers or engines, the
combined state is the same (design: law 4). States are JSON values, and worth the same after they went through it.
"""

from __future__ import annotations

import decimal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from hashlib import md5
from typing import Any, ClassVar

from msgspec import Raw

from cdp.processing.decode import Message
from martech.lib import clock

# What is added up stays exact: it has at most 60 digits on either side of the point, so 2^63 of them fit.
MAX_EXPONENT = 60
EXACT = decimal.Context(prec=200, traps=[decimal.Inexact, decimal.InvalidOperation])
# Digits of an average after the point.
AVERAGE_DIGITS = 10
_AVERAGE = decimal.Context(prec=400, rounding=decimal.ROUND_HALF_EVEN)
# Longer texts count as their first characters.
MAX_TEXT = 255
# Different values that are kept: those whose hash is smallest, so that a cap still combines.
MOST_VALUES = 200
# Up to here different values are counted exactly, from here on estimated.
MOST_COUNTED = 1000
DAY_US = 86_400_000_000
_HASHES = 1 << 64


class Kind(ABC):
    """A kind of computed trait. Its states are JSON values; it takes back what JSON made of them.

    `needs_property`: whether a definition has to name a property, whose value is given to `lift`.
    """

    needs_property: ClassVar[bool] = False

    @abstractmethod
    def lift(self, message: Message, value: Any) -> Any:
        """Return the state of one event, None where it does not count. `value` is the property's, None if absent."""

    @abstractmethod
    def combine(self, left: Any, right: Any) -> Any:
        """Return the state of both: commutative and associative."""

    @abstractmethod
    def present(self, state: Any, now_us: int) -> Any:
        """Return the value that readers see at an instant (µs), as JSON can hold it; None where there is none."""

    def due(self, state: Any, now_us: int) -> int | None:
        """Return when (µs, after `now_us`) the value changes by itself, None where only events change it."""
        return None


class Count(Kind):
    """How many events."""

    def lift(self, message: Message, value: Any) -> Any:
        return 1

    def combine(self, left: Any, right: Any) -> Any:
        return left + right

    def present(self, state: Any, now_us: int) -> Any:
        return state


class FirstTime(Kind):
    """When the earliest event happened; the state is in microseconds since 1970."""

    def lift(self, message: Message, value: Any) -> Any:
        return message.occurred_us

    def combine(self, left: Any, right: Any) -> Any:
        return min(left, right)

    def present(self, state: Any, now_us: int) -> Any:
        return clock.isoformat_us(state)


class LastTime(FirstTime):
    """When the latest event happened."""

    def combine(self, left: Any, right: Any) -> Any:
        return max(left, right)


class DaysSince(LastTime):
    """How many days ago the latest event happened, by the days of UTC: all of these change at the same time."""

    def present(self, state: Any, now_us: int) -> Any:
        return max(0, now_us // DAY_US - state // DAY_US)

    def due(self, state: Any, now_us: int) -> int | None:
        return (now_us // DAY_US + 1) * DAY_US


class _Numeric(Kind):
    needs_property = True

    def lift(self, message: Message, value: Any) -> Any:
        return number_of(value)

    def present(self, state: Any, now_us: int) -> Any:
        return Raw(plain_number(decimal.Decimal(state)).encode())


class Sum(_Numeric):
    """The exact decimal sum of a numeric property; the state is a decimal's text."""

    def combine(self, left: Any, right: Any) -> Any:
        return EXACT.add(decimal.Decimal(left), decimal.Decimal(right))


class Minimum(_Numeric):
    """The smallest value of a numeric property."""

    def lift(self, message: Message, value: Any) -> Any:
        number = number_of(value)
        # Of 1 and 1.0 either may be kept: they have to be one.
        return None if number is None else decimal.Decimal(plain_number(number))

    def combine(self, left: Any, right: Any) -> Any:
        return min(decimal.Decimal(left), decimal.Decimal(right))


class Maximum(Minimum):
    """The largest value of a numeric property."""

    def combine(self, left: Any, right: Any) -> Any:
        return max(decimal.Decimal(left), decimal.Decimal(right))


class Average(_Numeric):
    """The mean of a numeric property; the state is its sum and its count, and only what is shown is rounded."""

    def lift(self, message: Message, value: Any) -> Any:
        number = number_of(value)
        return None if number is None else [number, 1]

    def combine(self, left: Any, right: Any) -> Any:
        return [EXACT.add(decimal.Decimal(left[0]), decimal.Decimal(right[0])), left[1] + right[1]]

    def present(self, state: Any, now_us: int) -> Any:
        mean = _AVERAGE.divide(decimal.Decimal(state[0]), decimal.Decimal(state[1]))
        return Raw(plain_number(_AVERAGE.quantize(mean, decimal.Decimal(1).scaleb(-AVERAGE_DIGITS))).encode())


class _Valued(Kind):
    needs_property = True


class First(_Valued):
    """The value of a property in the earliest event that has one; ties go by message id."""

    choose: ClassVar[Callable[..., Any]] = min

    def lift(self, message: Message, value: Any) -> Any:
        text = text_of(value)
        return None if text is None else [message.occurred_us, message.message_id, text]

    def combine(self, left: Any, right: Any) -> Any:
        return type(self).choose(left, right)

    def present(self, state: Any, now_us: int) -> Any:
        return value_of(state[2])


class Last(First):
    """The value of a property in the latest event that has one; ties go by message id."""

    choose = max


class MostFrequent(_Valued):
    """The value that comes most often, twice at least; ties go by the alphabet. The state is counts by value."""

    def lift(self, message: Message, value: Any) -> Any:
        text = text_of(value)
        return None if text is None else {text: 1}

    def combine(self, left: Any, right: Any) -> Any:
        counts = dict(left)
        for text, count in right.items():
            counts[text] = counts.get(text, 0) + count
        return {text: counts[text] for text in _capped(counts, MOST_VALUES)} if len(counts) > MOST_VALUES else counts

    def present(self, state: Any, now_us: int) -> Any:
        text, count = min(state.items(), key=lambda one: (-one[1], one[0][1:], one[0]))
        return value_of(text) if count > 1 else None


class UniqueList(_Valued):
    """The different values of a property, in order; at most `MOST_VALUES`."""

    def lift(self, message: Message, value: Any) -> Any:
        text = text_of(value)
        return None if text is None else [text]

    def combine(self, left: Any, right: Any) -> Any:
        texts = {*left, *right}
        return sorted(_capped(texts, MOST_VALUES))

    def present(self, state: Any, now_us: int) -> Any:
        return [value_of(text) for text in sorted(state, key=lambda one: (one[1:], one))]


class UniqueCount(_Valued):
    """How many different values a property has: exact up to `MOST_COUNTED`, an estimate (±3 %) beyond.

    The state is the smallest hashes of values, as hexadecimal texts.
    """

    def lift(self, message: Message, value: Any) -> Any:
        text = text_of(value)
        return None if text is None else [hash_of(text)]

    def combine(self, left: Any, right: Any) -> Any:
        return sorted({*left, *right})[:MOST_COUNTED]

    def present(self, state: Any, now_us: int) -> Any:
        if len(state) < MOST_COUNTED:
            return len(state)
        return (MOST_COUNTED - 1) * _HASHES // max(1, int(state[-1], 16))


KINDS: dict[str, Kind] = {
    "count": Count(), "first_time": FirstTime(), "last_time": LastTime(), "days_since": DaysSince(), "sum": Sum(),
    "average": Average(), "minimum": Minimum(), "maximum": Maximum(), "first": First(), "last": Last(),
    "most_frequent": MostFrequent(), "unique_list": UniqueList(), "unique_count": UniqueCount(),
}  # fmt: skip


def number_of(value: Any) -> decimal.Decimal | None:
    """Return a JSON number as it is taken in; None for anything else, and where it is too large or too fine."""
    if isinstance(value, bool) or not isinstance(value, int | decimal.Decimal):
        return None
    number = decimal.Decimal(value)
    text = str(number)
    # Usually it is short and plain, and what follows dear.
    if number and len(text) <= MAX_EXPONENT and "E" not in text:
        return number if number.is_finite() else None
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -MAX_EXPONENT:
        return None
    if not number:
        return decimal.Decimal(0) if exponent > 0 else number.copy_abs()
    if number.adjusted() > MAX_EXPONENT:
        return None
    # Without an exponent, as PostgreSQL has it.
    return number if exponent <= 0 else decimal.Decimal(int(number))


def plain_number(number: decimal.Decimal) -> str:
    """Return a number without an exponent and without zeros that say nothing."""
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def text_of(value: Any) -> str | None:
    """Return a JSON text, number or boolean as states keep it: a letter for what it is, and what it says."""
    if isinstance(value, str):
        return "s" + value[:MAX_TEXT]
    if isinstance(value, bool):
        return "btrue" if value else "bfalse"
    number = number_of(value)
    return None if number is None else "n" + plain_number(number)


def value_of(text: str) -> Any:
    """Return what `text_of` was given, as JSON can hold it."""
    if text[0] == "s":
        return text[1:]
    return Raw(text[1:].encode())


def hash_of(text: str) -> str:
    """Return the 16 hexadecimal digits by which values are ordered and counted; PostgreSQL makes the same."""
    return md5(text.encode(), usedforsecurity=False).hexdigest()[:16]


def _capped(texts: Iterable[str], most: int) -> list[str]:
    return sorted(texts, key=lambda one: (hash_of(one), one))[:most]
