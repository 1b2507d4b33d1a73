"""Taking a person apart: some of a profile's identifiers become another person, until somebody lifts that.

An unmerge is a decision with an author. It stands against any evidence, before and after, that the two are one:
events, traits, consent and memberships follow their identifiers, and the siblings' records through the holder port.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from django.db import connection, transaction

from cdp import audit, edits, holders, lookup, showing
from cdp.models import Event, IdentityDecision, Profile, UnmergeSide
from cdp.models import Identifier as IdentifierRow
from cdp.processing import decode, store
from cdp.processing.decode import Message
from cdp.processing.identity import Identifier
from cdp.processing.pipeline import Applied, Pipeline
from martech.lib import clock
from martech.lib.errors import PermanentError, RetryableError

UNMERGE, LIFT = "unmerge", "lift_unmerge"
RACES = 5
LOCK_SECONDS = 2
Side = UnmergeSide.Side
_encode = msgspec.json.Encoder().encode


class NotApart(PermanentError):
    """A profile cannot be taken apart so, or an unmerge not be lifted."""

    code = "not_apart"


class Busy(RetryableError):
    """The people are being processed right now."""

    code = "busy"


@dataclass(frozen=True, slots=True)
class Part:
    """A profile as an unmerge leaves it, with the number of its events; `is_new`: it was none of those before."""

    profile_id: UUID
    identifiers: list[Identifier]
    traits: dict[str, Any]
    computed_traits: dict[str, Any]
    consent: dict[str, Any]
    events: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class Unmerged:
    """What an unmerge, or lifting one, made: its decision, and the profiles it leaves; what was taken comes last."""

    decision_id: int
    parts: list[Part]


class _RolledBack(Exception):
    def __init__(self, found: Unmerged) -> None:
        self.found = found


def plan(*, profile_id: UUID, identifiers: Sequence[Identifier]) -> Unmerged:
    """Say what an unmerge would do: it is done, and taken back. Errors as `unmerge`."""
    return _tried(lambda: _unmerged(profile_id, identifiers, "", ""))


def plan_lift(decision_id: int) -> Unmerged:
    """Say what lifting an unmerge would do: it is done, and taken back. Errors as `lift`."""
    return _tried(lambda: _lifted(decision_id, ""))


def unmerge(*, profile_id: UUID, identifiers: Sequence[Identifier], author: str, note: str = "") -> Unmerged:
    """Take identifiers out of a profile, and keep the two sides apart; NotApart where that cannot be, Busy."""
    return _raced(lambda: _unmerged(profile_id, identifiers, author, note))


def lift(decision_id: int, *, author: str) -> Unmerged:
    """Let evidence join again what an unmerge keeps apart; NotApart where it does not stand, Busy."""
    return _raced(lambda: _lifted(decision_id, author))


def standing(profile_id: UUID) -> list[IdentityDecision]:
    """Return the unmerges that bear on a profile, newest first."""
    ids = UnmergeSide.objects.filter(identifier__profile_id=profile_id).values("decision_id")
    rows = IdentityDecision.objects.filter(pk__in=ids, kind=IdentityDecision.Kind.UNMERGE, lifted_at=None)
    return list(rows.order_by("-pk"))


def _tried(change: Callable[[], Unmerged]) -> Unmerged:
    def rolled_back() -> Unmerged:
        raise _RolledBack(change())

    try:
        return _raced(rolled_back)
    except _RolledBack as back:
        return back.found


def _raced(change: Callable[[], Unmerged]) -> Unmerged:
    for _ in range(RACES):
        try:
            with transaction.atomic():
                connection.ensure_connection()
                connection.connection.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS * 1000:.0f}ms'")
                store.hold_rules(connection.connection)
                return change()
        except (store.Raced, psycopg.errors.DeadlockDetected):
            continue
        except psycopg.errors.LockNotAvailable as error:
            raise Busy("Others are changing these people. Try again.", retry_after=2) from error
    raise Busy("Others are changing these people all the time. Try again.", retry_after=5)


def _unmerged(profile_id: UUID, identifiers: Sequence[Identifier], author: str, note: str) -> Unmerged:
    survivor = lookup.survivor(profile_id)
    if survivor is None:
        raise NotApart("There is no such profile.")
    # In the order in which processing takes its locks.
    connection.connection.execute("SELECT FROM customer_profiles WHERE id = %s FOR UPDATE", [survivor])
    rows = list(IdentifierRow.objects.filter(profile_id=survivor).order_by("pk"))
    taken = set(identifiers)
    held = {Identifier(row.namespace, row.value): row for row in rows}
    if strangers := sorted(str(one) for one in taken - held.keys()):
        raise NotApart(f"The profile does not hold {', '.join(strangers[:5])}. Choose from the identifiers it has.")
    if not taken or len(taken) == len(held):
        raise NotApart("Choose some of the profile's identifiers, but not all: the rest stays.")
    decision = _decide(survivor, taken, author, note)
    UnmergeSide.objects.bulk_create(
        UnmergeSide(decision=decision, identifier=row, side=Side.TAKEN if one in taken else Side.KEPT)
        for one, row in held.items()
    )
    return _rebuilt(decision, [survivor], min(taken), action="profile.unmerge", author=author, kind=UNMERGE)


def _decide(profile_id: UUID, taken: set[Identifier], author: str, note: str) -> IdentityDecision:
    now = clock.now()
    return IdentityDecision.objects.create(
        kind=IdentityDecision.Kind.UNMERGE, reason="by_hand", profile_id=profile_id, occurred_at=now, decided_at=now,
        detail={"identifiers": sorted(taken), "note": note}, author=author[:255], reviewed_at=now,
        reviewed_by=author[:255],
    )  # fmt: skip


def _lifted(decision_id: int, author: str) -> Unmerged:
    stands = IdentityDecision.objects.filter(pk=decision_id, kind=IdentityDecision.Kind.UNMERGE, lifted_at=None)
    if not stands.update(lifted_at=clock.now(), lifted_by=author[:255]):
        raise NotApart("There is no such unmerge, or it was lifted already.")
    decision = IdentityDecision.objects.get(pk=decision_id)
    sides = decision.sides.select_related("identifier").order_by("-side", "pk")
    profiles = sorted({one.identifier.profile_id for one in sides})
    if not profiles:
        raise NotApart("Nothing is left of whom it took apart.")
    first = sides[0].identifier
    anchor = Identifier(first.namespace, first.value)
    return _rebuilt(decision, profiles, anchor, action="profile.lift_unmerge", author=author, kind=LIFT)


def _rebuilt(
    decision: IdentityDecision, profiles: Sequence[UUID], anchor: Identifier, *, action: str, author: str, kind: str
) -> Unmerged:
    """Make the people anew, write the fact into the timeline, and tell who has to know."""
    fact = _fact(decision, anchor, kind)
    applied = Pipeline().look_at_all(
        connection.connection, profiles, reason=kind, author=author, facts=[fact], tells_splits=False
    )
    parts = _parts(applied, profiles, anchor)
    if kind == UNMERGE:
        decision.other_id = parts[-1].profile_id
        decision.save(update_fields=["other"])
    audit.record(actor=author, action=action, object_type="profile", object_id=decision.profile_id,
                 detail={"decision": decision.pk, "profiles": [str(one.profile_id) for one in parts]})  # fmt: skip
    tell(applied)
    transaction.on_commit(lambda: showing.show(applied), robust=True)
    return Unmerged(decision.pk, parts)


def tell(applied: Applied) -> None:
    """Tell the holders what splits and joins moved; called in their transaction."""
    moved = dict(applied.moved) | {one: known.profile for one, known in applied.identifiers.items()}
    if moved:
        holders.unmerged(moved)
    for other, _version in applied.merged:
        survivor = lookup.survivor(other)
        if survivor is not None:
            holders.merged(survivor, other)


def _fact(decision: IdentityDecision, anchor: Identifier, kind: str) -> Message:
    """Return the event that the timeline shows; nothing is folded from it."""
    now_us = clock.now_us()
    source = edits.people_source().pk
    message_id = f"{kind}-{decision.pk}"
    said = _encode({"decision": decision.pk, "identifiers": decision.detail.get("identifiers", [])})
    return Message(
        source_id=source, type=kind, name="", message_id=message_id, anchor=anchor, identifiers=[anchor], alias_of="",
        properties=said, context=b"{}", extra=b"", occurred_us=now_us, original_timestamp=None, received_us=now_us,
        flags=(), id_hash=decode.id_hash(source, message_id), payload_hash=0,
    )  # fmt: skip


def _parts(applied: Applied, profiles: Sequence[UUID], anchor: Identifier) -> list[Part]:
    """Return the profiles that are left, the one that holds `anchor` last."""
    ids = [*profiles, *(profile for profile, _, _ in applied.documents)]
    rows = Profile.objects.filter(pk__in=ids, merged_into=None)
    return sorted(
        (_part(row, is_new=row.pk not in profiles) for row in rows), key=lambda one: anchor in one.identifiers
    )


def _part(row: Profile, *, is_new: bool) -> Part:
    graph = [Identifier(namespace, value) for namespace, values in row.identity_graph.items() for value in values]
    anchors = row.identifiers.values("pk")
    return Part(
        row.pk, graph, row.traits, row.computed_traits, row.consent, Event.objects.filter(anchor__in=anchors).count(),
        is_new,
    )  # fmt: skip
