"""What can be seen of the running parts from outside, in less than a second, whichever of them is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import psycopg
import redis
from django.conf import settings
from django.db import connection

from cdp import task_locks
from cdp.collector import keys, pressure
from cdp.engines.leases import ALIVE, PROCESSORS
from cdp.log import open_log
from cdp.log.base import Load
from martech.lib.errors import RetryableError

T = TypeVar("T")

SECONDS = 0.8
# Where nobody answers, threads end by themselves after this.
GIVE_UP = 2.0
DEAD_LETTERS_COUNTED = 10_000
_OWNED = f"""
SELECT count(*) FROM cdp_checkpoint AS checkpoint WHERE owner IN
(SELECT processor.id FROM {PROCESSORS} WHERE {ALIVE} AND processor.log = checkpoint.log) OR log = %s
"""  # noqa: S608 - constants of ours
_HALTED = f"SELECT coalesce((SELECT max(halted) FROM {PROCESSORS} WHERE {ALIVE}), %s)"  # noqa: S608 - the same
HEARTBEAT = "cdp.tasks.heartbeat"


class NoAnswer(RetryableError):
    """The part did not answer in time."""

    code = "no_answer"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a partition is: the position, and how long ago it moved, in seconds."""

    position: str
    age: float


@dataclass(frozen=True, slots=True)
class LockWaits:
    """How many sessions of a kind of process wait for a lock, and how long the longest of them, in seconds."""

    process: str
    sessions: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Duplicates:
    """How far back repeated messages are recognised, in seconds, and how many ids of sealed generations that is."""

    seconds: float
    ids: int


@dataclass(frozen=True, slots=True)
class Database:
    """What PostgreSQL knows. `owned` counts the log partitions that a living processor holds.

    `halted` is why a processor stands still, "" where none does.
    `heartbeat` is the age of the last completed heartbeat of beat and worker in seconds, None for none yet;
    `running` counts the tasks that a living worker runs.
    """

    version: int
    unapplied: list[str]
    checkpoints: dict[int, Checkpoint]
    owned: int
    dead_letters: int
    heartbeat: float | None
    halted: str = ""
    lock_waits: list[LockWaits] = field(default_factory=list)
    duplicates: Duplicates | None = None
    running: int = 0


@dataclass(slots=True)
class Vitals:
    """What each part answered, or the error in its place.

    `load` is how full the log is by cause, see `cdp.collector.pressure.ratios`; `lags` are entries by partition.
    """

    database: Database | Exception
    log: str | Exception
    load: dict[str, float] | Exception
    keys: bool | Exception
    queues: dict[str, int] | Exception
    cache: bool | Exception
    lags: dict[int, int] | Exception = field(default_factory=dict)


def gather(seconds: float = SECONDS) -> Vitals:
    """Ask all parts at once, for `seconds` at the most."""
    deadline = time.monotonic() + seconds
    readers: dict[str, Callable[[], Any]] = {
        "database": read_database, "log": read_log, "load": read_load, "keys": read_keys, "queues": read_queues,
        "cache": read_cache,
    }  # fmt: skip
    asked = {name: _pool().submit(reader) for name, reader in readers.items()}
    vitals = Vitals(**{name: _answer(future, deadline) for name, future in asked.items()})
    if isinstance(vitals.database, Database) and not isinstance(vitals.log, Exception):
        checkpoints = vitals.database.checkpoints
        vitals.lags = _answer(_pool().submit(lambda: read_lags(checkpoints)), deadline)
    return vitals


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(10, thread_name_prefix="vitals")


