"""Accounts: what `group` calls say of them and of who belongs to them, folded so that arrival does not matter.

Pure functions. An account is one group id. What else it is called (`context.externalIds` of the collection `accounts`)
only points to it; an account's state follows from its own calls alone, so two accounts never merge.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from cdp.processing.identity import ACCOUNTS, MAX_NAMESPACE, MAX_VALUE, NOBODY, Identifier, clean

if TYPE_CHECKING:  # decode looks here for what a group call names
    from cdp.processing.decode import Message
    from cdp.processing.registers import Registers
    from cdp.processing.rules import Trust

GROUP_ID = "group_id"
MAX_ROLE = 255
# An event that claims a later time than this after its receipt counts as of then, as in registers.
TOLERANCE_US = 5 * 60 * 1_000_000


class Said(msgspec.Struct, array_like=True, frozen=True):
    """Something that events say, with what orders them: event time (µs, clamped), source rank, message id."""

    value: bool | str
    at_us: int
    rank: int
    message_id: str

    @property
    def order(self) -> tuple[int, int, str, str]:
        """What two are compared by; the value counts where one id was used by two sources."""
        return (self.at_us, self.rank, self.message_id, str(self.value))


class Membership(msgspec.Struct, frozen=True):
    """An identifier's membership: since when (µs; None: nobody said so), whether it ended, and in which role.

    The earliest event that says so joins; of `left` and `role` the newest counts, so a later call joins again.
    """

    joined_us: int | None
    left: Said
    role: Said | None = None

    def combine(self, other: Membership) -> Membership:
        """Return what both say: commutative, associative and idempotent, so identifiers' memberships add up too."""
        joined = [one for one in (self.joined_us, other.joined_us) if one is not None]
        roles = [one for one in (self.role, other.role) if one is not None]
        return Membership(
            min(joined, default=None),
            max(self.left, other.left, key=lambda said: said.order),
            max(roles, key=lambda said: said.order, default=None),
        )

    @property
    def role_shown(self) -> str:
        """The role that readers see, "" for none."""
        return str(self.role.value) if self.role else ""

    @property
    def since_us(self) -> int:
        """When it began; where only its end is known, that."""
        return self.left.at_us if self.joined_us is None else self.joined_us

    @property
    def ended_us(self) -> int | None:
        """When it ended, None while it lasts."""
        return self.left.at_us if self.left.value else None


load_membership = msgspec.json.Decoder(Membership).decode


class Evidence(NamedTuple):
    """What orders calls that name one further identifier: the least gives it to its account.

    As with people's edges, a server's word goes before a browser's, and the earlier before the later.
    """

    source_class: int
    at_us: int
    message_id: str
    source_id: int


@dataclass(slots=True)
class Delta:
    """What a batch adds to one account: its traits, what it is called, and who belongs to it, by anchor."""

    calls: int = 0
    registers: Registers = field(default_factory=dict)
    names: dict[Identifier, Evidence] = field(default_factory=dict)
    members: dict[Identifier, Membership] = field(default_factory=dict)


class _Extra(msgspec.Struct, rename="camel"):
    group_id: Any = None


class _Context(msgspec.Struct, rename="camel"):
    external_ids: Any = None
    membership: Any = None


_extra = msgspec.json.Decoder(_Extra).decode
_context = msgspec.json.Decoder(_Context).decode


def group_of(message: Message) -> str:
    """Return the group id that a message names, "" where it is no group call or names none that is usable."""
    return clean(GROUP_ID, _extra(message.extra).group_id) if message.type == "group" and message.extra else ""


def concerns_nobody(context: bytes) -> bool:
    """Return whether a group call says that it tells of no member: only then may it name no person."""
    return b'"membership"' in context and _context(context).membership is False


def external(external_ids: object) -> list[Identifier]:
    """Return the identifiers of accounts in what `context.externalIds` holds; what is not of its form is left out."""
    if not isinstance(external_ids, list):
        return []
    named = (item for item in external_ids if isinstance(item, dict) and item.get("collection") == ACCOUNTS)
    found = (
        Identifier(item["type"], clean(item["type"], item.get("id")))
        for item in named
        if isinstance(item.get("type"), str) and item["type"] not in ("", GROUP_ID)
    )
    return list(dict.fromkeys(one for one in found if one.value))


def fold(delta: Delta, message: Message, allowed: Trust) -> None:
    """Add what a group call says to its account's delta; its traits are folded as those of people are."""
    said = _said(message)
    delta.calls += 1
    if said.membership is not False and message.anchor != NOBODY:
        membership = _lift(message, said.membership, rank=1 - allowed.source_class)
        held = delta.members.get(message.anchor)
        delta.members[message.anchor] = membership if held is None else held.combine(membership)
    evidence = _evidence(message, allowed)
    for name in _usable(external(said.external_ids), allowed):
        delta.names[name] = min(evidence, delta.names.get(name, evidence))


def _evidence(message: Message, allowed: Trust) -> Evidence:
    """Return what orders a call's names: of public sources by receipt, which nobody can backdate."""
    received_us = message.received_us
    at_us = received_us if allowed.source_class else min(message.occurred_us, received_us)
    return Evidence(allowed.source_class, at_us, message.message_id, message.source_id)


def _said(message: Message) -> _Context:
    if b'"externalIds"' in message.context or b'"membership"' in message.context:
        return _context(message.context)
    return _Context()


def _usable(names: Iterable[Identifier], allowed: Trust) -> list[Identifier]:
    return [
        one
        for one in names
        if one.namespace not in allowed.refused_namespaces
        and len(one.value) <= MAX_VALUE
        and len(one.namespace) <= MAX_NAMESPACE
    ]


def _lift(message: Message, told: Any, *, rank: int) -> Membership:
    """Return the membership that one call tells of: `left` is true only where it says so in so many letters."""
    said = told if isinstance(told, dict) else {}
    order = (min(message.occurred_us, message.received_us + TOLERANCE_US), rank, message.message_id)
    left, role = said.get("left") is True, said.get("role", False)
    named = role[:MAX_ROLE] if isinstance(role, str) else "" if role is None else None
    return Membership(None if left else order[0], Said(left, *order), None if named is None else Said(named, *order))
