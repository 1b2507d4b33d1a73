"""What people change of an account: a group call of the source "People", taken only where nobody was quicker.

It concerns no person, so it is in the account's timeline alone. See `cdp.edits`, which does the same for people.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import msgspec
import psycopg
from django.db import connection, transaction

from cdp import accounts, audit, edits
from cdp.log.base import Delivery, Event
from cdp.processing import duplicates, registers, store
from cdp.processing.consent import TRAIT as CONSENT
from cdp.processing.decode import FUTURE_TOLERANCE_US
from cdp.processing.pipeline import Arrival, Pipeline, arrive
from cdp.processing.policies import Policies
from cdp.processing.registers import Registers
from cdp.processing.states import Origin
from martech.lib import clock
from martech.lib.errors import PermanentError

ACTION = "account.edit"

_encode = msgspec.json.Encoder(decimal_format="number").encode


class UnknownAccount(PermanentError):
    """There is no such account."""

    code = "unknown_account"


class Edited(NamedTuple):
    """The account after an edit: its version and JSON document."""

    version: int
    document: bytes


class _Change(NamedTuple):
    """What is wanted, of which source, and who wants it."""

    traits: Mapping[str, Any]
    source: int
    actor: str


def edit(*, account_id: UUID, versions: Collection[int], traits: Mapping[str, Any], actor: str) -> Edited:
    """Change an account that is at one of `versions`, and return it as it is then.

    `traits` are as in `cdp.edits.edit`, and so are the errors Moved, Unfit, Overruled and Busy; UnknownAccount.
    """
    if not traits:
        raise edits.Unfit("There is nothing to change. Send `traits`.")
    if CONSENT in traits:
        raise edits.Unfit("Consent is a person's: accounts have none.")
    change = _Change(traits, edits.people_source().pk, actor)
    for _ in range(edits.RACES):
        try:
            with transaction.atomic():
                connection.ensure_connection()
                return _edited(connection.connection, account_id, versions, change)
        except (store.Raced, psycopg.errors.DeadlockDetected):
            continue
        except psycopg.errors.LockNotAvailable as error:
            raise edits.Busy("Others are changing this account. Try again.", retry_after=2) from error
    raise edits.Busy("Others are changing this account all the time. Try again.", retry_after=5)


def _edited(driver: store.Connection, account_id: UUID, versions: Collection[int], change: _Change) -> Edited:
    driver.execute(f"SET LOCAL lock_timeout = '{edits.LOCK_SECONDS}s'")
    # In the order in which processors take their locks.
    duplicates.hold(driver)
    store.hold_rules(driver)
    version, held = _locked(driver, account_id)
    if version not in versions:
        raise edits.Moved(version)
    applied = Pipeline().apply(driver, [_arrival(driver, accounts.group_id(account_id), held, change)])
    if applied.events != 1:
        reason = next(iter(applied.rejections), "it came before")
        raise edits.Unfit(f"The edit cannot be kept ({reason}). Send less, and no characters that cannot be stored.")
    detail = {"traits": sorted(change.traits), "version": version + 1}
    audit.record(actor=change.actor, action=ACTION, object_type="account", object_id=account_id, detail=detail)
    return Edited(version + 1, accounts.document(account_id) or b"{}")


def _locked(driver: store.Connection, account_id: UUID) -> tuple[int, Registers]:
    row = driver.execute(
        "SELECT version, registers::text FROM cdp_account WHERE id = %s FOR NO KEY UPDATE", [account_id]
    ).fetchone()
    if row is None:
        raise UnknownAccount("There is no such account.")
    return row[0], registers.load(row[1])


def _arrival(driver: store.Connection, group: str, held: Registers, change: _Change) -> Arrival:
    """Return the group call that an edit is, later than all that the person could have seen; Unfit and Overruled."""
    policies = Policies(store.merge_policies(driver))
    said = _encode({name: edits.worded(policies.of(name), one, held.get(name)) for name, one in change.traits.items()})
    now_us = store.database_now_us(driver)
    at_us = max(now_us, registers.newest_us(held) + 1)
    message_id = f"edit-{uuid4().hex}"
    edits.check(policies, said, Origin(at_us, edits.RANK, message_id, change.source), held)
    # Never so early that the core would take the time for one of the future.
    delivery = Delivery(change.source, max(now_us, at_us - FUTURE_TOLERANCE_US), "", b"", b"", [])
    body = {"groupId": group, "traits": msgspec.Raw(said), "timestamp": clock.isoformat_us(at_us),
            "context": {"membership": False, "edited_by": change.actor}}  # fmt: skip
    return arrive(Event("group", message_id, 0, _encode(body)), delivery)