def _answer(future: Future[T], deadline: float) -> T | Exception:
    try:
        return future.result(max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        future.cancel()
        return NoAnswer("It does not answer in time. See whether it runs and can be reached.")
    except Exception as error:
        return error


def read_database() -> Database:
    """Read what PostgreSQL knows, on a connection of its own: the pool may be exhausted."""
    parameters = connection.get_connection_params()
    names = ("dbname", "user", "password", "host", "port")
    with psycopg.connect(
        **{name: parameters[name] for name in names if parameters.get(name)},
        autocommit=True,
        connect_timeout=int(GIVE_UP),
        options=f"-c statement_timeout={GIVE_UP * 1000:.0f}",
    ) as own:
        unapplied = _unapplied(own)
        if unapplied:
            return Database(own.info.server_version // 10000, unapplied, {}, 0, 0, None)
        return Database(
            own.info.server_version // 10000,
            [],
            _checkpoints(own),
            _owned(own),
            _dead_letters(own),
            _heartbeat(own),
            _halted(own),
            _lock_waits(own),
            _duplicates(own),
            _running(own),
        )


@cache
def _migrations() -> frozenset[tuple[str, str]]:
    from django.db.migrations.loader import MigrationLoader

    return frozenset(MigrationLoader(None, ignore_no_migrations=True).disk_migrations)


def _unapplied(own: psycopg.Connection[Any]) -> list[str]:
    try:
        applied = set(own.execute("SELECT app, name FROM django_migrations").fetchall())
    except psycopg.errors.UndefinedTable:
        applied = set()
    return [f"{app}.{name}" for app, name in sorted(_migrations() - applied)]


def _checkpoints(own: psycopg.Connection[Any]) -> dict[int, Checkpoint]:
    rows = own.execute(
        "SELECT partition, position, extract(epoch FROM now() - updated_at)::float FROM cdp_checkpoint WHERE log ="
        " (SELECT log FROM cdp_checkpoint ORDER BY updated_at DESC LIMIT 1)"
    ).fetchall()
    return {partition: Checkpoint(position, max(0.0, age)) for partition, position, age in rows}


def _owned(own: psycopg.Connection[Any]) -> int:
    return _value(own, _OWNED, "")


def _halted(own: psycopg.Connection[Any]) -> str:
    return _value(own, _HALTED, "")


def _lock_waits(own: psycopg.Connection[Any]) -> list[LockWaits]:
    rows = own.execute(
        "SELECT split_part(application_name, '-', 2), count(DISTINCT pid)::int,"
        " max(extract(epoch FROM clock_timestamp() - coalesce(waitstart, clock_timestamp())))::float"
        " FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND application_name LIKE 'martech-%' GROUP BY 1"
    ).fetchall()
    return [LockWaits(*row) for row in rows]


def _duplicates(own: psycopg.Connection[Any]) -> Duplicates | None:
    row = own.execute(
        "SELECT extract(epoch FROM clock_timestamp() - min(opened_at))::float, coalesce(sum(keys), 0)::bigint"
        " FROM cdp_duplicategeneration HAVING count(*) > 0"
    ).fetchone()
    return Duplicates(*row) if row else None


def _running(own: psycopg.Connection[Any]) -> int:
    return _value(
        own,
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objsubid = 2 AND granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        task_locks.LOCK_CLASS,
    )


def _dead_letters(own: psycopg.Connection[Any]) -> int:
    return _value(
        own,
        "SELECT count(*) FROM (SELECT FROM cdp_deadletter WHERE status = 'new' LIMIT %s) AS counted",
        DEAD_LETTERS_COUNTED,
    )


def _heartbeat(own: psycopg.Connection[Any]) -> float | None:
    return _value(
        own,
        "SELECT (SELECT extract(epoch FROM now() - ended_at)::float FROM cdp_taskrun"
        " WHERE task = %s AND status = 'succeeded' ORDER BY started_at DESC LIMIT 1)",
        HEARTBEAT,
    )


def _value(own: psycopg.Connection[Any], query: str, parameter: object) -> Any:
    row = own.execute(query, [parameter]).fetchone()
    return row[0] if row else None


def read_log() -> str:
    """Return the log's name, once its server is seen to be set up rightly."""
    log = open_log(settings.CONFIG.log_url, partitions=settings.CONFIG.log_partitions)
    try:
        log.check()
        return log.name
    finally:
        log.close()


def read_load() -> dict[str, float]:
    """Return by cause how full the log is, from 0 to 1."""
    return pressure.ratios(asyncio.run(_load()), settings.CONFIG.collector_wait_seconds)


async def _load() -> Load:
    log = open_log(settings.CONFIG.log_url, partitions=settings.CONFIG.log_partitions)
    try:
        return await log.load(disk_reserve=settings.CONFIG.log_disk_reserve_bytes)
    finally:
        await log.aclose()
        log.close()


def read_lags(checkpoints: dict[int, Checkpoint]) -> dict[int, int]:
    """Return how many entries of each partition wait to be processed."""
    log = open_log(settings.CONFIG.log_url, partitions=settings.CONFIG.log_partitions)
    try:
        return {partition: log.lag(partition, checkpoint.position) for partition, checkpoint in checkpoints.items()}
    finally:
        log.close()


def _redis(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=GIVE_UP, socket_connect_timeout=GIVE_UP)


def read_keys() -> bool:
    """Tell whether the key store has been filled."""
    with _redis(keys.keys_url(settings.CONFIG)) as client:
        return bool(client.hexists(keys.TABLE, keys.PUBLISHED))


def read_queues() -> dict[str, int]:
    """Return how many tasks wait in each queue of the broker."""
    with _redis(settings.CONFIG.broker_url) as client:
        pipeline = client.pipeline(transaction=False)
        for queue in settings.CELERY_TASK_QUEUES:
            pipeline.llen(queue)
        return dict(zip(settings.CELERY_TASK_QUEUES, pipeline.execute(), strict=True))


def read_cache() -> bool:
    """Tell whether the cache answers."""
    with _redis(settings.CONFIG.cache_url) as client:
        return bool(client.ping())
