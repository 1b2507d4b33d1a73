"""The SQL of accounts: a batch's deltas into rows, set by set, within the batch's transaction.

Locks are taken after those of the batch's profiles: new group ids in order, then accounts by id, then further
identifiers in order. A circle with another batch is a deadlock, which has the batch done again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import msgspec

from cdp.processing import registers
from cdp.processing.accounts import GROUP_ID, Delta, Evidence, Membership, load_membership
from cdp.processing.identity import Identifier
from cdp.processing.registers import Registers
from cdp.processing.store import Connection, Raced
from martech.lib import clock

_encode = msgspec.json.Encoder().encode
_evidence = msgspec.json.Decoder(Evidence).decode


@dataclass(slots=True)
class Changed:
    """An account as a batch leaves it."""

    id: UUID
    delta: Delta
    version: int = 0
    registers: Registers = field(default_factory=dict)


def write(
    connection: Connection,
    deltas: dict[str, Delta],
    anchors: dict[Identifier, int],
    *,
    now: str,
    new_id: Callable[[], UUID],
) -> None:
    """Add deltas, by group id, to their accounts; `anchors` are the row ids of the identifiers that belong to them.

    Raced when another process made one of the new accounts or identifiers meanwhile.
    """
    if not deltas:
        return
    ids = find(connection, sorted(deltas))
    missing = [group for group in sorted(deltas) if group not in ids]
    ids |= insert(connection, missing, now, new_id) if missing else {}
    changed = {ids[group]: Changed(ids[group], delta) for group, delta in deltas.items()}
    _lock(connection, changed)
    update(connection, list(changed.values()), now)
    write_members(connection, list(changed.values()), anchors)
    _write_names(connection, list(changed.values()), now)


def find(connection: Connection, groups: Sequence[str]) -> dict[str, UUID]:
    """Return the accounts that there are of group ids."""
    rows = connection.execute(
        "SELECT value, account_id FROM cdp_accountidentifier WHERE namespace = %s AND value = ANY(%s)",
        [GROUP_ID, list(groups)],
    )
    return dict(rows.fetchall())


def insert(connection: Connection, groups: Sequence[str], now: str, new_id: Callable[[], UUID]) -> dict[str, UUID]:
    """Insert accounts, bare, with their group ids."""
    ids = [new_id() for _ in groups]
    connection.execute(
        "INSERT INTO cdp_account (id, timestamp, created_at) SELECT id, %s, %s FROM unnest(%s::uuid[]) AS new (id)",
        [now, now, ids],
    )
    insert_identifiers(
        connection, [(Identifier(GROUP_ID, group), id_, None) for group, id_ in zip(groups, ids, strict=True)], now
    )
    return dict(zip(groups, ids, strict=True))


def insert_identifiers(
    connection: Connection, rows: Sequence[tuple[Identifier, UUID, Evidence | None]], now: str
) -> None:
    """Insert what accounts are called; Raced where one is there."""
    ordered = sorted(rows, key=lambda row: row[:2])
    inserted = connection.execute(
        "INSERT INTO cdp_accountidentifier (namespace, value, account_id, evidence, created_at)"
        " SELECT namespace, value, account_id, evidence::jsonb, %s"
        " FROM unnest(%s::text[], %s::text[], %s::uuid[], %s::text[]) AS new (namespace, value, account_id, evidence)"
        " ORDER BY namespace, value ON CONFLICT DO NOTHING",
        [
            now,
            [identifier.namespace for identifier, _, _ in ordered],
            [identifier.value for identifier, _, _ in ordered],
            [account for _, account, _ in ordered],
            [_encode(evidence or []).decode() for _, _, evidence in ordered],
        ],
    )
    if inserted.rowcount < len(ordered):
        raise Raced("Another process made one of the batch's new accounts.")


def _lock(connection: Connection, changed: dict[UUID, Changed]) -> None:
    """Lock the accounts in id order, and read what they are."""
    rows = connection.execute(
        "SELECT id, version, registers::text FROM cdp_account WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE",
        [sorted(changed)],
    )
    for id_, version, held in rows:
        one = changed[id_]
        one.version = version + one.delta.calls
        one.registers = registers.apply(registers.load(held), one.delta.registers)


def update(connection: Connection, changed: Sequence[Changed], now: str) -> None:
    """Write the whole new registers and versions of accounts."""
    connection.execute(
        "UPDATE cdp_account a SET version = new.version, registers = new.registers::jsonb,"
        " traits = new.traits::jsonb, timestamp = %s"
        " FROM unnest(%s::uuid[], %s::bigint[], %s::text[], %s::text[]) AS new (id, version, registers, traits)"
        " WHERE a.id = new.id",
        [
            now,
            [one.id for one in changed],
            [one.version for one in changed],
            [_encode(one.registers).decode() for one in changed],
            [_encode(registers.present(one.registers)).decode() for one in changed],
        ],
    )


Pair = tuple[UUID, int]


def write_members(connection: Connection, changed: Sequence[Changed], anchors: dict[Identifier, int]) -> None:
    """Add what deltas say of members to what is held of them."""
    told: dict[Pair, Membership] = {
        (one.id, anchors[anchor]): membership for one in changed for anchor, membership in one.delta.members.items()
    }
    if not told:
        return
    # The accounts are locked, so nobody changes their members.
    held = _members(connection, list(told))
    after = {pair: membership.combine(held[pair]) if pair in held else membership for pair, membership in told.items()}
    pairs = sorted(after)
    ended = [after[pair].ended_us for pair in pairs]
    connection.execute(
        "INSERT INTO cdp_accountmember (account_id, identifier_id, role, joined_at, left_at, register)"
        " SELECT account, identifier, role, joined_at, left_at, register::jsonb FROM unnest(%s::uuid[], %s::bigint[],"
        " %s::text[], %s::timestamptz[], %s::timestamptz[], %s::text[])"
        " AS new (account, identifier, role, joined_at, left_at, register)"
        " ON CONFLICT (account_id, identifier_id) DO UPDATE SET role = excluded.role, joined_at = excluded.joined_at,"
        " left_at = excluded.left_at, register = excluded.register",
        [
            [account for account, _ in pairs],
            [identifier for _, identifier in pairs],
            [after[pair].role_shown for pair in pairs],
            [clock.from_us(after[pair].since_us) for pair in pairs],
            [None if at is None else clock.from_us(at) for at in ended],
            [_encode(after[pair]).decode() for pair in pairs],
        ],
    )


def _members(connection: Connection, pairs: Sequence[Pair]) -> dict[Pair, Membership]:
    rows = connection.execute(
        "SELECT m.account_id, m.identifier_id, m.register::text FROM cdp_accountmember m"
        " JOIN unnest(%s::uuid[], %s::bigint[]) AS wanted (account, identifier)"
        " ON m.account_id = wanted.account AND m.identifier_id = wanted.identifier",
        [[account for account, _ in pairs], [identifier for _, identifier in pairs]],
    )
    return {(account, identifier): load_membership(register) for account, identifier, register in rows}


def _write_names(connection: Connection, changed: Sequence[Changed], now: str) -> None:
    """Give further identifiers to the account whose call is the strongest evidence for it."""
    told: dict[Identifier, tuple[Evidence, UUID]] = {}
    for one in changed:
        for name, evidence in one.delta.names.items():
            told[name] = min((evidence, one.id), told.get(name, (evidence, one.id)))
    if not told:
        return
    held = _locked_names(connection, sorted(told))
    fresh = [(name, account, evidence) for name, (evidence, account) in told.items() if name not in held]
    if fresh:
        insert_identifiers(connection, fresh, now)
    moved = {held[name][0]: won for name, won in told.items() if name in held and won[0] < held[name][1]}
    connection.execute(
        "UPDATE cdp_accountidentifier i SET account_id = new.account, evidence = new.evidence::jsonb"
        " FROM unnest(%s::bigint[], %s::uuid[], %s::text[]) AS new (id, account, evidence) WHERE i.id = new.id",
        [
            list(moved),
            [account for _, account in moved.values()],
            [_encode(evidence).decode() for evidence, _ in moved.values()],
        ],
    )


def _locked_names(connection: Connection, names: Sequence[Identifier]) -> dict[Identifier, tuple[int, Evidence]]:
    rows = connection.execute(
        "SELECT i.id, i.namespace, i.value, i.evidence::text FROM cdp_accountidentifier i"
        " JOIN unnest(%s::text[], %s::text[]) AS wanted (namespace, value)"
        " ON i.namespace = wanted.namespace AND i.value = wanted.value"
        " ORDER BY i.namespace, i.value FOR NO KEY UPDATE OF i",
        [[one.namespace for one in names], [one.value for one in names]],
    )
    return {Identifier(namespace, value): (row_id, _evidence(held)) for row_id, namespace, value, held in rows}
