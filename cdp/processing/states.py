"""What a given trait may be kept as: one state for each merge policy.

Pure data and functions. A state joins with another of its kind in any order, grouping and number; `apply` adds what
new events said, which differs from joining for counters alone. States are JSON, and worth the same after it.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from cdp.processing.kinds import EXACT, MAX_EXPONENT
from martech.lib import clock

# Elements of a union that are kept, removed ones among them: those whose hash is smallest, so that a cap still joins.
MOST_ELEMENTS = 1000
# Under which a removal stands that does not say which source's additions it has seen.
ANY_SOURCE = ""

_encode = msgspec.json.Encoder().encode
_exact: msgspec.json.Decoder[Any] = msgspec.json.Decoder(float_hook=decimal.Decimal)


class Dot(NamedTuple):
    """What was said once: event time (µs, clamped) and message id. Of one source, later dots come after earlier."""

    at_us: int
    message_id: str


class Origin(NamedTuple):
    """Where a trait comes from: its event's time and id, how far its source is believed, its source and anchor.

    `received_us` is when the event came, where it is known: its time may be up to five minutes later.
    """

    at_us: int
    rank: int
    message_id: str
    source: int = 0
    anchor: str = ""
    received_us: int | None = None

    @property
    def dot(self) -> Dot:
        """The event among those of its source."""
        return Dot(self.at_us, self.message_id)

    @property
    def origin(self) -> str:
        """The source as states name it."""
        return str(self.source)


class Misfit(ValueError):
    """A value that its merge policy cannot take: the flag that its event gets, and the cause in words."""

    def __init__(self, detail: str, flag: str = "policy_mismatch") -> None:
        super().__init__(detail)
        self.detail, self.flag = detail, flag


class Register(msgspec.Struct, array_like=True, frozen=True):
    """A trait's value and what orders it: event time (µs, clamped), source rank, message id.

    `value` is JSON as the sender wrote it; `null` says that the trait was taken away.
    """

    value: Raw
    at_us: int
    rank: int
    message_id: str

    @property
    def order(self) -> tuple[int, int, str]:
        """What registers are compared by."""
        return (self.at_us, self.rank, self.message_id)

    @property
    def dot(self) -> Dot:
        """The event that said so."""
        return Dot(self.at_us, self.message_id)

    @property
    def is_null(self) -> bool:
        """Whether the trait was taken away."""
        return bytes(self.value) == b"null"

    def present(self) -> Raw | None:
        """Return the value that readers see, None where there is none."""
        return None if self.is_null else self.value

    def newest_us(self) -> int:
        """Return the value's time."""
        return self.at_us


class State(msgspec.Struct, frozen=True, tag_field="policy"):
    """A trait's state under a merge policy of some version: a higher version counts, whatever the lower one said."""

    version: int

    @property
    def level(self) -> tuple[int, str]:
        """What states of different policies are compared by; a plain register is below all of them."""
        return (self.version, type(self).__name__)

    def join(self, other: Any) -> State:
        """Return both together, given another state of this level: commutative, associative, idempotent."""
        raise NotImplementedError

    def apply(self, delta: Any) -> State:
        """Return this state of an anchor after new events of that anchor, whose state is `delta`."""
        return self.join(delta)

    def present(self) -> Raw | None:
        """Return the value that readers see, None where there is none."""
        raise NotImplementedError

    def newest_us(self) -> int:
        """Return the latest event time in it, in µs."""
        raise NotImplementedError


class Ranked(State, frozen=True, tag="ranked"):
    """The value of the source that comes first in the policy's list, then the newest: source priority, and newest.

    `place` counts from the front, as the list was when the event was processed.
    """

    place: int
    value: Register

    def join(self, other: Ranked) -> Ranked:
        """Return the one whose source comes first, then the later one."""
        return other if self._order < other._order else self

    @property
    def _order(self) -> tuple[Any, ...]:
        return (-self.place, *self.value.order)

    def present(self) -> Raw | None:
        """Return the value."""
        return self.value.present()

    def newest_us(self) -> int:
        """Return the value's time."""
        return self.value.at_us


Dots = dict[str, dict[str, Dot]]


