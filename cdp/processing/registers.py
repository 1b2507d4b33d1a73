"""Given traits: by name a register, where the last write wins, or the state of another merge policy.

Pure functions. `combine` is commutative, associative and idempotent, so states may be joined in any order; a state of
a later policy stands above one of an earlier, whatever either says.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from cdp.processing import consent
from cdp.processing.states import Asked, Conflict, Counter, Origin, Ranked, Register, State, Tags, register

__all__ = ["Register", "Registers", "apply", "combine", "conflicts", "lift", "load", "newest_us", "present",
           "present_consent"]  # fmt: skip

Held = Register | State
Registers = dict[str, Held]

_registers = msgspec.json.Decoder(dict[str, Register])
_register = msgspec.json.Decoder(Register)
_state = msgspec.json.Decoder(Ranked | Tags | Counter | Asked | consent.Consent)
_object = msgspec.json.Decoder(dict[str, Raw])
# What a text has in which there is any other state than registers; a value may hold it too, which costs time only.
_POLICY = '"policy"'


def load(data: bytes | str) -> Registers:
    """Return the registers in a JSON text."""
    if (_POLICY if isinstance(data, str) else _POLICY.encode()) in data:  # type: ignore[operator]
        return {name: _held(bytes(value)) for name, value in _object.decode(data).items()}
    return _registers.decode(data)  # type: ignore[return-value]


def _held(data: bytes) -> Held:
    return _register.decode(data) if data.lstrip().startswith(b"[") else _state.decode(data)


def lift(traits: bytes, *, at_us: int, rank: int, message_id: str, refused: frozenset[str] = frozenset()) -> Registers:
    """Return the registers that traits (a JSON object) set where no policy says otherwise, without the refused names.

    `cdp.processing.policies` lifts what people's merge policies are about.
    """
    origin = Origin(at_us, rank, message_id)
    return {name: register(value, origin) for name, value in _object.decode(traits).items() if name not in refused}


def combine(left: Registers, right: Registers) -> Registers:
    """Return the state of both for each trait."""
    if not left or not right:
        return left or right
    combined = dict(left)
    for name, theirs in right.items():
        mine = combined.get(name)
        combined[name] = theirs if mine is None else _joined(mine, theirs, exact=False)
    return combined


def apply(held: Registers, delta: Registers) -> Registers:
    """Return an anchor's state after its new events, whose state is `delta`: as `combine`, but counters add up.

    Whoever calls sees to it that every event comes once.
    """
    if not held or not delta:
        return held or delta
    applied = dict(held)
    for name, theirs in delta.items():
        mine = applied.get(name)
        applied[name] = theirs if mine is None else _joined(mine, theirs, exact=True)
    return applied


def _joined(mine: Held, theirs: Held, *, exact: bool) -> Held:
    if isinstance(mine, Register) and isinstance(theirs, Register):
        return theirs if mine.order < theirs.order else mine
    if isinstance(mine, Register) or isinstance(theirs, Register):
        return theirs if isinstance(mine, Register) else mine
    if mine.level != theirs.level:
        return theirs if mine.level < theirs.level else mine
    return mine.apply(theirs) if exact else mine.join(theirs)


def present(registers: Registers) -> dict[str, Any]:
    """Return the traits that readers see: values by name, without those taken away and without consent."""
    shown = {}
    for name, held in sorted(registers.items()):
        value = held.present()
        if value is not None and name != consent.TRAIT:
            shown[name] = value
    return shown


def present_consent(registers: Registers) -> Raw:
    """Return the consent that readers see, a JSON object: what `cdp.processing.consent.granted` takes."""
    held = registers.get(consent.TRAIT)
    shown = held.present() if isinstance(held, consent.Consent) else None
    return shown or Raw(b"{}")


def conflicts(registers: Registers) -> dict[str, list[Conflict]]:
    """Return the traits whose sources disagree and whose policy is to ask, with the values, newest first."""
    found = {name: held.conflict() for name, held in sorted(registers.items()) if isinstance(held, Asked)}
    return {name: values for name, values in found.items() if values}


def newest_us(registers: Registers) -> int:
    """Return the latest event time in any of them, in µs."""
    return max((held.newest_us() for held in registers.values()), default=0)
