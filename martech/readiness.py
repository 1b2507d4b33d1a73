"""How each part is, in words, and whether the web process can serve: what `/readyz` and `doctor` say."""

from __future__ import annotations

from dataclasses import dataclass

from cdp.collector import pressure
from martech.lib.errors import MartechError
from martech.vitals import Database, Vitals

OK, DEGRADED, DOWN = "ok", "degraded", "down"
NAMES = ("log", "keys", "database", "processor", "broker", "cache", "worker")
# A heartbeat comes every 30 s; a partition that has entries moves every second.
HEARTBEAT_SECONDS = 90.0
STALLED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its state, why, and whether the web process cannot serve while it is down."""

    name: str
    status: str
    detail: str
    needed: bool = False


def judge(vitals: Vitals, *, partitions: int) -> list[Part]:
    """Return the state of every part, those that the web process needs first."""
    return [
        _log(vitals),
        _keys(vitals),
        _database(vitals),
        _processor(vitals, partitions),
        _simple("broker", vitals.queues, "Tasks are not sent. Start it, or correct BROKER_URL."),
        _simple("cache", vitals.cache, "Profiles are read from PostgreSQL. Start it, or correct CACHE_URL."),
        _worker(vitals),
    ]


def overall(parts: list[Part]) -> str:
    """Return `unready` when a needed part is down, `degraded` when anything else is amiss, else `ready`."""
    if any(part.needed and part.status == DOWN for part in parts):
        return "unready"
    return "degraded" if any(part.status != OK for part in parts) else "ready"


def _words(error: Exception) -> str:
    text = error.message if isinstance(error, MartechError) else str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".") + "."


def _log(vitals: Vitals) -> Part:
    if isinstance(vitals.log, Exception):
        return Part("log", DOWN, f"{_words(vitals.log)} Tracking calls get 503. See LOG_URL.", needed=True)
    filling = "" if isinstance(vitals.load, Exception) else pressure.explain(vitals.load)
    # Degraded even when nothing is taken: profiles are read, and senders had better see our 429 than a proxy's 503.
    return Part("log", DEGRADED if filling else OK, filling or vitals.log, needed=True)


def _keys(vitals: Vitals) -> Part:
    if isinstance(vitals.keys, Exception):
        return Part("keys", DOWN, f"{_words(vitals.keys)} Keys cannot be looked up. See LOG_URL.", needed=True)
    if not vitals.keys:
        empty = "The key store is empty. Beat fills it within a minute; any change of a source or key does at once."
        return Part("keys", DOWN, empty, needed=True)
    return Part("keys", OK, "published", needed=True)


def _database(vitals: Vitals) -> Part:
    found = vitals.database
    if isinstance(found, Exception):
        return Part("database", DOWN, f"{_words(found)} Start it, or correct DATABASE_URL.", needed=True)
    if found.unapplied:
        missing = f"{len(found.unapplied)} migrations are not applied, such as {found.unapplied[0]}"
        return Part("database", DOWN, f"{missing}. Run `manage.py migrate`.", needed=True)
    return Part("database", OK, f"PostgreSQL {found.version}", needed=True)


def _processor(vitals: Vitals, partitions: int) -> Part:
    found = vitals.database
    if not isinstance(found, Database):
        return Part("processor", DEGRADED, "unknown while PostgreSQL is away")
    if not found.checkpoints:
        never = "No processor has ever run: events wait in the log. Start `manage.py process_events`."
        return Part("processor", DOWN, never, needed=True)
    if found.halted:
        return Part("processor", DOWN, f"It is halted, and events wait in the log: {found.halted}")
    if found.owned < partitions:
        idle = f"{partitions - found.owned} of {partitions} log partitions have no processor: their events wait."
        return Part("processor", DEGRADED, f"{idle} Start `manage.py process_events`.", needed=True)
    return _progress(vitals, found)


def _progress(vitals: Vitals, found: Database) -> Part:
    if isinstance(vitals.lags, Exception):
        return Part("processor", DEGRADED, f"The lag is unknown: {_words(vitals.lags)}", needed=True)
    behind = sum(vitals.lags.values())
    stalled = [one for one, lag in vitals.lags.items() if lag and found.checkpoints[one].age > STALLED_SECONDS]
    if stalled:
        slow = f"Partitions {', '.join(map(str, stalled))} have not moved for {STALLED_SECONDS:.0f} s"
        return Part("processor", DEGRADED, f"{slow}, and {behind} entries wait. See the processor's log.", needed=True)
    return Part("processor", OK, f"{behind} entries behind", needed=True)


def _worker(vitals: Vitals) -> Part:
    found = vitals.database
    if not isinstance(found, Database):
        return Part("worker", DEGRADED, "unknown while PostgreSQL is away")
    if found.heartbeat is None:
        return Part("worker", DEGRADED, "No heartbeat of beat and worker yet. Start both.")
    if found.heartbeat > HEARTBEAT_SECONDS:
        late = f"The last heartbeat of beat and worker is {found.heartbeat:.0f} s old"
        return Part("worker", DEGRADED, f"{late}. See whether both run and reach the broker.")
    return Part("worker", OK, f"heartbeat {found.heartbeat:.0f} s ago")


def _simple(name: str, answer: object, consequence: str) -> Part:
    if isinstance(answer, Exception):
        return Part(name, DEGRADED, f"{_words(answer)} {consequence}")
    return Part(name, OK, "answers")