class Tags(State, frozen=True, tag="union", omit_defaults=True):
    """A set of texts: each stands while a source's newest addition is later than what was removed of that source's.

    `added` and `removed` are dots by element and source; `cleared` takes away what was added up to then.
    """

    added: Dots = {}
    removed: Dots = {}
    cleared: Dot | None = None

    def join(self, other: Tags) -> Tags:
        """Return the later of each dot."""
        cleared = max(filter(None, (self.cleared, other.cleared)), default=None)
        added, removed = _later_dots(self.added, other.added), _later_dots(self.removed, other.removed)
        elements = added.keys() | removed.keys()
        if len(elements) > MOST_ELEMENTS:
            kept = set(sorted(elements, key=_hash)[:MOST_ELEMENTS])
            added, removed = ({one: dots[one] for one in dots.keys() & kept} for dots in (added, removed))
        return Tags(self.version, added, removed, cleared)

    def elements(self) -> list[str]:
        """Return what is in the set, sorted."""
        return sorted(element for element in self.added if self.observed(element))

    def observed(self, element: str) -> dict[str, Dot]:
        """Return the additions of an element that stand, by source: what a removal that saw this state removes."""
        removed = self.removed.get(element, {})
        nothing = Dot(-(2**63), "")
        least = max(removed.get(ANY_SOURCE, nothing), self.cleared or nothing)
        return {
            source: dot
            for source, dot in self.added.get(element, {}).items()
            if dot > max(least, removed.get(source, nothing))
        }

    def present(self) -> Raw | None:
        """Return the elements as a list, None where there are none."""
        elements = self.elements()
        return Raw(_encode(elements)) if elements else None

    def newest_us(self) -> int:
        """Return the latest time of an addition or removal."""
        dots = [dot for side in (self.added, self.removed) for by_source in side.values() for dot in by_source.values()]
        return max((dot.at_us for dot in (*dots, *filter(None, [self.cleared]))), default=0)


def _later_dots(left: Dots, right: Dots) -> Dots:
    joined = dict(left)
    for element, dots in right.items():
        mine = joined.get(element)
        joined[element] = dots if mine is None else later(mine, dots)
    return joined


def later(left: dict[str, Dot], right: dict[str, Dot]) -> dict[str, Dot]:
    """Return the later dot of each source."""
    joined = dict(left)
    for source, dot in right.items():
        joined[source] = max(joined.get(source, dot), dot)
    return joined


def _hash(element: str) -> bytes:
    return blake2b(element.encode(), digest_size=16).digest()


class Counter(State, frozen=True, tag="counter"):
    """A number that is only ever added to: by anchor, what was added and what was taken away, as decimals' texts.

    An anchor's own events alone change its pair, which grows only, so the larger of two is the later.
    `newest_at_us` is the time of the latest of them.
    """

    sums: dict[str, tuple[str, str]] = {}
    newest_at_us: int = 0

    def join(self, other: Counter) -> Counter:
        """Return the later pair of each anchor."""
        return self._with(other, _larger)

    def apply(self, delta: Counter) -> Counter:
        """Return the pairs with what was newly added to them."""
        return self._with(delta, _sum)

    def _with(self, other: Counter, both: Callable[[str, str], str]) -> Counter:
        joined = dict(self.sums)
        for anchor, pair in other.sums.items():
            mine = joined.get(anchor)
            joined[anchor] = pair if mine is None else (both(mine[0], pair[0]), both(mine[1], pair[1]))
        return Counter(self.version, joined, max(self.newest_at_us, other.newest_at_us))

    def present(self) -> Raw | None:
        """Return the number."""
        total = decimal.Decimal(0)
        for added, taken in self.sums.values():
            total = EXACT.subtract(EXACT.add(total, decimal.Decimal(added)), decimal.Decimal(taken))
        return Raw(decimal_text(total).encode())

    def newest_us(self) -> int:
        """Return the latest event's time."""
        return self.newest_at_us


def _larger(left: str, right: str) -> str:
    return max(left, right, key=decimal.Decimal)


def _sum(left: str, right: str) -> str:
    return decimal_text(EXACT.add(decimal.Decimal(left), decimal.Decimal(right)))


def decimal_text(number: decimal.Decimal) -> str:
    """Return a decimal's one plain text: without exponent, trailing zeros or a sign of nothing."""
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


class Conflict(NamedTuple):
    """One of several values that sources gave a trait: what, by which source (its id, "" unknown), when (µs)."""

    value: Raw
    source: str
    at_us: int


class Asked(State, frozen=True, tag="ask"):
    """The newest value of each source, less what somebody saw and decided on: several stay until a person chooses."""

    values: dict[str, Register] = {}
    removed: dict[str, Dot] = {}

    def join(self, other: Asked) -> Asked:
        """Return the later value and removal of each source."""
        values = dict(self.values)
        for source, register in other.values.items():
            mine = values.get(source)
            if mine is None or mine.order < register.order:
                values[source] = register
        return Asked(self.version, values, later(self.removed, other.removed))

    def observed(self) -> dict[str, Dot]:
        """Return the values that stand, by source: what a choice that saw this state decides on."""
        return {source: register.dot for source, register in self._standing().items()}

    def conflict(self) -> list[Conflict]:
        """Return the values that stand against each other, newest first; none where all say the same."""
        standing = sorted(
            ((one.order, source, one) for source, one in self._standing().items() if not one.is_null), reverse=True
        )
        if len({comparable(_exact.decode(one.value)) for _, _, one in standing}) < 2:
            return []
        return [Conflict(one.value, source, one.at_us) for _, source, one in standing]

    def _standing(self) -> dict[str, Register]:
        return {
            source: register
            for source, register in self.values.items()
            if source not in self.removed or self.removed[source] < register.dot
        }

    def present(self) -> Raw | None:
        """Return the newest of the values that stand."""
        given = [(one.order, source) for source, one in self._standing().items() if not one.is_null]
        return self.values[max(given)[1]].value if given else None

    def newest_us(self) -> int:
        """Return the latest time of a value or decision."""
        dots = [*(one.dot for one in self.values.values()), *self.removed.values()]
        return max((dot.at_us for dot in dots), default=0)


