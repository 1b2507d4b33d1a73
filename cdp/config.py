"""Settings of the processes that do not know Django (collector, processor), from the environment.

`martech.settings` builds on the same object, so that each setting is declared once.
"""

import os
from dataclasses import dataclass
from typing import Any

from martech.lib import crypto, env

POSTGRESQL = ("postgresql", "postgres")
REDIS = ("redis", "rediss", "unix")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Where the servers are, and the limits of the hot path. Sizes are bytes, times seconds."""

    database_url: str
    log_url: str
    broker_url: str
    cache_url: str
    log_partitions: int
    collector_flush_seconds: float
    collector_queue_bytes: int
    collector_request_bytes: int
    collector_event_bytes: int
    collector_clock_skew_seconds: float
    collector_trusted_proxies: tuple[str, ...]
    collector_wait_seconds: float
    log_disk_reserve_bytes: int
    source_quota: int
    processor_batch_events: int
    processor_poll_seconds: float
    event_partition_days: int
    processor_queue_bytes: int
    duplicate_window_days: int
    duplicate_window_ids: int
    privacy_key: bytes


def load() -> Config:
    """Read the configuration; ConfigurationError names the variable that cannot be used."""
    return Config(**_addresses(), **_collector(), **_pressure(), **_processor(), privacy_key=_privacy_key())


def _addresses() -> dict[str, Any]:
    return {
        "database_url": env.url("DATABASE_URL", "", "PostgreSQL 15–18; empty: the embedded server", schemes=POSTGRESQL),
        "log_url": env.url(
            "LOG_URL",
            "",
            "The event log; empty: an embedded Valkey that fsyncs always",
            schemes=(*REDIS, "kafka", "kinesis", "memory"),
        ),
        "broker_url": env.url("BROKER_URL", "", "Celery's broker; empty: an embedded Valkey", schemes=REDIS),
        "cache_url": env.url("CACHE_URL", "", "The profile cache; empty: an embedded Valkey", schemes=REDIS),
    }


def _collector() -> dict[str, Any]:
    return {
        "log_partitions": env.integer(
            "LOG_PARTITIONS", 8, "Partitions of the log; drain it before you change this", minimum=1, maximum=1024
        ),
        "collector_flush_seconds": env.seconds(
            "COLLECTOR_FLUSH_SECONDS", 0.003, "How long events gather before one append to the log"
        ),
        "collector_queue_bytes": env.integer(
            "COLLECTOR_QUEUE_BYTES", 64 * 2**20, "Bytes a web worker holds unacknowledged before it answers 429"
        ),
        "collector_request_bytes": env.integer(
            "COLLECTOR_REQUEST_BYTES", 4 * 2**20, "Largest request body, after decompression; 413 above"
        ),
        "collector_event_bytes": env.integer(
            "COLLECTOR_EVENT_BYTES", 32 * 2**10, "Largest event; a larger one goes to the dead letters alone"
        ),
        "collector_clock_skew_seconds": env.seconds(
            "COLLECTOR_CLOCK_SKEW_SECONDS", 60.0, "A client clock is corrected when it is off by more than this"
        ),
        "collector_trusted_proxies": tuple(
            env.names("COLLECTOR_TRUSTED_PROXIES", "", "Addresses or networks whose X-Forwarded-For is believed")
        ),
    }


def _pressure() -> dict[str, Any]:
    return {
        "collector_wait_seconds": env.seconds(
            "COLLECTOR_WAIT_SECONDS", 86400.0, "Wait of the oldest event at which the log counts as full; 0: none does"
        ),
        "log_disk_reserve_bytes": 2**20
        * env.integer(
            "LOG_DISK_RESERVE_MB", 512, "Free MiB on the log's disk below which tracking calls get 429; 0: none"
        ),
        "source_quota": env.integer(
            "SOURCE_QUOTA", 1000, "Events a second and web worker that a source may send while the log fills up"
        ),
    }


def _processor() -> dict[str, Any]:
    return {
        "processor_batch_events": env.integer(
            "PROCESSOR_BATCH_EVENTS", 20_000, "Events in one transaction at the most", minimum=1
        ),
        "processor_poll_seconds": env.seconds(
            "PROCESSOR_POLL_SECONDS", 0.05, "How long the processor waits for new log entries in one read"
        ),
        "processor_queue_bytes": env.integer(
            "PROCESSOR_QUEUE_BYTES", 64 * 2**20, "Bytes of events a processor reads ahead, and puts in one transaction"
        ),
        "event_partition_days": env.integer(
            "EVENT_PARTITION_DAYS", 1, "Days of events in one table partition", minimum=1, maximum=366
        ),
        "duplicate_window_days": env.integer(
            "DUPLICATE_WINDOW_DAYS", 3, "Days in which a repeated message id is recognised", minimum=1, maximum=366
        ),
        "duplicate_window_ids": env.integer(
            "DUPLICATE_WINDOW_IDS",
            500_000_000,
            "Message ids that are recognised at the most; the older ones go first, though their days are not over",
            minimum=1,
        ),
    }


def _privacy_key() -> bytes:
    """Return the key of erased people's hashes: of PRIVACY_KEY, else of SECRET_KEY; b"" where neither is set."""
    given = env.text(
        "PRIVACY_KEY",
        "",
        "Hashes the identifiers of erased people, which keeps them out; empty: made of SECRET_KEY. Never change either",
    )
    return crypto.derived(given or os.environ.get("SECRET_KEY", ""), "martech.privacy")
