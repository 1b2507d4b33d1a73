"""What one stored event did: which traits it touched, which of them still stand, and whom it joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from django.db import connection
from django.db.models import Q

from cdp.models import Edge, Identifier, IdentityDecision, Profile
from cdp.processing import registers, store
from cdp.processing.clusters import DEFAULT
from cdp.processing.decode import Message
from cdp.processing.folding import origin_of
from cdp.processing.identity import NOBODY
from cdp.processing.rules import UNKNOWN_SOURCE, Rules, trust
from cdp.processing.states import Ranked
from cdp.processing.traits import Folder
from martech.lib import clock
from martech.lib.errors import ConfigurationError

CURRENT, OLDER, REFUSED, GONE, COMBINED, MISFIT = "current", "older", "refused", "gone", "combined", "misfit"


@dataclass(frozen=True, slots=True)
class Computed:
    """A computed trait that counts the event, by the definitions of now: what it contributed, and the whole."""

    name: str
    contributed: Any
    value: Any


@dataclass(frozen=True, slots=True)
class Given:
    """A trait that the event set.

    `outcome` is current, older (than what `winner` set at `won_at`), combined (with what others said, as its merge
    policy has it), misfit (of that policy), refused or gone.
    """

    name: str
    value: Any
    outcome: str
    winner: str
    won_at: datetime | None


@dataclass(frozen=True, slots=True)
class Decision:
    """An identity decision that the event led to."""

    id: int
    kind: str
    reason: str
    profile_id: UUID
    other_id: UUID | None
    identifiers: Any


@dataclass(frozen=True, slots=True)
class Joined:
    """Two identifiers that the event is the strongest evidence for; `refused` says why they were kept apart."""

    left: dict[str, str]
    right: dict[str, str]
    refused: str


@dataclass(frozen=True, slots=True)
class Effects:
    """All of it."""

    computed: list[Computed]
    given: list[Given]
    decisions: list[Decision]
    edges: list[Joined]


def load_rules() -> Rules:
    """Return the definitions and the sources' rules of now; without definitions where they cannot be used."""
    connection.ensure_connection()
    driver = connection.connection
    try:
        return Rules.load(driver, 0)
    except (ConfigurationError, ArithmeticError, LookupError, TypeError, ValueError):
        # They halt the processor, which says why; what became of an event can be told all the same.
        sources = store.sources(driver)
        return Rules(0, Folder([]), {one: trust(row.kind, row.rules) for one, row in sources.items()}, DEFAULT)


def effects(message: Message, rules: Rules, *, anchor_id: int, profiles: Sequence[UUID], now: UUID | None) -> Effects:
    """Return what an event did; `profiles` are those it was given to since, `now` the one that has it."""
    row = Profile.objects.filter(pk__in=[now]).values_list("computed_traits", flat=True).first() or {}
    return Effects(
        computed=_computed(message, rules, row) if message.anchor != NOBODY else [],
        given=_given(message, rules, now) if message.type == "identify" else [],
        decisions=_decisions(message, profiles),
        edges=_edges(message, anchor_id),
    )


def _computed(message: Message, rules: Rules, values: dict[str, Any]) -> list[Computed]:
    states: dict[str, Any] = {}
    rules.folder.fold(states, message)
    contributed = msgspec.json.decode(msgspec.json.encode(rules.folder.present(states, clock.now_us())))
    return [Computed(name, value, values.get(name)) for name, value in contributed.items()]


def _given(message: Message, rules: Rules, now: UUID | None) -> list[Given]:
    allowed = rules.trust.get(message.source_id, UNKNOWN_SOURCE)
    lifted = rules.policies.lift(
        message.properties, origin_of(message, allowed), refused_policies=allowed.refused_policies
    ).registers
    held = _registers(now)
    values = msgspec.json.decode(message.properties)
    return [
        Given(name, values[name], *_outcome(lifted.get(name), held.get(name), refused=name in allowed.refused_traits))
        for name in sorted(values)
    ]


def _registers(profile_id: UUID | None) -> registers.Registers:
    with connection.cursor() as cursor:
        cursor.execute("SELECT registers::text FROM customer_profiles WHERE id = %s", [profile_id])
        row = cursor.fetchone()
    return registers.load(row[0]) if row else {}


def _outcome(
    mine: registers.Held | None, held: registers.Held | None, *, refused: bool
) -> tuple[str, str, datetime | None]:
    if refused or mine is None:
        return REFUSED if refused else MISFIT, "", None
    if held is None:
        return GONE, "", None
    ours, theirs = _plain(mine), _plain(held)
    if theirs is None:
        return COMBINED, "", None
    current = ours is not None and ours.dot == theirs.dot
    return CURRENT if current else OLDER, theirs.message_id, clock.from_us(theirs.at_us)


def _plain(held: registers.Held) -> registers.Register | None:
    """Return the one value that a state holds, None where it combines what several events said."""
    if isinstance(held, Ranked):
        return held.value
    return held if isinstance(held, registers.Register) else None


def _decisions(message: Message, profiles: Sequence[UUID]) -> list[Decision]:
    # By profile, for which there is an index.
    rows = IdentityDecision.objects.filter(
        profile_id__in=profiles, message_id=message.message_id, source_id=message.source_id
    )
    return [
        Decision(row.pk, row.kind, row.reason, row.profile_id, row.other_id, _pairs(row.detail.get("identifiers", [])))
        for row in rows.order_by("pk")
    ]


def _edges(message: Message, anchor_id: int) -> list[Joined]:
    rows = Edge.objects.filter(
        Q(left_id=anchor_id) | Q(right_id=anchor_id), message_id=message.message_id, source_id=message.source_id
    )
    return [
        Joined(_identifier(row.left), _identifier(row.right), row.refused)
        for row in rows.select_related("left", "right").order_by("pk")
    ]


def _identifier(row: Identifier) -> dict[str, str]:
    return {"namespace": row.namespace, "value": row.value}


def _pairs(identifiers: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    return [{"namespace": namespace, "value": value} for namespace, value in identifiers]
