"""What accounts hold of an erased person: said by them, or of them by others.

An account that only the person's calls told of goes with them. Of any other the values are taken out: of its traits,
of its members' roles and of the group calls that say them. A group id that holds a value is exchanged for one that
says nothing, in the account and in its calls, and is kept out from then on.
"""

from __future__ import annotations

import re
import secrets
from datetime import datetime
from uuid import UUID

import msgspec

from cdp import archive, history, redaction
from cdp.erasing import CHUNK, REWRITE, Person, count, forms, pattern_of_states, select, without
from cdp.processing import registers
from cdp.processing.store import RULES_LOCK

_encode = msgspec.json.Encoder().encode

# Those that the person's calls named, and those that say a value which is long enough to be theirs.
_ACCOUNTS = """
SELECT a.id, g.value, a.created_at, a.registers::text,
    EXISTS (SELECT FROM cdp_accountmember m WHERE m.account_id = a.id)
FROM cdp_account a JOIN cdp_accountidentifier g ON g.account_id = a.id AND g.namespace = 'group_id'
WHERE g.value = ANY(%(groups)s::text[]) OR EXISTS (
    SELECT FROM unnest(%(forms)s::text[]) AS form (text) WHERE position(lower(form.text) IN lower(a.registers::text || (
        SELECT coalesce(string_agg(n.value || ' ' || n.evidence::text, ' '), '') FROM cdp_accountidentifier n
        WHERE n.account_id = a.id
    ))) > 0
) ORDER BY a.id FOR NO KEY UPDATE OF a
"""
# Both conditions as an index has them.
_CALLS = """
SELECT event_id, ingested_at, anchor_id, message_id, name, identifiers::text, properties::text, context::text,
    extra::text
FROM event_stream WHERE event_type = 'group' AND extra->>'groupId' = %(group)s AND event_id > %(after)s AND (
    %(all)s OR EXISTS (
        SELECT FROM unnest(%(forms)s::text[]) AS form (text)
        WHERE position(lower(form.text) IN lower(concat_ws(' ', message_id, properties, context, extra))) > 0
    )
) ORDER BY event_id LIMIT %(limit)s FOR UPDATE
"""
_TOLD = "SELECT FROM event_stream WHERE event_type = 'group' AND extra->>'groupId' = %s LIMIT 1"
_MEMBERS = "SELECT id, role, register::text FROM cdp_accountmember WHERE account_id = %s ORDER BY id FOR UPDATE"
_NAMES = "SELECT id, value, evidence::text FROM cdp_accountidentifier WHERE account_id = %s AND namespace <> 'group_id'"
_DELETIONS = (
    "DELETE FROM cdp_accountidentifier WHERE account_id = ANY(%s::uuid[])",
    "DELETE FROM cdp_account WHERE id = ANY(%s::uuid[])",
)


def erase(person: Person) -> dict[str, int]:
    """Delete the accounts that only the person told of, redact others; return how many, and of how many group calls.

    `person.groups` then has the group ids of those that were redacted, with what they are called now: the archive's
    calls are to be changed alike.
    """
    archived, start = _beyond(person)
    # Batches find accounts before they lock them: those at work end first.
    select("SELECT pg_advisory_xact_lock(%s)", [RULES_LOCK])
    found, distinct = pattern_of_states(person), redaction.pattern(redaction.distinct(person.values))
    wanted = [one.decode() for one in forms(redaction.distinct(person.values))]
    rows = select(_ACCOUNTS, {"groups": sorted(person.groups), "forms": wanted})
    gone = {
        account
        for account, group, created_at, _, has_members in rows
        # Of an account that is older than the history nobody can say who told of it.
        if group in person.groups.keys() - archived and (start is None or created_at >= start)
        if not has_members and not select(_TOLD, [group])
    }
    for query in _DELETIONS:
        count(query, [sorted(gone)])
    renamed, changed, calls = {}, 0, 0
    for account, group, _, held, _ in rows:
        if account not in gone:
            renamed[group] = _new_group_id(account, group, distinct)
            changed += _redact(account, held, found, distinct) or renamed[group] != group
            calls += _redact_calls(person, group, renamed[group], found)
    person.groups = renamed
    return {"deleted_accounts": len(gone), "redacted_accounts": changed, "group_calls": calls}


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


def _new_group_id(account: UUID, group: str, found: re.Pattern[str]) -> str:
    """Give an account another group id where its own holds a value; return what it is called then."""
    if not found.search(group):
        return group
    other = f"erased-{secrets.token_hex(8)}"
    count("UPDATE cdp_accountidentifier SET value = %s WHERE account_id = %s AND namespace = 'group_id'",
          [other, account])  # fmt: skip
    return other


def _redact(account: UUID, held: str, found: re.Pattern[str], distinct: re.Pattern[str]) -> bool:
    """Take the values out of an account, its members' roles and its further names; tell whether there were any."""
    after = redaction.redact_json(held, found)
    changed = after != held
    if changed:
        traits = _encode(registers.present(registers.load(after))).decode()
        count("UPDATE cdp_account SET registers = %s::jsonb, traits = %s::jsonb, version = version + 1,"
              " timestamp = now() WHERE id = %s", [after, traits, account])  # fmt: skip
    for row_id, role, register in select(_MEMBERS, [account]):
        cleaned = [redaction.redact(role, found), redaction.redact_json(register, found)]
        if cleaned != [role, register]:
            count("UPDATE cdp_accountmember SET role = %s, register = %s::jsonb WHERE id = %s", [*cleaned, row_id])
            changed = True
    for row_id, value, evidence in select(_NAMES, [account]):
        if distinct.search(value):
            # It only points to the account, which has its group id.
            changed = bool(count("DELETE FROM cdp_accountidentifier WHERE id = %s", [row_id])) or changed
        elif (left := redaction.redact_json(evidence, found)) != evidence:
            changed = bool(count("UPDATE cdp_accountidentifier SET evidence = %s::jsonb WHERE id = %s", [left, row_id]))
    return changed


def _redact_calls(person: Person, group: str, named: str, found: re.Pattern[str]) -> int:
    """Take the values out of an account's calls, as an index finds them; return of how many."""
    changed, after = 0, 0
    values = {"group": group, "all": named != group, "forms": [one.decode() for one in forms(person.values)],
              "limit": CHUNK}  # fmt: skip
    while rows := select(_CALLS, {**values, "after": after}):
        after = rows[-1][0]
        for row in rows:
            *said, extra, event_id, ingested_at = without(row, person, found)
            cleaned = [*said, redaction.with_member(extra, "groupId", named), event_id, ingested_at]
            changed += count(REWRITE, cleaned)
    return changed


def kept_out(person: Person) -> list[str]:
    """Return the group ids that were exchanged: calls that name them again are dropped."""
    return sorted(old for old, new in person.groups.items() if old != new)
