"""Computed traits as commutative monoids: `lift` an event, `combine` two states, `present` the value.

Pure functions over definitions that are data. Whatever order events come in, and however they are split
over batches, identifiers or engines, the combined state is the same (design: law 4).
"""

from __future__ import annotations

import decimal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import msgspec
from msgspec import Raw

from cdp.processing.decode import Message
from martech.lib import clock
from martech.lib.errors import ConfigurationError

# Sums stay exact: what is taken in has at most 60 digits on either side of the point, so 2^63 of them fit.
MAX_EXPONENT = 60
EXACT = decimal.Context(prec=200, traps=[decimal.Inexact, decimal.InvalidOperation])
# Types and names of events whose definitions are remembered.
MOST_NAMES = 1000

States = dict[str, Any]


class Kind(ABC):
    """A kind of computed trait. States are JSON values; a kind may take back what JSON made of them."""

    options: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def lift(self, message: Message, value: Any) -> Any:
        """Return the state of one event, None where it does not count. `value` is the option's property, if any."""

    @abstractmethod
    def combine(self, left: Any, right: Any) -> Any:
        """Return the state of both: commutative and associative."""

    @abstractmethod
    def present(self, state: Any) -> Any:
        """Return the value that readers see, as something JSON can hold."""


class Count(Kind):
    """How many events."""

    def lift(self, message: Message, value: Any) -> Any:
        return 1

    def combine(self, left: Any, right: Any) -> Any:
        return left + right

    def present(self, state: Any) -> Any:
        return state


class FirstTime(Kind):
    """When the earliest event happened; the state is in microseconds since 1970."""

    def lift(self, message: Message, value: Any) -> Any:
        return message.occurred_us

    def combine(self, left: Any, right: Any) -> Any:
        return min(left, right)

    def present(self, state: Any) -> Any:
        return clock.isoformat_us(state)


class LastTime(FirstTime):
    """When the latest event happened."""

    def combine(self, left: Any, right: Any) -> Any:
        return max(left, right)


class Sum(Kind):
    """The exact decimal sum of a numeric property; the state is a decimal's text."""

    options = frozenset({"property"})

    def lift(self, message: Message, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, (int, decimal.Decimal)):
            return None
        number = decimal.Decimal(value)
        text = str(number)
        # Usually it is short and plain, and what follows dear.
        if len(text) <= MAX_EXPONENT and "E" not in text:
            return number if number.is_finite() else None
        exponent = number.as_tuple().exponent
        if not isinstance(exponent, int) or exponent < -MAX_EXPONENT or number.adjusted() > MAX_EXPONENT:
            return None
        return number

    def combine(self, left: Any, right: Any) -> Any:
        return EXACT.add(decimal.Decimal(left), decimal.Decimal(right))

    def present(self, state: Any) -> Any:
        text = f"{decimal.Decimal(state):f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return Raw((text if text != "-0" else "0").encode())


KINDS: dict[str, Kind] = {"count": Count(), "first_time": FirstTime(), "last_time": LastTime(), "sum": Sum()}


class Definition(msgspec.Struct, frozen=True):
    """A computed trait's definition, as its row says. An empty type or name matches every event."""

    id: int
    name: str
    kind: str
    event_type: str
    event_name: str
    options: dict[str, Any]
    version: int

    @property
    def key(self) -> str:
        """Under which its state is kept: a new version starts a state of its own."""
        return f"{self.id}.{self.version}"


class _Matcher(NamedTuple):
    key: str
    path: tuple[str, ...]
    kind: Kind


class Folder:
    """Definitions made ready to fold events with."""

    def __init__(self, definitions: Sequence[Definition]) -> None:
        self.kinds = {definition.key: _kind(definition) for definition in definitions}
        self._named = sorted((definition.name, definition.key) for definition in definitions)
        self._matchers = [
            (
                definition.event_type,
                definition.event_name,
                _Matcher(definition.key, _path(definition), _kind(definition)),
            )
            for definition in definitions
        ]
        # By type and name of an event.
        self._matching: dict[tuple[str, str], list[_Matcher]] = {}
        self._properties = _property_decoder(
            {definition.options["property"].split(".")[0] for definition in definitions if _path(definition)}
        )

    @property
    def reading(self) -> list[tuple[str, str]]:
        """Of which events properties are read, by type and name; "" is any."""
        return sorted({(event_type, name) for event_type, name, matcher in self._matchers if matcher.path})

    def fold(self, states: States, message: Message) -> None:
        """Add an event to `states`."""
        matching = self._matching.get((message.type, message.name))
        if matching is None:
            matching = self._match(message.type, message.name)
        decoded = None
        for key, path, kind in matching:
            if path and decoded is None:
                decoded = self._properties.decode(message.properties)
            lifted = kind.lift(message, _walk(decoded, path) if path else None)
            if lifted is not None:
                states[key] = kind.combine(states[key], lifted) if key in states else lifted

    def _match(self, kind: str, name: str) -> list[_Matcher]:
        """Find the definitions that count events of a type and name, and remember them."""
        # Senders choose the names.
        if len(self._matching) >= MOST_NAMES:
            self._matching.clear()
        found = [
            matcher
            for event_type, event_name, matcher in self._matchers
            if event_type in ("", kind) and event_name in ("", name)
        ]
        self._matching[kind, name] = found
        return found

    def combine(self, left: States, right: States) -> States:
        """Return the states of both; a state whose definition is gone is kept from the left."""
        combined = dict(left)
        for key, state in right.items():
            kind = self.kinds.get(key)
            combined[key] = kind.combine(combined[key], state) if kind and key in combined else state
        return combined

    def present(self, states: States) -> dict[str, Any]:
        """Return the computed traits that readers see: values by name."""
        return {name: self.kinds[key].present(states[key]) for name, key in self._named if key in states}


def _kind(definition: Definition) -> Kind:
    if definition.kind not in KINDS:
        known = ", ".join(sorted(KINDS))
        raise ConfigurationError(
            f"The trait {definition.name} is of the unknown kind '{definition.kind}'. Known: {known}."
        )
    return KINDS[definition.kind]


def _path(definition: Definition) -> tuple[str, ...]:
    """Return where a definition's property stands: the decoder's name of its first part, and those of the others."""
    if "property" not in definition.options:
        return ()
    first, *others = definition.options["property"].split(".")
    return (_field(first), *others)


def _field(name: str) -> str:
    return f"p_{name.encode().hex()}"


def _walk(decoded: Any, path: tuple[str, ...]) -> Any:
    value = getattr(decoded, path[0])
    for name in path[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _property_decoder(names: set[str]) -> msgspec.json.Decoder[Any]:
    """Return a decoder that reads only these properties, with exact numbers."""
    fields: Any = [(_field(name), Any, None) for name in sorted(names)]
    rename = {_field(name): name for name in names}
    return msgspec.json.Decoder(msgspec.defstruct("Properties", fields, rename=rename), float_hook=decimal.Decimal)
