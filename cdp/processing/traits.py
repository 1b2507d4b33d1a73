"""Computed traits: definitions that are data, made ready to fold events with.

A definition says which events count (type, name, conditions on their properties), what is made of them (a kind of
`cdp.processing.kinds`), and perhaps in which window: then its state is one state of its kind for each bucket of time,
and the value falls as buckets leave the window, without any event.
"""

from __future__ import annotations

import decimal
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import msgspec

from cdp.processing.conditions import Condition, Predicate, UnfitCondition, conditions, predicate
from cdp.processing.decode import Message
from cdp.processing.kinds import DAY_US, KINDS, Kind
from martech.lib.errors import ConfigurationError, PermanentError

States = dict[str, Any]

OPTIONS = frozenset({"property", "conditions", "window"})
GRAINS_US = {"m": 60_000_000, "h": 3_600_000_000, "d": DAY_US}
# Each bucket of a window costs a state of its own.
MOST_BUCKETS = 400
# Types and names of events whose definitions are remembered.
MOST_NAMES = 1000
_WINDOW = re.compile(r"([1-9]\d{0,3})([mhd])", re.ASCII)


class UnfitTrait(PermanentError):
    """A definition that cannot be."""

    code = "unfit_trait"


class Window(NamedTuple):
    """The last so many buckets of time, each of a grain (µs), in UTC, the one under way among them."""

    grain_us: int
    buckets: int

    def bucket(self, at_us: int) -> int:
        """Return the number of the bucket that an instant is in."""
        return at_us // self.grain_us

    def oldest(self, now_us: int) -> int:
        """Return the number of the oldest bucket that counts at an instant."""
        return self.bucket(now_us) - self.buckets + 1


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

    @property
    def path(self) -> tuple[str, ...]:
        """The names that lead to its property's value; empty where it has none."""
        return tuple(self.options["property"].split(".")) if "property" in self.options else ()

    @property
    def window(self) -> Window | None:
        """Its window, None where all of history counts."""
        return window_of(self.options["window"]) if "window" in self.options else None

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What events have to be like."""
        return conditions(self.options.get("conditions", []))


def window_of(text: Any) -> Window:
    """Return the window that a text such as `30d`, `12h` or `90m` says; UnfitTrait."""
    found = _WINDOW.fullmatch(text) if isinstance(text, str) else None
    if found is None or int(found[1]) > MOST_BUCKETS:
        raise UnfitTrait(
            f"A window is a number up to {MOST_BUCKETS} and m, h or d, such as 30d; the unit is its grain."
        )
    return Window(GRAINS_US[found[2]], int(found[1]))


def check(kind: str, options: Any) -> None:
    """Do nothing where a definition can be; UnfitTrait and UnfitCondition say what is wrong with it."""
    if kind not in KINDS:
        raise UnfitTrait(f"'{kind}' is no kind of trait. Known: {', '.join(sorted(KINDS))}.")
    if not isinstance(options, Mapping) or (unknown := sorted(set(options) - OPTIONS)):
        what = f"unknown: {', '.join(map(str, unknown))}" if isinstance(options, Mapping) else "not an object"
        raise UnfitTrait(f"Options are {', '.join(sorted(OPTIONS))}: {what}.")
    named = options.get("property")
    if KINDS[kind].needs_property and (not isinstance(named, str) or not all(named.split("."))):
        raise UnfitTrait(f"The kind {kind} needs a property: a name, or names with dots between them.")
    if not KINDS[kind].needs_property and named is not None:
        raise UnfitTrait(f"The kind {kind} takes no property.")
    conditions(options.get("conditions", []))
    if "window" in options:
        window_of(options["window"])


class Trait:
    """A definition made ready: lifts, combines and presents its states."""

    def __init__(self, definition: Definition) -> None:
        check(definition.kind, definition.options)
        self.name, self.key = definition.name, definition.key
        self.kind: Kind = KINDS[definition.kind]
        self.window = definition.window
        self.path = _reading(definition.path)
        self.conditions: list[tuple[tuple[str, ...], Predicate]] = [
            (_reading(one.path), predicate(one)) for one in definition.conditions
        ]
        # The properties it looks at, by the first names of their paths.
        paths = (definition.path, *(one.path for one in definition.conditions))
        self.names = {path[0] for path in paths if path}

    def lift(self, message: Message, properties: Any) -> Any:
        """Return the state of one event, None where it does not count."""
        for path, holds in self.conditions:
            if not holds(_walk(properties, path), message.occurred_us):
                return None
        lifted = self.kind.lift(message, _walk(properties, self.path) if self.path else None)
        if lifted is None or self.window is None:
            return lifted
        return {str(self.window.bucket(message.occurred_us)): lifted}

    def combine(self, left: Any, right: Any) -> Any:
        """Return the state of both."""
        if self.window is None:
            return self.kind.combine(left, right)
        combined = dict(left)
        for bucket, state in right.items():
            combined[bucket] = self.kind.combine(combined[bucket], state) if bucket in combined else state
        return combined

    def live(self, state: Any, now_us: int) -> Any:
        """Return what of a state still counts at an instant, None where nothing does."""
        if self.window is None:
            return state
        oldest = self.window.oldest(now_us)
        return {bucket: one for bucket, one in state.items() if int(bucket) >= oldest} or None

    def present(self, state: Any, now_us: int) -> Any:
        """Return the value at an instant, None where there is none."""
        if self.window is None:
            return self.kind.present(state, now_us)
        oldest = self.window.oldest(now_us)
        live = [one for bucket, one in state.items() if int(bucket) >= oldest]
        return self.kind.present(reduce(self.kind.combine, live), now_us) if live else None

    def due(self, state: Any, now_us: int) -> int | None:
        """Return when (µs, after `now_us`) the value may change by itself, None where only events change it."""
        if self.window is None:
            return self.kind.due(state, now_us)
        live = self.live(state, now_us)
        if live is None:
            return None
        leaves = (min(map(int, live)) + self.window.buckets) * self.window.grain_us
        changes = self.kind.due(reduce(self.kind.combine, live.values()), now_us)
        return leaves if changes is None else min(leaves, changes)


class Folder:
    """Definitions made ready to fold events with."""

    def __init__(self, definitions: Sequence[Definition]) -> None:
        self.kinds = {definition.key: _trait(definition) for definition in definitions}
        self._named = sorted(((one.name, key) for key, one in self.kinds.items()))
        self._matchers = [(one.event_type, one.event_name, self.kinds[one.key]) for one in definitions]
        self._properties = _property_decoder(set().union(*(one.names for one in self.kinds.values())))
        # What time alone takes from, and what it changes at all: most definitions are neither.
        self._windowed = frozenset(key for key, one in self.kinds.items() if one.window is not None)
        self._timed = self._windowed.union(key for key, one in self.kinds.items() if type(one.kind).due is not Kind.due)
        # By type and name of an event, those that it may count for.
        self._matching: dict[tuple[str, str], list[Trait]] = {}

    @property
    def reading(self) -> list[tuple[str, str]]:
        """Of which events properties are read, by type and name; "" is any."""
        return sorted({(event_type, name) for event_type, name, trait in self._matchers if trait.names})

    def fold(self, states: States, message: Message) -> None:
        """Add an event to `states`."""
        decoded = None
        for trait in self._matching_of(message.type, message.name):
            if trait.names and decoded is None:
                decoded = self._properties.decode(message.properties)
            lifted = trait.lift(message, decoded)
            if lifted is not None:
                key = trait.key
                states[key] = trait.combine(states[key], lifted) if key in states else lifted

    def _matching_of(self, event_type: str, event_name: str) -> list[Trait]:
        found = self._matching.get((event_type, event_name))
        if found is None:
            # Senders choose the names.
            if len(self._matching) >= MOST_NAMES:
                self._matching.clear()
            found = self._matching[event_type, event_name] = [
                trait
                for wanted_type, wanted_name, trait in self._matchers
                if wanted_type in ("", event_type) and wanted_name in ("", event_name)
            ]
        return found

    def combine(self, left: States, right: States) -> States:
        """Return the states of both; a state whose definition is gone is kept from the left."""
        combined = dict(left)
        for key, state in right.items():
            trait = self.kinds.get(key)
            combined[key] = trait.combine(combined[key], state) if trait and key in combined else state
        return combined

    def live(self, states: States, now_us: int) -> States:
        """Return what of states still counts at an instant (µs); a state whose definition is gone is kept."""
        if self._windowed.isdisjoint(states):
            return states
        found = {
            key: self.kinds[key].live(one, now_us) if key in self._windowed else one for key, one in states.items()
        }
        return {key: state for key, state in found.items() if state is not None}

    def present(self, states: States, now_us: int) -> dict[str, Any]:
        """Return the computed traits that readers see at an instant (µs): values by name."""
        shown = ((name, self.kinds[key].present(states[key], now_us)) for name, key in self._named if key in states)
        return {name: value for name, value in shown if value is not None}

    def due(self, states: States, now_us: int) -> int | None:
        """Return when (µs) the first value may change by itself, None where only events change them."""
        found = [self.kinds[key].due(states[key], now_us) for key in self._timed if key in states]
        return min((at for at in found if at is not None), default=None)


def _trait(definition: Definition) -> Trait:
    try:
        return Trait(definition)
    except (UnfitTrait, UnfitCondition) as error:
        raise ConfigurationError(f"The computed trait {definition.name} cannot be used: {error}") from error


def _reading(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return a path with the decoder's name of its first part."""
    return (_field(path[0]), *path[1:]) if path else ()


def _field(name: str) -> str:
    return f"p_{name.encode().hex()}"


def _walk(decoded: Any, path: tuple[str, ...]) -> Any:
    value = getattr(decoded, path[0])
    for name in path[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _property_decoder(names: Iterable[str]) -> msgspec.json.Decoder[Any]:
    """Return a decoder that reads only these properties, with exact numbers."""
    rename = {_field(name): name for name in sorted(names)}
    fields: Any = [(field, Any, None) for field in rename]
    return msgspec.json.Decoder(msgspec.defstruct("Properties", fields, rename=rename), float_hook=decimal.Decimal)
