"""System checks of the platform as a whole.

Those of settings run with every command; those of PostgreSQL where Django is told to look at it (`migrate`,
`check --database default`); those of the Redis servers with `check --deploy`, and all of them by `doctor`.
Worker and beat refuse to start on what `celery_settings` and `redis_broker` find.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import redis
from celery.exceptions import QueueNotFound
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.files.storage import InvalidStorageError, storages
from django.db import DatabaseError, connections
from redis.exceptions import RedisError

from cdp.log import open_log
from cdp.processing import suppression
from martech.lib.errors import ConfigurationError, MartechError

Found = list[checks.CheckMessage]

LOOPBACK = {"localhost", "127.0.0.1", "[::1]", "::1", ".localhost"}
KEY_LENGTH = 50
KEY_VARIETY = 5
POSTGRESQL = (15, 18)
TIMEOUT = 2.0


@checks.register(checks.Tags.security)
def secrets(**_: Any) -> Found:
    """Find what would let strangers in."""
    found: Found = []
    public = sorted(set(settings.ALLOWED_HOSTS) - LOOPBACK)
    if settings.DEBUG and public:
        found.append(
            checks.Error(
                f"DEBUG is on while the web process answers to {', '.join(public)}: error pages tell too much.",
                hint="Unset DEBUG, or keep ALLOWED_HOSTS to this machine.",
                id="martech.E001",
            )
        )
    if len(settings.SECRET_KEY) < KEY_LENGTH or len(set(settings.SECRET_KEY)) < KEY_VARIETY:
        found.append(
            checks.Error(
                "SECRET_KEY is weak: whoever guesses it can sign in as anybody.",
                hint=f"Set it to {KEY_LENGTH} or more random characters, or unset it and let `make up` make one.",
                id="martech.E002",
            )
        )
    return found


@checks.register
def redis_roles(**_: Any) -> Found:
    """Find Redis servers that were given two roles which need opposite settings."""
    config = settings.CONFIG
    found: Found = []
    log, broker, cache = (_server(url) for url in (config.log_url, config.broker_url, config.cache_url))
    for role, server, loses in (("LOG_URL", log, "acknowledged events"), ("BROKER_URL", broker, "tasks")):
        if cache and cache == server:
            found.append(
                checks.Error(
                    f"CACHE_URL and {role} name one server. A cache evicts when it is full, which loses {loses}.",
                    hint="Run the cache as a server of its own (maxmemory-policy allkeys-lru).",
                    id="martech.E003",
                )
            )
    if log and log == broker:
        found.append(
            checks.Warning(
                "LOG_URL and BROKER_URL name one server: tasks that pile up leave no room for events.",
                hint="Run the broker as a server of its own.",
                id="martech.W004",
            )
        )
    return found


def _server(url: str) -> tuple[str, int] | None:
    """Return what tells one server from another, whichever of its databases the address names."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path, 0
    host = parts.hostname or ""
    return ("localhost" if host in LOOPBACK else host, parts.port or 6379) if host else None


@checks.register
def archive(**_: Any) -> Found:
    """Find an archive that cannot be written."""
    if not settings.ARCHIVE_EVENTS:
        return []
    found: Found = []
    if find_spec("pyarrow") is None:
        found.append(
            checks.Error(
                "ARCHIVE_EVENTS is on, and pyarrow is missing: nothing is archived, so nothing is ever dropped.",
                hint="pip install 'martech[archive]', or pip install pyarrow.",
                id="martech.E005",
            )
        )
    try:
        storages["archive"]
    except (InvalidStorageError, ImproperlyConfigured, ImportError, TypeError) as error:
        found.append(
            checks.Error(
                f"The archive's storage cannot be used: {error}.",
                hint="Correct ARCHIVE_STORAGE and ARCHIVE_OPTIONS, and install what the storage needs.",
                id="martech.E006",
            )
        )
    return found


# What Celery must be told, and what goes wrong otherwise.
CELERY: dict[str, tuple[Any, str]] = {
    "task_acks_late": (True, "a worker that is killed takes its tasks with it"),
    "task_reject_on_worker_lost": (True, "a task whose process is killed counts as done"),
    "task_ignore_result": (True, "results fill the broker"),
    "task_serializer": ("json", "whoever writes to the broker could run code"),
    "accept_content": (["json"], "whoever writes to the broker could run code"),
    "task_create_missing_queues": (False, "a misspelt queue takes tasks that nobody works on"),
    "worker_prefetch_multiplier": (1, "a busy worker keeps tasks from idle ones"),
    "worker_enable_remote_control": (False, "whoever writes to the broker could stop workers"),
    "broker_connection_retry_on_startup": (True, "a worker that starts before its broker gives up"),
}


@checks.register
def celery_settings(**_: Any) -> Found:
    """Find settings with which Celery would lose tasks, or run them twice at a time."""
    from martech.celery import app

    found: Found = [
        checks.Error(
            f"Celery's {name} is {app.conf[name]!r}: {consequence}.",
            hint=f"Set CELERY_{name.upper()} = {wanted!r} in martech/settings.py.",
            id="martech.E010",
        )
        for name, (wanted, consequence) in CELERY.items()
        if app.conf[name] != wanted
    ]
    return found + _redelivery(app) + _tasks(app)


