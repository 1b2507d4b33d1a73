"""What was promised of people while decisions were under fire, looked up when all is quiet. A difference is a line."""

import json
import os
import subprocess
from typing import Any

from cdp import privacy
from cdp.processing import suppression
from cdp.processing.identity import Identifier
from martech.embedded.postgres import binaries
from martech.lib import crypto
from tests.faults.bed import Bed
from tests.faults.comparing import told
from tests.faults.deciding import Decider
from tests.faults.overlapping import PEOPLE, Crowd, named
from tests.running import manage, wait_until

QUIET_SECONDS = 120.0
# A reader keeps what it put into the cache for a minute.
SHOWN_SECONDS = 75.0
# What beat does each minute, in seconds.
CHORES = {"finish_erasures": 3, "apply_identity_rules": 3, "show_edits": 3}
_SAME_PROFILE = """
SELECT DISTINCT d.id FROM cdp_identitydecision d
JOIN cdp_unmergeside t ON t.decision_id = d.id AND t.side = 1 JOIN cdp_identifier taken ON taken.id = t.identifier_id
JOIN cdp_unmergeside k ON k.decision_id = d.id AND k.side = 0 JOIN cdp_identifier kept ON kept.id = k.identifier_id
WHERE d.kind = 'unmerge' AND d.lifted_at IS NULL AND taken.profile_id = kept.profile_id
"""
_SIDES = """
SELECT d.id, d.lifted_at IS NOT NULL, i.namespace, i.value, s.side FROM cdp_identitydecision d
LEFT JOIN cdp_unmergeside s ON s.decision_id = d.id LEFT JOIN cdp_identifier i ON i.id = s.identifier_id
WHERE d.kind = 'unmerge'
"""


def hurry(bed: Bed) -> None:
    """Have beat's chores come every few seconds."""
    for task, seconds in CHORES.items():
        bed.rows(
            "WITH every AS (INSERT INTO django_celery_beat_intervalschedule (every, period) VALUES (%s, 'seconds')"
            " RETURNING id)"
            " INSERT INTO django_celery_beat_periodictask (name, task, interval_id, args, kwargs, headers, enabled,"
            " one_off, expire_seconds, total_run_count, date_changed, description)"
            " SELECT %s, %s, id, '[]', '{}', '{}', true, false, %s, 0, now(), '' FROM every RETURNING id",
            [seconds, f"Soon: {task}", f"cdp.tasks.{task}", seconds],
        )
    bed.rows(
        "INSERT INTO django_celery_beat_periodictasks (ident, last_update) VALUES (1, now())"
        " ON CONFLICT (ident) DO UPDATE SET last_update = now() RETURNING ident"
    )


def settle(bed: Bed) -> None:
    """Return when the log is empty, and no job on people is left."""
    bed.drain()
    wait_until(lambda: not unfinished(bed), QUIET_SECONDS)
    bed.drain()


def unfinished(bed: Bed) -> list[tuple[Any, ...]]:
    """Return the erasures and rules that are not done."""
    return bed.rows(
        "SELECT 'erasure', id::text FROM cdp_erasure WHERE status <> 'done'"
        " UNION ALL SELECT 'rules', version::text FROM cdp_identityrules WHERE status = 'applying'"
    )


