"""Given traits as registers: the last write wins, in an order that does not depend on arrival.

Pure functions. `combine` is commutative, associative and idempotent, so states may be joined in any order.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw


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


Registers = dict[str, Register]

_decoder = msgspec.json.Decoder(Registers)
_object = msgspec.json.Decoder(dict[str, Raw])


def load(data: bytes | str) -> Registers:
    """Return the registers in a JSON text."""
    return _decoder.decode(data)


def lift(traits: bytes, *, at_us: int, rank: int, message_id: str, refused: frozenset[str] = frozenset()) -> Registers:
    """Return the registers that an identify call's traits (a JSON object) set, without the refused names."""
    return {
        name: Register(value, at_us, rank, message_id)
        for name, value in _object.decode(traits).items()
        if name not in refused
    }


def combine(left: Registers, right: Registers) -> Registers:
    """Return the newer register of each trait."""
    if not left or not right:
        return left or right
    combined = dict(left)
    for name, register in right.items():
        mine = combined.get(name)
        if mine is None or mine.order < register.order:
            combined[name] = register
    return combined


def present(registers: Registers) -> dict[str, Any]:
    """Return the traits that readers see: values by name, without those taken away."""
    return {name: register.value for name, register in sorted(registers.items()) if bytes(register.value) != b"null"}