def _redelivery(app: Any) -> Found:
    found: Found = []
    places = {
        "broker_transport_options": app.conf.broker_transport_options.get("visibility_timeout"),
        "result_backend_transport_options": app.conf.result_backend_transport_options.get("visibility_timeout"),
        "the application": app.conf.get("visibility_timeout"),
    }
    if len(set(places.values())) > 1:
        told = ", ".join(f"{value} in {place}" for place, value in places.items())
        found.append(
            checks.Error(
                f"Celery's visibility_timeout differs: {told}. The shortest counts, and tasks run twice at a time.",
                hint="Set TASK_REDELIVERY_SECONDS alone, which goes to all three.",
                id="martech.E011",
            )
        )
    if settings.TASK_REDELIVERY_SECONDS <= settings.TASK_SECONDS:
        found.append(
            checks.Error(
                f"A task may run for {settings.TASK_SECONDS} s and is delivered again after "
                f"{settings.TASK_REDELIVERY_SECONDS} s: it would run twice at a time.",
                hint="Set TASK_REDELIVERY_SECONDS well above TASK_SECONDS.",
                id="martech.E012",
            )
        )
    return found


def _tasks(app: Any) -> Found:
    from martech.task import Task

    found: Found = []
    for name, task in sorted(app.tasks.items()):
        if name.startswith("celery."):
            continue
        if not isinstance(task, Task) or not task.acks_late or not task.reject_on_worker_lost or not task.ignore_result:
            found.append(
                checks.Error(
                    f"The task {name} does without what martech.task.Task promises: ids only, late acknowledgement, "
                    "counted starts.",
                    hint="Declare it by @shared_task, without base, acks_late, reject_on_worker_lost or ignore_result.",
                    id="martech.E013",
                )
            )
        try:
            app.amqp.router.route({}, name)
        except QueueNotFound as error:
            found.append(
                checks.Error(
                    f"The task {name} goes to a queue that no worker reads: {error}.",
                    hint=f"Route it to one of {', '.join(settings.CELERY_TASK_QUEUES)}, in CELERY_TASK_ROUTES.",
                    id="martech.E014",
                )
            )
    return found


@checks.register(checks.Tags.database)
def postgresql(databases: Sequence[str] | None = None, **_: Any) -> Found:
    """Find a server that we were not made for, partitions that nobody would read, and a changed PRIVACY_KEY."""
    if "default" not in (databases or ()):
        return []
    connection: Any = connections["default"]
    try:
        found = _version(connection.pg_version // 10000)
        tables = connection.introspection.table_names()
        if "cdp_checkpoint" in tables:
            found += _partitions(connection)
        if "cdp_suppressedidentifier" in tables:
            found += _privacy_key(connection)
    except DatabaseError as error:
        return [
            checks.Error(
                f"PostgreSQL cannot be asked: {error}.".replace("\n", " "),
                hint="Start it, or correct DATABASE_URL.",
                id="martech.E020",
            )
        ]
    return found


def _privacy_key(connection: Any) -> Found:
    """Find another key than the one by which erased people are kept out."""
    try:
        suppression.is_needed(connection.connection, settings.CONFIG.privacy_key)
    except ConfigurationError as error:
        return [checks.Error(error.message, hint="Until then processors stand still.", id="martech.E023")]
    return []


def _version(version: int) -> Found:
    oldest, newest = POSTGRESQL
    if oldest <= version <= newest:
        return []
    kind = checks.Error if version < oldest else checks.Warning
    return [
        kind(
            f"PostgreSQL {version} is not one of those the platform is tested with, {oldest} to {newest}.",
            hint="Point DATABASE_URL at one of them, or unset it to use the embedded server.",
            id="martech.E021" if version < oldest else "martech.W021",
        )
    ]


def _partitions(connection: Any) -> Found:
    wanted = settings.CONFIG.log_partitions
    with connection.cursor() as cursor:
        cursor.execute("SELECT log, max(partition) + 1 FROM cdp_checkpoint GROUP BY log ORDER BY max(updated_at)")
        rows = cursor.fetchall()
    if not rows or rows[-1][1] == wanted:
        return []
    log, before = rows[-1]
    message = f"LOG_PARTITIONS is {wanted}, and {log} was processed in {before} partitions"
    hint = (
        f"Stop the collectors, let the processor drain the log with LOG_PARTITIONS={before}, then delete the rows of "
        "cdp_checkpoint and change the number."
    )
    if wanted < before:
        return [checks.Error(f"{message}: what is left in the others is never read.", hint=hint, id="martech.E022")]
    return [checks.Warning(f"{message}: one person's events may overtake each other.", hint=hint, id="martech.W022")]


@checks.register("servers", deploy=True)
def event_log(**_: Any) -> Found:
    """Find an event log that may lose what it acknowledged."""
    config = settings.CONFIG
    try:
        log = open_log(config.log_url, partitions=config.log_partitions)
        try:
            log.check()
        finally:
            log.close()
    except ConfigurationError as error:
        return [
            checks.Error(error.message, hint="The README's table of servers says how to run it.", id="martech.E030")
        ]
    except MartechError as error:
        return [checks.Error(error.message, hint="Start it, or correct LOG_URL.", id="martech.E031")]
    return []


@checks.register("servers", deploy=True)
def redis_broker(**_: Any) -> Found:
    """Find a broker that evicts. One that is away is not wrong: worker and beat wait for it."""
    try:
        with redis.Redis.from_url(settings.CONFIG.broker_url, socket_timeout=TIMEOUT) as client:
            policy = client.info("memory").get("maxmemory_policy")
    except (RedisError, OSError):
        return []
    if policy in (None, "noeviction"):
        return []
    return [
        checks.Error(
            f"The broker's server has maxmemory-policy {policy}: when it is full it deletes tasks, and the bindings of "
            "its queues.",
            hint="Set `maxmemory-policy noeviction` there, or give BROKER_URL a server of its own.",
            id="martech.E032",
        )
    ]
