"""What people change of a profile: an event like any other, taken only where nobody was quicker.

The profile's row is locked, its version compared, and an identify call of the source "People" goes through the core,
all in one transaction. Its time comes from a hybrid logical clock: later than all that the person could have seen, so
that an edit is never lost to an event from the future. What a removal or a choice has seen is written into the event,
so that a replay comes to the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import msgspec
import psycopg
from django.db import IntegrityError, connection, transaction

from cdp import audit, lookup, showing
from cdp.log.base import Delivery, Event
from cdp.models import Source
from cdp.processing import duplicates, registers, store
from cdp.processing.consent import TRAIT as CONSENT
from cdp.processing.identity import ANONYMOUS_ID, USER_ID, Identifier
from cdp.processing.pipeline import Applied, Arrival, Pipeline, arrive
from cdp.processing.policies import ASK, COUNTER, UNION, Policies
from cdp.processing.registers import Registers
from cdp.processing.states import Asked, Origin, Ranked, Tags, seen
from martech.lib import clock
from martech.lib.errors import ConfigurationError, PermanentError, RetryableError

PEOPLE = "People"
ACTION = "profile.edit"
# Others may change who is who between our look and theirs.
RACES = 5
LOCK_SECONDS = 2
# People's edits count as a server's do.
RANK = 1

_encode = msgspec.json.Encoder(decimal_format="number").encode


class Moved(PermanentError):
    """Somebody changed the profile meanwhile; `version` is what it has now."""

    code = "version_moved"

    def __init__(self, version: int) -> None:
        super().__init__(f"The profile is at version {version} now. Read it again, and decide on what it says.")
        self.version = version


class UnknownProfile(PermanentError):
    """There is no such profile, or nothing is left of it that could be changed."""

    code = "unknown_profile"


class Unfit(PermanentError):
    """An edit that the profile cannot take."""

    code = "unfit_edit"


class Overruled(PermanentError):
    """A trait's merge policy has another source's value stand above people's."""

    code = "overruled"


class Busy(RetryableError):
    """The profile is being processed right now."""

    code = "busy"


class Edited(NamedTuple):
    """The profile after an edit: its id, version and JSON document."""

    profile_id: UUID
    version: int
    document: bytes


class _Change(NamedTuple):
    """What is wanted, of which source, and who wants it."""

    traits: Mapping[str, Any]
    consent: Mapping[str, Any]
    source: int
    actor: str


class _Row(NamedTuple):
    """A locked profile."""

    id: UUID
    version: int
    graph: dict[str, list[str]]
    held: Registers


def edit(
    *,
    profile_id: UUID,
    versions: Collection[int],
    traits: Mapping[str, Any],
    consent: Mapping[str, Any],
    actor: str,
) -> Edited:
    """Change a profile that is at one of `versions`, and return it as it is then.

    `traits` are values by name: null takes one away, and what a merge policy takes is taken (`$union`, `$remove` and
    `$set` with lists of texts, `$add` with a number). `consent` is as in a message. Moved, UnknownProfile, Unfit and
    Overruled change nothing; nor does Busy, where others hold the profile for long.
    """
    if not traits and not consent:
        raise Unfit("There is nothing to change. Send `traits`, `consent` or both.")
    if CONSENT in traits:
        raise Unfit("Consent is no trait: send it as `consent`.")
    change = _Change(traits, consent, people_source().pk, actor)
    for _ in range(RACES):
        try:
            with transaction.atomic():
                connection.ensure_connection()
                return _edited(connection.connection, profile_id, versions, change)
        except (store.Raced, psycopg.errors.DeadlockDetected):
            continue
        except psycopg.errors.LockNotAvailable as error:
            raise Busy("Others are changing this profile. Try again.", retry_after=2) from error
    raise Busy("Others are changing this profile all the time. Try again.", retry_after=5)


def people_source() -> Source:
    """Return the source of what people change, made at its first use; nobody can send with its write key."""
    found = Source.objects.filter(kind=Source.Kind.PEOPLE).order_by("pk").first()
    if found is None:
        try:
            found, _ = Source.objects.get_or_create(
                kind=Source.Kind.PEOPLE, defaults={"name": PEOPLE, "enabled": False}
            )
        except IntegrityError as error:
            raise ConfigurationError(f"A source of another kind is named {PEOPLE}. Rename it.") from error
    return found


def _edited(driver: store.Connection, profile_id: UUID, versions: Collection[int], change: _Change) -> Edited:
    driver.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
    # In the order in which processors take their locks.
    duplicates.hold(driver)
    store.hold_rules(driver)
    row = _locked(driver, profile_id)
    if row.version not in versions:
        raise Moved(row.version)
    anchor = _anchor(row)
    applied = Pipeline().apply(driver, [_arrival(driver, row, anchor, change)])
    edited = _taken(applied, anchor)
    detail = {"traits": sorted(change.traits), "consent": sorted(change.consent), "version": edited.version}
    audit.record(actor=change.actor, action=ACTION, object_type="profile", object_id=edited.profile_id, detail=detail)
    transaction.on_commit(lambda: showing.show(applied), robust=True)
    return edited


