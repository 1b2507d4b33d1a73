"""What accounts hold of an erased person: said by them, or of them by others.

An account that only the person's calls told of goes with them. Of any other the values are taken out: of its traits,
of its members' roles and of the group calls that say them. Those are words of others, in which a short value says
nothing of anybody: only such count as are somebody's wherever they stand. A group id that holds a value is exchanged
for one that says nothing, in the account and in its calls, and from then on in whatever comes in.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from cdp import archive, history, redaction, suppressions
from cdp.erasing import CHUNK, REWRITE, Person, count, forms, pattern_of_states, select
from cdp.processing import registers, suppression
from cdp.processing.store import RULES_LOCK

_encode = msgspec.json.Encoder().encode
# Accounts that are redacted in one transaction: whoever tells of one of them waits for it.
ACCOUNTS = 20

# Those that the person's calls named, and those that say a value which is long enough to be theirs.
_ACCOUNTS = """
SELECT g.value, a.created_at FROM cdp_account a
JOIN cdp_accountidentifier g ON g.account_id = a.id AND g.namespace = 'group_id'
WHERE g.value = ANY(%(groups)s::text[]) OR EXISTS (
    SELECT FROM unnest(%(forms)s::text[]) AS form (text) WHERE position(lower(form.text) IN lower(a.registers::text || (
        SELECT coalesce(string_agg(n.value || ' ' || n.evidence::text, ' '), '') FROM cdp_accountidentifier n
        WHERE n.account_id = a.id
    ))) > 0
) OR a.id IN (
    SELECT m.account_id FROM cdp_accountmember m, unnest(%(forms)s::text[]) AS form (text)
    WHERE position(lower(form.text) IN lower(m.role || ' ' || m.register::text)) > 0
) ORDER BY g.value
"""
# Accounts of whose calls `mentions` may have changed some.
_BESIDE = """
SELECT DISTINCT extra->>'groupId' FROM event_stream
WHERE anchor_id = ANY(%s::bigint[]) AND event_type = 'group' AND extra->>'groupId' <> ''
"""
_HELD = """
SELECT g.value, g.account_id, EXISTS (SELECT FROM cdp_accountmember m WHERE m.account_id = g.account_id)
FROM cdp_accountidentifier g WHERE g.namespace = 'group_id' AND g.value = ANY(%s::text[]) ORDER BY g.value
"""
_LOCKED = """
SELECT a.id, a.registers::text FROM cdp_account a WHERE a.id IN (
    SELECT account_id FROM cdp_accountidentifier WHERE namespace = 'group_id' AND value = ANY(%s::text[])
) ORDER BY a.id FOR NO KEY UPDATE
"""
# Both conditions as an index has them.
_CALLS = """
SELECT event_id, ingested_at, message_id, name, identifiers::text, properties::text, context::text, extra::text
FROM event_stream WHERE event_type = 'group' AND extra->>'groupId' = %(group)s AND event_id > %(after)s AND (
    %(all)s OR EXISTS (
        SELECT FROM unnest(%(forms)s::text[]) AS form (text)
        WHERE position(lower(form.text) IN lower(concat_ws(' ', message_id, properties, context, extra))) > 0
    )
) ORDER BY event_id LIMIT %(limit)s FOR UPDATE
"""
_TOLD = "SELECT FROM event_stream WHERE event_type = 'group' AND extra->>'groupId' = %s LIMIT 1"
_MEMBERS = """
SELECT id, role, register::text FROM cdp_accountmember WHERE account_id = %s AND EXISTS (
    SELECT FROM unnest(%s::text[]) AS form (text)
    WHERE position(lower(form.text) IN lower(role || ' ' || register::text)) > 0
) ORDER BY id FOR UPDATE
"""
_NAMES = "SELECT id, value, evidence::text FROM cdp_accountidentifier WHERE account_id = %s AND namespace <> 'group_id'"
_DELETIONS = (
    "DELETE FROM cdp_accountidentifier WHERE account_id = ANY(%s::uuid[])",
    "DELETE FROM cdp_account WHERE id = ANY(%s::uuid[])",
)


@dataclass(slots=True)
class Progress:
    """How far it has come: the groups about which it has to decide, whose calls and whose accounts it has to redact.

    They are group ids. `alone` are those that only the person's calls told of when it looked; `after` is the last call
    that was read of the first of `calls`; `found` is what it has done, as the receipt says it.
    """

    begun: bool = False
    alone: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    after: int = 0
    found: dict[str, int] = field(
        default_factory=lambda: {"deleted_accounts": 0, "redacted_accounts": 0, "group_calls": 0}
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What finds the person in words of others: in a text, and how JSON may write it."""

    pattern: re.Pattern[str]
    forms: list[str]


