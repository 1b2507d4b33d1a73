"""Accounts as group calls say they are, written where PostgreSQL says otherwise: a part of `cdp.repair`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from cdp import suppressions
from cdp.processing import account_store, accounts, store, suppression
from cdp.processing.account_store import Changed
from cdp.processing.accounts import Evidence
from cdp.processing.identity import Identifier
from cdp.processing.resolving import new_profile_id
from cdp.replay import names_of_accounts
from martech.lib import clock

_ACCOUNTS = "SELECT id, version, created_at FROM cdp_account WHERE id = ANY(%s) ORDER BY id"
_LOCKED = " FOR NO KEY UPDATE"
# Those that may be taking somebody's calls away, and when the last was asked for.
_ERASURES = "SELECT max(requested_at), coalesce(bool_or(status <> 'done'), false) FROM cdp_erasure"
_NAMED = (
    "SELECT DISTINCT i.account_id FROM cdp_accountidentifier i JOIN unnest(%s::text[], %s::text[]) AS wanted (name, id)"
    " ON i.namespace = wanted.name AND i.value = wanted.id"
)


@dataclass(slots=True)
class Built:
    """What group calls make of accounts, by group id; those made up to `erased_at` may miss calls of the erased."""

    deltas: Mapping[str, accounts.Delta]
    erased_at: datetime | None
    names: dict[str, dict[Identifier, Evidence]] = field(init=False)

    def __post_init__(self) -> None:
        self.names = names_of_accounts(self.deltas)

    def named(self, groups: Collection[str]) -> list[Identifier]:
        """Return what else these accounts are called."""
        return sorted({name for group in groups for name in self.names.get(group, ())})


class Account(NamedTuple):
    """An account's row."""

    version: int
    created_at: datetime


@dataclass(slots=True)
class Seen:
    """Accounts at one time: their ids by group id, and the rows of these and of who has their names.

    `erased_at` is when the last erasure was asked for, `erases` whether any was under way.
    """

    ids: dict[str, UUID]
    rows: dict[UUID, Account]
    erased_at: datetime | None
    erases: bool


def seen(session: store.Connection, groups: Sequence[str], built: Built) -> Seen:
    """Return accounts as a snapshot has them."""
    return _read(session, groups, built, "")


def _read(session: store.Connection, groups: Sequence[str], built: Built, locking: str) -> Seen:
    ids = account_store.find(session, groups)
    wanted = {*ids.values(), *_holders(session, built.named(groups))}
    rows = session.execute(
        (_ACCOUNTS + locking).encode(),
        [sorted(wanted)],
    )
    erased_at, erases = session.execute(_ERASURES).fetchall()[0]
    return Seen(ids, {row[0]: Account(*row[1:]) for row in rows}, erased_at, erases)


def _holders(session: store.Connection, names: Sequence[Identifier]) -> set[UUID]:
    rows = session.execute(_NAMED, [[one.namespace for one in names], [one.value for one in names]])
    return {row[0] for row in rows}


def write(driver: store.Connection, groups: Sequence[str], built: Built, before: Seen) -> list[str]:
    """Let accounts be what calls say; return those that were so written: the others changed since `before`."""
    held = _read(driver, groups, built, _LOCKED)
    if not _holders(driver, built.named(groups)) <= held.rows.keys():
        raise store.Raced("An account was called another's name meanwhile.")
    same = [group for group in groups if _is_as_before(driver, group, built, before, held)]
    now_us = store.database_now_us(driver)
    now = clock.from_us(now_us).isoformat()
    # An erasure is at the calls of those that are kept out: their account has another name.
    kept_out = suppression.suppressed(driver, suppressions.key(), [suppression.of_group(one) for one in groups])
    same = [group for group in same if suppression.of_group(group) not in kept_out]
    missing = [group for group in same if group not in held.ids]
    if missing:
        held.ids |= account_store.insert(driver, missing, now, lambda: new_profile_id(now_us))
    changed = {group: _changed(group, built, held) for group in same}
    _write_members(driver, list(changed.values()))
    whole = {group: one for group, one in changed.items() if not _is_older(held.rows.get(one.id), built)}
    account_store.update(driver, list(whole.values()), now)
    _write_names(driver, {one.id: built.names.get(group, {}) for group, one in whole.items()}, now)
    return same


def _is_as_before(driver: store.Connection, group: str, built: Built, before: Seen, held: Seen) -> bool:
    """Tell whether neither an account nor who has a name of its has changed."""
    if before.ids.get(group) != held.ids.get(group):
        return False
    if group not in held.ids and (before.erases or before.erased_at != held.erased_at):
        # Nothing tells whether its calls are still there.
        return False
    its = _holders(driver, built.named([group])).union({held.ids[group]} if group in held.ids else ())
    return all(before.rows.get(one) == held.rows.get(one) for one in its)


def _is_older(row: Account | None, built: Built) -> bool:
    return row is not None and built.erased_at is not None and row.created_at <= built.erased_at


def _changed(group: str, built: Built, held: Seen) -> Changed:
    delta, row = built.deltas.get(group, accounts.Delta()), held.rows.get(held.ids[group])
    return Changed(held.ids[group], delta, row.version + 1 if row else delta.calls, delta.registers)


def _write_members(driver: store.Connection, changed: Sequence[Changed]) -> None:
    driver.execute("DELETE FROM cdp_accountmember WHERE account_id = ANY(%s)", [[one.id for one in changed]])
    people = {member for one in changed for member in one.delta.members}
    rows = {one: row[0] for one, row in store.find_identifiers(driver, people).items()} if people else {}
    # Of whoever was erased meanwhile nothing is told.
    known = [
        Changed(one.id, accounts.Delta(members={who: its for who, its in one.delta.members.items() if who in rows}))
        for one in changed
    ]
    account_store.write_members(driver, known, rows)


def _write_names(driver: store.Connection, names: Mapping[UUID, Mapping[Identifier, Evidence]], now: str) -> None:
    told = [(name, account, evidence) for account, its in names.items() for name, evidence in its.items()]
    driver.execute(
        "DELETE FROM cdp_accountidentifier i WHERE i.namespace <> %s AND (i.account_id = ANY(%s) OR EXISTS ("
        "SELECT FROM unnest(%s::text[], %s::text[]) AS won (name, id) WHERE i.namespace = name AND i.value = won.id))",
        [accounts.GROUP_ID, list(names), [name.namespace for name, _, _ in told], [name.value for name, _, _ in told]],
    )
    if told:
        account_store.insert_identifiers(driver, told, now)
