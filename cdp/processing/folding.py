"""What one message does to the states of its person and its account: the same in a batch and in a replay.

Pure functions over the rules of now; the deltas that they are given are changed.
"""

from __future__ import annotations

from cdp.processing import accounts, registers
from cdp.processing.decode import FUTURE_TOLERANCE_US, Message
from cdp.processing.people import Delta
from cdp.processing.rules import UNKNOWN_SOURCE, Rules, Trust
from cdp.processing.states import Origin


def fold_person(rules: Rules, delta: Delta, message: Message) -> None:
    """Add a message to its anchor's delta, and to the message the flags of what does not fit."""
    rules.folder.fold(delta.states, message)
    if message.type == "identify":
        allowed = rules.trust.get(message.source_id, UNKNOWN_SOURCE)
        _fold_traits(rules, delta, message, allowed, origin_of(message, allowed))


def fold_account(rules: Rules, deltas: dict[str, accounts.Delta], message: Message) -> None:
    """Add a group call to the delta of the account that it names, by group id, if its source may name one."""
    allowed = rules.trust.get(message.source_id, UNKNOWN_SOURCE)
    group = accounts.group_of(message)
    if group and accounts.GROUP_ID not in allowed.refused_namespaces:
        delta = deltas.setdefault(group, accounts.Delta())
        accounts.fold(delta, message, allowed)
        # A counter would name the person by whom it was added to, who may be erased: an account has one sum.
        _fold_traits(rules, delta, message, allowed, origin_of(message, allowed)._replace(anchor=""))


def _fold_traits(rules: Rules, delta: Delta | accounts.Delta, message: Message, allowed: Trust, origin: Origin) -> None:
    lifted = rules.policies.lift(
        message.properties, origin, refused=allowed.refused_traits, refused_policies=allowed.refused_policies
    )
    delta.registers = registers.apply(delta.registers, lifted.registers)
    if lifted.misfits:
        message.flags += lifted.flags


def origin_of(message: Message, allowed: Trust) -> Origin:
    """Return where a message's traits come from, and what orders them."""
    at_us = min(message.occurred_us, message.received_us + FUTURE_TOLERANCE_US)
    return Origin(
        at_us, 1 - allowed.source_class, message.message_id, message.source_id, str(message.anchor), message.received_us
    )  # fmt: skip