def comparable(value: Any) -> Any:
    """Return what two JSON values are the same by: 1 and 1.0 are, and true is not 1."""
    if isinstance(value, dict):
        return frozenset((name, comparable(item)) for name, item in value.items())
    if isinstance(value, list):
        return tuple(map(comparable, value))
    return (isinstance(value, bool), value)


def decoded(value: Raw) -> Any:
    """Return a JSON value with exact numbers."""
    return _exact.decode(value)


def lift_tags(value: Raw, origin: Origin, version: int) -> Tags:
    """Return what a list of texts, `{"$union": […], "$remove": […]}` or null does to a union; Misfit otherwise.

    `$remove` is a list, which takes away what anybody added up to the event's time, or the additions that were seen:
    element → source → [time, message id], none later than the event.
    """
    given = decoded(value)
    if given is None:
        return Tags(version, cleared=origin.dot)
    operations = {"$union": given} if isinstance(given, list) else given
    if not isinstance(operations, dict) or not operations or operations.keys() - {"$union", "$remove"}:
        raise Misfit("A union takes a list of texts, or an object with $union and $remove.")
    added = {one: {origin.origin: origin.dot} for one in _texts(operations.get("$union", []))}
    remove = operations.get("$remove", [])
    if isinstance(remove, dict):
        removed = {element: read_dots(dots, origin) for element, dots in remove.items()}
    else:
        removed = {one: {ANY_SOURCE: origin.dot} for one in _texts(remove)}
    return Tags(version, added, removed)


def _texts(given: Any) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(one, str) and one for one in given):
        raise Misfit("The elements of a union are texts, in a list.")
    return given


def read_dots(given: Any, origin: Origin) -> dict[str, Dot]:
    """Return dots by source as a message carries them; Misfit where they are none, or later than the message."""
    try:
        dots = msgspec.convert(given, dict[str, Dot])
    except msgspec.ValidationError as error:
        raise Misfit(f"What was seen is written as source → [time, message id]: {error}.") from error
    if any(dot.at_us > origin.at_us for dot in dots.values()):
        raise Misfit("Nobody can have seen what is later than the event itself.")
    return dots


def lift_counter(value: Raw, origin: Origin, version: int) -> Counter:
    """Return what `{"$add": number}` does to a counter; Misfit otherwise."""
    given = decoded(value)
    number = given.get("$add") if isinstance(given, dict) and given.keys() == {"$add"} else None
    if isinstance(number, bool) or not isinstance(number, (int, decimal.Decimal)):
        raise Misfit('A counter is only added to: {"$add": 5}, or -5 to take away.')
    exact = decimal.Decimal(number)
    exponent = exact.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -MAX_EXPONENT or exact.adjusted() > MAX_EXPONENT:
        raise Misfit(f"A counter takes numbers of up to {MAX_EXPONENT} digits on either side of the point.")
    text = decimal_text(abs(exact))
    return Counter(version, {origin.anchor: (text, "0") if exact > 0 else ("0", text)}, origin.at_us)


def lift_asked(value: Raw, origin: Origin, version: int) -> Asked:
    """Return what a value does to a multi-value; `{"$value": …, "$observed": source → dot}` is a person's choice."""
    given = decoded(value)
    removed: dict[str, Dot] = {}
    if isinstance(given, dict) and given.keys() == {"$value", "$observed"}:
        removed = read_dots(given["$observed"], origin)
        value = msgspec.json.decode(value, type=dict[str, Raw])["$value"]
    return Asked(version, {origin.origin: register(value, origin)}, removed)


def register(value: Raw, origin: Origin) -> Register:
    """Return a value as its event orders it."""
    return Register(value, origin.at_us, origin.rank, origin.message_id)


def seen(dots: dict[str, Dot]) -> dict[str, list[Any]]:
    """Return dots as a message carries them."""
    return {source: [dot.at_us, dot.message_id] for source, dot in dots.items()}


def shown_at(at_us: int) -> str:
    """Return a time as documents show it."""
    return clock.isoformat_us(at_us)