def _locked(driver: store.Connection, profile_id: UUID) -> _Row:
    """Lock a profile's row, or that of the one it became part of."""
    survivor = lookup.survivor(profile_id)
    row = driver.execute(
        "SELECT id, version, identity_graph::text, registers::text, merged_into_id FROM customer_profiles"
        " WHERE id = %s FOR UPDATE",
        [survivor],
    ).fetchone()
    if row is None:
        raise UnknownProfile("There is no such profile.")
    if row[4] is not None:
        raise store.Raced("The profile was merged by another process.")
    return _Row(row[0], row[1], msgspec.json.decode(row[2]), registers.load(row[3]))


def _anchor(row: _Row) -> Identifier:
    """Return the identifier that an edit's state is kept with: a user id, or what comes before a cookie."""
    order = {USER_ID: 0, ANONYMOUS_ID: 2}
    held = [Identifier(namespace, value) for namespace, values in row.graph.items() for value in values]
    if not held:
        raise UnknownProfile("The profile has no identifiers any more: there is nobody whose traits it could have.")
    return min(held, key=lambda one: (order.get(one.namespace, 1), one))


def _arrival(driver: store.Connection, row: _Row, anchor: Identifier, change: _Change) -> Arrival:
    """Return the identify call that an edit is; Unfit and Overruled."""
    policies = Policies(store.merge_policies(driver))
    values = {name: worded(policies.of(name), value, row.held.get(name)) for name, value in change.traits.items()}
    said = _encode(values | ({CONSENT: dict(change.consent)} if change.consent else {}))
    at_us = max(store.database_now_us(driver), registers.newest_us(row.held) + 1)
    message_id = f"edit-{uuid4().hex}"
    check(policies, said, Origin(at_us, RANK, message_id, change.source, str(anchor)), row.held)
    # It comes when it is said: otherwise the core would take its time for one of the future.
    delivery = Delivery(change.source, at_us, "", b"", b"", [])
    return arrive(Event("identify", message_id, 0, _body(anchor, said, at_us, change.actor)), delivery)


def worded(policy: str, value: Any, held: registers.Held | None) -> Any:
    """Return a value as an event carries it, with what the person has seen."""
    if policy == UNION:
        return _worded_union(value, held if isinstance(held, Tags) else None)
    if policy == ASK:
        standing = seen(held.observed()) if isinstance(held, Asked) else {}
        return {"$value": value, "$observed": standing}
    if policy == COUNTER and value is None:
        raise Unfit('A counter is only added to: send {"$add": -5} to take away.')
    return value


def _worded_union(value: Any, held: Tags | None) -> Any:
    there = held.elements() if held else []
    if value is None:
        value = {"$set": []}
    if isinstance(value, dict) and value.keys() == {"$set"} and isinstance(value["$set"], list):
        wanted = value["$set"]
        added = [one for one in wanted if one not in there]
        value = {"$union": added, "$remove": [one for one in there if one not in wanted]}
    remove = value.get("$remove") if isinstance(value, dict) else None
    if isinstance(remove, list) and all(isinstance(one, str) for one in remove):
        return {**value, "$remove": {one: seen(held.observed(one)) if held else {} for one in remove}}
    return value


def check(policies: Policies, said: bytes, origin: Origin, held: Registers) -> None:
    """Raise Unfit for what the policies cannot take, Overruled for what would not count."""
    try:
        lifted = policies.lift(said, origin)
    except msgspec.DecodeError as error:
        raise Unfit(f"The edit is no JSON that can be kept: {error}.") from error
    if lifted.misfits:
        raise Unfit(" ".join(f"{name}: {one.detail}" for name, one in sorted(lifted.misfits.items())))
    combined = registers.combine(held, lifted.registers)
    for name, one in lifted.registers.items():
        if isinstance(one, Ranked) and combined[name] != one:
            raise Overruled(
                f"{name}: the merge policy ranks another source's value above people's. Put {PEOPLE} (source"
                f" {origin.source}) higher in it, or change the value where it comes from."
            )


def _body(anchor: Identifier, said: bytes, at_us: int, actor: str) -> bytes:
    ids: dict[str, Any] = {}
    context: dict[str, Any] = {"edited_by": actor}
    if anchor.namespace in (USER_ID, ANONYMOUS_ID):
        ids["userId" if anchor.namespace == USER_ID else "anonymousId"] = anchor.value
    else:
        context["externalIds"] = [{"type": anchor.namespace, "id": anchor.value}]
    return _encode({**ids, "traits": msgspec.Raw(said), "context": context, "timestamp": clock.isoformat_us(at_us)})


def _taken(applied: Applied, anchor: Identifier) -> Edited:
    """Return what the core made of the one event; UnknownProfile of an erased person, Unfit where it put it aside."""
    if applied.suppressed:
        raise UnknownProfile("The person is being erased: nothing of them is kept any more.")
    if applied.events != 1:
        reason = next(iter(applied.rejections), "it came before")
        raise Unfit(f"The edit cannot be kept ({reason}). Send less, and no characters that cannot be stored.")
    profile_id = applied.identifiers[anchor][1]
    version, document = next((version, body) for one, version, body in applied.documents if one == profile_id)
    return Edited(profile_id, version, document)