def _wanted(person: Person) -> _Wanted:
    named = [one for one in person.names if redaction.distinct([one.value])]
    found = pattern_of_states(replace(person, identifiers=named, aliases=[]))
    return _Wanted(found, [one.decode() for one in forms(one.value for one in named)])


def go_on(person: Person, progress: Progress, erasure_id: UUID) -> bool:
    """Do some more of it, in the caller's transaction, which ends then; False where nothing is left to do.

    `person.groups` has at the end the group ids of the accounts that stay, with what they are called now: the archive's
    calls are to be changed alike. An account comes after its calls: a repair that read them before finds it changed.
    """
    if not progress.begun:
        _find(person, progress)
    elif progress.undecided:
        _decide(person, progress, erasure_id)
    elif progress.calls:
        _redact_calls(person, progress)
    elif progress.states:
        _redact_accounts(person, progress)
    else:
        return False
    return True


def _find(person: Person, progress: Progress) -> None:
    """Note which accounts it is about, without keeping anybody from work."""
    archived, start = _beyond(person)
    rows = select(_ACCOUNTS, {"groups": sorted(person.groups), "forms": _wanted(person).forms})
    progress.alone = [
        group
        for group, created_at in rows
        # Of an account that is older than the history nobody can say who told of it.
        if group in person.groups.keys() - archived and (start is None or created_at >= start)
        if not select(_TOLD, [group])
    ]
    progress.undecided = [group for group, _ in rows]
    beside = {group for (group,) in select(_BESIDE, [person.around])}
    progress.states = sorted(beside.difference(progress.undecided))
    person.groups, progress.begun = {}, True


def _beyond(person: Person) -> tuple[set[str], datetime | None]:
    """Return which groups others' archived calls name, and from when on every call is kept; None where nothing is.

    Only those are looked for that the person's calls named, archived ones too, and no other call in PostgreSQL does.
    """
    theirs = frozenset(person.anchors)
    person.groups = {group: group for _, group in archive.groups(anchors=theirs) if group} | person.groups
    alone = {group for group in person.groups if not select(_TOLD, [group])}
    if not alone:
        return set(), None
    with history.snapshot() as reading:
        start = history.starts(reading)
    return {group for anchor, group in archive.groups() if group in alone and anchor not in theirs}, start


def _decide(person: Person, progress: Progress, erasure_id: UUID) -> None:
    """Delete some accounts or give them other names, while nobody is at work who might tell of them."""
    some = progress.undecided[:CHUNK]
    progress.undecided = progress.undecided[CHUNK:]
    found = redaction.pattern(redaction.distinct(person.values))
    named = [group for group in some if found.search(group)]
    # Batches find accounts before they lock them: those at work end first, and later ones know the names.
    select("SELECT pg_advisory_xact_lock(%s)", [RULES_LOCK])
    if named:
        suppressions.add(map(suppression.of_group, named), erasure_id)
    held = select(_HELD, [some])
    gone = {
        group: account
        for group, account, has_members in held
        if group in progress.alone and not has_members and not select(_TOLD, [group])
    }
    for query in _DELETIONS:
        count(query, [sorted(gone.values())])
    progress.found["deleted_accounts"] += len(gone)
    for group, account, _ in held:
        if group not in gone:
            person.groups[group] = _rename(account, group) if group in named else group
            progress.calls.append(group)
            progress.states.append(group)


def _rename(account: UUID, group: str) -> str:
    """Give an account the group id by which processing goes on to know it; return what it is called then."""
    other = suppression.other_group_id(suppressions.key(), group)
    if select(_HELD, [[other]]):
        # So was one called that had the name before, was erased, and was let back.
        other = f"{suppression.OTHER}{secrets.token_hex(8)}"
    count("UPDATE cdp_accountidentifier SET value = %s WHERE account_id = %s AND namespace = 'group_id'",
          [other, account])  # fmt: skip
    return other