class Promises:
    """The promises of a round: what was sent and decided, against what the platform holds of it."""

    def __init__(self, bed: Bed, crowd: Crowd, taken: dict[str, dict], deciders: list[Decider]) -> None:
        self.bed, self.crowd, self.taken, self.deciders = bed, crowd, taken, deciders
        self.erased = self._erased()

    def broken(self) -> list[str]:
        """Return what is not as it was promised."""
        answered = [one for decider in self.deciders for one in decider.trouble]
        return [
            *told("answered", answered),
            *told("unmerge", self._unmerges()),
            *told("edit", self._edits()),
            *told("rules", self._rules()),
            *told("erasure", self._erasures()),
            *told("event", self._events()),
            *told("left of the erased", self._left()),
            *told("replay", self._replayed()),
            *told("otherwise as read", self._read()),
        ]

    def _erased(self) -> set[Identifier]:
        """Return who of all that were named is kept out."""
        key = crypto.derived((self.bed.home / "secret-key").read_text().strip(), "martech.privacy")
        digests = {bytes(row[0]) for row in self.bed.rows("SELECT digest FROM cdp_suppressedidentifier")}
        everybody = set().union(*(named(message) for message in self.taken.values()))
        return {one for one in everybody if suppression.digest(key, one) in digests}

    def _unmerges(self) -> list[str]:
        held: dict[int, tuple[bool, dict[Identifier, int]]] = {}
        for decision, lifted, namespace, value, side in self.bed.rows(_SIDES):
            sides = held.setdefault(decision, (lifted, {}))[1]
            if namespace is not None:
                sides[Identifier(namespace, value)] = side
        joined = [f"{one} stands, and its sides are one profile" for (one,) in self.bed.rows(_SAME_PROFILE)]
        return joined + [
            line
            for decider in self.deciders
            for decision, sides in decider.unmerges.items()
            for line in self._unmerge(decider, decision, sides, held.get(decision))
        ]

    def _unmerge(self, decider: Decider, decision: int, sides: Any, held: Any) -> list[str]:
        """Say what is wrong with an unmerge that was answered as done."""
        if held is None:
            return [f"{decision} is gone"]
        lifted, stored = held
        found = [f"{decision} was lifted by nobody"] if lifted and decision not in decider.lifts else []
        found += [f"{decision} was lifted, and stands"] if decision in decider.lifted and not lifted else []
        wanted = {Identifier(**one): side for side, name in ((1, "taken"), (0, "kept")) for one in sides[name]}
        for one, side in wanted.items():
            # What others took out meanwhile is on no side.
            if one not in self.erased and stored.get(one, 0) != side:
                found.append(f"{decision} has {one} on side {stored.get(one)}, was told {side}")
        facts = self.bed.rows("SELECT count(*) FROM event_stream WHERE message_id = %s", [f"unmerge-{decision}"])[0][0]
        anchor = min(one for one, side in wanted.items() if side)
        if facts != 1 and not (facts == 0 and anchor in self.erased):
            found.append(f"{decision} is {facts} times in the timeline")
        return found

    def _edits(self) -> list[str]:
        rows = self.bed.rows(
            "SELECT properties->>'edited', count(*) FROM event_stream WHERE message_id LIKE 'edit-%%'"
            " AND properties->>'edited' LIKE %s GROUP BY 1",
            [f"{self.crowd.tag}-%"],
        )
        held = dict(rows)
        found = [f"{value} counts {times} times" for value, times in held.items() if times > 1]
        for decider in self.deciders:
            for value, profile in decider.edits.items():
                theirs = {Identifier(**one) for one in profile["identifiers"]}
                if value not in held and theirs.isdisjoint(self.erased):
                    found.append(f"{value} was taken and is lost")
            found += [f"{value} was refused and is there" for value in decider.refused & held.keys()]
        return found

    def _rules(self) -> list[str]:
        held = {row[0]: row[1:] for row in self.bed.rows("SELECT version, status, progress FROM cdp_identityrules")}
        found = []
        for version in {one for decider in self.deciders for one in decider.rules}:
            status, progress = held.get(version, ("gone", {}))
            if status != "applied" or progress["looked_at"] < progress["of"]:
                found.append(f"{version} is {status} ({progress})")
        return found

    def _erasures(self) -> list[str]:
        rows = self.bed.rows("SELECT id::text, status, receipts, work FROM cdp_erasure")
        wanted = {"suppression", *privacy.STEPS}
        held = {row_id: (status, receipts.keys() == wanted, work == {}) for row_id, status, receipts, work in rows}
        found = [f"{one} is {state}" for one, state in held.items() if state != ("done", True, True)]
        for asked in (decider.erasures for decider in self.deciders):
            found += [f"{one} is gone" for one in asked.keys() - held.keys()]
            known = {one.value for one in self.erased}
            users = {name for message in self.taken.values() for name in [message.get("userId")]}
            found += [f"{user} is not kept out" for user in asked.values() if user in users and user not in known]
        return found

    def _events(self) -> list[str]:
        """Say which events are lost, doubled, or of those who were erased."""
        rows = self.bed.rows(
            "SELECT message_id, count(*), jsonb_agg(identifiers) FROM event_stream WHERE message_id LIKE %s GROUP BY 1",
            [f"{self.crowd.tag}-%"],
        )
        stored = {message_id: times for message_id, times, _ in rows}
        aside = self.bed.rows("SELECT message_id, reason FROM cdp_deadletter")
        found = [f"{one} is there {times} times" for one, times in stored.items() if times > 1]
        found += [f"{one} was put aside: {why}" for one, why in aside if why != "blocked_value"]
        put_aside = {one for one, _ in aside}
        for message_id, message in self.taken.items():
            if message_id not in stored and message_id not in put_aside and named(message).isdisjoint(self.erased):
                found.append(f"{message_id} is lost")
        for message_id, _, lists in rows:
            theirs = {Identifier(*pair) for pairs in lists for pair in pairs}
            found += [f"{message_id} is of {one}" for one in theirs & self.erased]
        return found

    def _left(self) -> list[str]:
        """Search database and cache for the values of those who were erased, and for what they alone had said."""
        there = {row[0] for row in self.bed.rows("SELECT message_id FROM event_stream")}
        there |= {row[0] for row in self.bed.rows("SELECT message_id FROM cdp_deadletter")}
        notes = {_note(message) for one, message in self.taken.items() if one not in there} - {""}
        stores = {"database": self._dump(), "cache": self._cached()}
        return [
            f"{value} in the {store}: …{data[at - 200 : at + 100]!r}"
            for store, data in stores.items()
            for value in sorted({one.value for one in self.erased} | notes)
            if (at := data.find(value.encode())) >= 0 or (at := data.find(value.encode().hex().encode())) >= 0
        ]

    def _dump(self) -> bytes:
        # The rules say values that stand for nobody.
        address = self.bed.addresses["DATABASE_URL"]
        command = [str(binaries() / "pg_dump"), "--exclude-table-data=cdp_identityrules", address]
        return subprocess.run(command, capture_output=True, check=True, env=os.environ).stdout

    def _cached(self) -> bytes:
        client = self.bed.servers["cache"]
        keys = sorted(client.keys())
        return b"\n".join([*keys, *(value for value in client.mget(keys) if value)])

    def _replayed(self) -> list[str]:
        done = manage(self.bed.home, "replay", "--verify", "--json")
        if done.returncode not in {0, 1} or not done.stdout:
            return [done.stderr[-2000:]]
        report = json.loads(done.stdout)
        return [json.dumps(one) for one in report["examples"]]

    def _read(self) -> list[str]:
        """Compare what readers get with what the database has, once it had its time."""
        found: list[str] = []

        def equal() -> bool:
            found[:] = self._otherwise_read()
            return not found

        try:
            wait_until(equal, SHOWN_SECONDS)
        except AssertionError:
            return found
        return []

    def _otherwise_read(self) -> list[str]:
        rows = self.bed.rows(
            "SELECT i.value, p.id::text, p.version, p.traits FROM cdp_identifier i"
            " JOIN customer_profiles p ON p.id = i.profile_id WHERE i.namespace = 'user_id' AND i.value LIKE %s",
            [f"{self.crowd.tag}-%"],
        )
        held = {value: tuple(rest) for value, *rest in rows}
        users = [self.crowd.user(number) for number in range(PEOPLE)]
        read = {user: self._as_read(user) for user in users}
        return [f"{user} reads {read[user]}, is {held.get(user)}" for user in users if read[user] != held.get(user)]

    def _as_read(self, user: str) -> tuple[Any, ...] | None:
        document = self.bed.found(f"user_id:{user}")
        return None if document is None else (document["id"], document["version"], document["traits"])


def _note(message: dict) -> str:
    return (message.get("traits") or message.get("properties") or {}).get("note", "")
