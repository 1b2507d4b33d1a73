"""Merge policies: what an identify call's traits do to the states that they are kept in.

Pure functions over policies that are data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from cdp.processing import consent, registers
from cdp.processing.states import (
    Misfit,
    Origin,
    Ranked,
    State,
    lift_asked,
    lift_counter,
    lift_tags,
    register,
)
from martech.lib.errors import ConfigurationError

NEWEST, SOURCE_PRIORITY, UNION, COUNTER, ASK = "newest", "source_priority", "union", "counter", "ask"

_object = msgspec.json.Decoder(dict[str, Raw])
_LIFTS: dict[str, Any] = {UNION: lift_tags, COUNTER: lift_counter, ASK: lift_asked}
KINDS = (NEWEST, SOURCE_PRIORITY, *_LIFTS)


class Policy(NamedTuple):
    """How the values of a trait become one, as its row says; `sources` are ids, the most trusted first."""

    trait: str
    kind: str
    sources: tuple[int, ...]
    version: int

    def place(self, source: int) -> int:
        """Return a source's place in the list, or that after its end."""
        return self.sources.index(source) if source in self.sources else len(self.sources)


class Lifted(NamedTuple):
    """What traits set, and by the trait (or `consent.purpose.topic`) what could not be taken, and why."""

    registers: registers.Registers
    misfits: dict[str, Misfit]

    @property
    def flags(self) -> tuple[str, ...]:
        """What the event is flagged with."""
        return tuple(sorted({misfit.flag for misfit in self.misfits.values()}))


class Policies:
    """Policies made ready to lift traits with; a trait without one is kept as its newest value."""

    def __init__(self, policies: Iterable[Policy] = ()) -> None:
        self._of = {policy.trait: policy for policy in policies}
        for policy in self._of.values():
            if policy.kind not in KINDS:
                known = ", ".join(KINDS)
                raise ConfigurationError(f"{policy.trait} has the unknown policy '{policy.kind}'. Known: {known}.")
        self._special = {*self._of, consent.TRAIT}

    def of(self, trait: str) -> str:
        """Return what a trait's policy is called."""
        return self._of[trait].kind if trait in self._of else NEWEST

    def lift(
        self,
        traits: bytes,
        origin: Origin,
        *,
        refused: frozenset[str] = frozenset(),
        refused_policies: frozenset[str] = frozenset(),
    ) -> Lifted:
        """Return what traits (a JSON object) set, without the refused names and without what does not fit."""
        found: registers.Registers = {}
        misfits: dict[str, Misfit] = {}
        for name, value in _object.decode(traits).items():
            if name in refused:
                continue
            if name not in self._special:
                found[name] = register(value, origin)
                continue
            try:
                state = self._state(name, value, origin, refused_policies, misfits)
            except Misfit as misfit:
                misfits[name] = misfit
            else:
                if state is not None:
                    found[name] = state
        return Lifted(found, misfits)

    def _state(
        self, name: str, value: Raw, origin: Origin, refused: frozenset[str], misfits: dict[str, Misfit]
    ) -> State | None:
        if name == consent.TRAIT:
            lifted, left_out = consent.lift_consent(value, origin)
            misfits |= left_out
            return lifted if lifted.choices else None
        policy = self._of[name]
        if policy.kind in refused:
            raise Misfit(f"Its source may not set traits whose policy is {policy.kind}. Change the source's rules.")
        if policy.kind in _LIFTS:
            lifted_state: State = _LIFTS[policy.kind](value, origin, policy.version)
            return lifted_state
        place = policy.place(origin.source) if policy.kind == SOURCE_PRIORITY else 0
        return Ranked(policy.version, place, register(value, origin))