def _redact_calls(person: Person, progress: Progress) -> None:
    """Take the values out of some calls, as an index finds them; a group without any more is done with."""
    wanted, left = _wanted(person), CHUNK
    for _ in range(min(CHUNK, len(progress.calls))):
        group = progress.calls[0]
        named = person.groups[group]
        rows = select(_CALLS, {"group": group, "after": progress.after, "all": named != group, "forms": wanted.forms,
                               "limit": left})  # fmt: skip
        for row in rows:
            progress.found["group_calls"] += count(
                REWRITE, _without(row, person, wanted, named if named != group else None)
            )
        if len(rows) == left:
            progress.after = rows[-1][0]
            return
        left -= len(rows)
        progress.calls, progress.after = progress.calls[1:], 0


def _without(row: Sequence[Any], person: Person, wanted: _Wanted, named: str | None) -> list[Any]:
    """Return what `REWRITE` makes of a call, with the account's other name where it has one."""
    event_id, ingested_at, message_id, name, identifiers, *said = row
    gone = {tuple(one) for one in person.names}
    kept = [pair for pair in msgspec.json.decode(identifiers) if tuple(pair) not in gone]
    *coded, extra = [text and redaction.redact_json(text, wanted.pattern, numbers=True) for text in said]
    plain = [redaction.redact(text, wanted.pattern) for text in (message_id, name)]
    if named is not None:
        extra = redaction.with_member(extra, "groupId", named)
    return [*plain, _encode(kept).decode(), *coded, extra, event_id, ingested_at]


def _redact_accounts(person: Person, progress: Progress) -> None:
    """Take the values out of some accounts, and tell whoever compares them that they have changed."""
    some = progress.states[:ACCOUNTS]
    progress.states = progress.states[ACCOUNTS:]
    wanted = _wanted(person)
    renamed = {new for old, new in person.groups.items() if old != new}
    rows = select(_LOCKED, [[person.groups.get(group, group) for group in some]])
    names = dict(select("SELECT account_id, value FROM cdp_accountidentifier WHERE namespace = 'group_id'"
                        " AND account_id = ANY(%s::uuid[])", [[row[0] for row in rows]]))  # fmt: skip
    for account, held in rows:
        changed = _redact(account, held, wanted)
        progress.found["redacted_accounts"] += changed or names.get(account) in renamed


def _redact(account: UUID, held: str, wanted: _Wanted) -> bool:
    """Take the values out of an account, its members' roles and its further names; tell whether there were any."""
    after = _redacted_state(held, wanted.pattern)
    changed = after != held
    traits = _encode(registers.present(registers.load(after))).decode()
    # Though nothing is changed here: whoever read its calls before would write what they said.
    count("UPDATE cdp_account SET registers = %s::jsonb, traits = CASE WHEN %s THEN %s::jsonb ELSE traits END,"
          " version = version + 1, timestamp = now() WHERE id = %s", [after, changed, traits, account])  # fmt: skip
    for row_id, role, register in select(_MEMBERS, [account, wanted.forms]):
        cleaned = [redaction.redact(role, wanted.pattern), redaction.redact_json(register, wanted.pattern)]
        if cleaned != [role, register]:
            count("UPDATE cdp_accountmember SET role = %s, register = %s::jsonb WHERE id = %s", [*cleaned, row_id])
            changed = True
    for row_id, value, evidence in select(_NAMES, [account]):
        if wanted.pattern.search(value):
            # It only points to the account, which has its group id.
            changed = bool(count("DELETE FROM cdp_accountidentifier WHERE id = %s", [row_id])) or changed
        elif (left := redaction.redact_json(evidence, wanted.pattern)) != evidence:
            changed = bool(count("UPDATE cdp_accountidentifier SET evidence = %s::jsonb WHERE id = %s", [left, row_id]))
    return changed


def _redacted_state(held: str, found: re.Pattern[str]) -> str:
    """Return registers without the values, as numbers too but where they are no trait's: a time, a sum."""
    after = redaction.redact_json(held, found, numbers=True)
    try:
        registers.load(after)
    except msgspec.ValidationError:
        return redaction.redact_json(held, found)
    return after
