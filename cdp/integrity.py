"""Proof that every event row has its profile, which PostgreSQL 18 is not asked to enforce (a third of COPY)."""

from __future__ import annotations

import psycopg
import structlog
from prometheus_client import Counter
from psycopg import sql

from cdp import partitions

PROVEN = Counter("martech_integrity_partitions_total", "Event partitions whose rows were compared with the profiles")
ORPHANS = Counter("martech_integrity_orphans_total", "Event rows found that have no profile; must stay 0")

log = structlog.get_logger("martech.integrity")


def count_orphans(connection: psycopg.Connection, partition: str) -> int:
    """Return how many rows of an event partition have no profile; 0 where it was dropped meanwhile."""
    if partition not in {one.name for one in partitions.existing(connection, partitions.EVENTS)}:
        return 0
    row = connection.execute(
        sql.SQL(
            "SELECT count(*) FROM {} AS event"
            # What concerns an account alone has none.
            " WHERE profile_id IS NOT NULL"
            " AND NOT EXISTS (SELECT FROM customer_profiles AS profile WHERE profile.id = event.profile_id)"
        ).format(sql.Identifier(partition))
    ).fetchone()
    orphans = row[0] if row else 0
    PROVEN.inc()
    ORPHANS.inc(orphans)
    if orphans:
        log.error("events without a profile", partition=partition, events=orphans)
    return int(orphans)
