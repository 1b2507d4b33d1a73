"""A processor over a test's own database: messages in, rows out."""

import asyncio
import itertools
import json

import psycopg
from psycopg.rows import dict_row

from cdp.log.base import Delivery, Event
from cdp.processing.pipeline import Pipeline, arrive
from martech.lib import clock

_numbers = itertools.count(1)


def message(kind="track", **fields):
    """Return a message as an SDK would send it, with an id of its own."""
    defaults = {"type": kind, "messageId": f"m{next(_numbers)}"} | ({"event": "Clicked"} if kind == "track" else {})
    return defaults | fields


def append(log, payloads):
    """Append (partition, payload) pairs to a log and return their positions."""

    async def run():
        try:
            return await log.append(payloads)
        finally:
            await log.aclose()

    return asyncio.run(run())


def load(log, *, disk_reserve=0):
    """Return how full a log is."""

    async def run():
        try:
            return await log.load(disk_reserve=disk_reserve)
        finally:
            await log.aclose()

    return asyncio.run(run())


class Core:
    """The core over one connection, and looks at what it wrote."""

    def __init__(self, url: str, *, has_source: bool = False) -> None:
        self.url = url
        self.connection = psycopg.connect(url, autocommit=True, row_factory=dict_row)
        self.writer = psycopg.connect(url, autocommit=True)
        self.pipeline = Pipeline()
        if not has_source:
            self.source("server")

    def source(self, kind, rules=None):
        """Add a source and return its id."""
        row = self.connection.execute(
            "INSERT INTO cdp_source (name, kind, write_key, enabled, rules, created_at)"
            " VALUES (%s, %s, %s, true, %s, now()) RETURNING id",
            [f"s{next(_numbers)}", kind, f"wk{next(_numbers)}", json.dumps(rules or {})],
        ).fetchone()
        self.connection.execute("UPDATE cdp_definitionversion SET version = version + 1")
        return row["id"]

    def apply(self, *messages, source=1, received_us=None, **delivery):
        """Send messages through the core as one batch and return what it did."""
        return self.take(self.arrivals(*messages, source=source, received_us=received_us, **delivery))

    def take(self, arrivals):
        """Send arrivals through the core as one batch and return what it did."""
        with self.writer.transaction():
            applied = self.pipeline.apply(self.writer, arrivals)
        self.pipeline.remember(applied)
        return applied

    def arrivals(self, *messages, source=1, received_us=None, **delivery):
        """Return messages as they come from the log."""
        given = Delivery(
            source, received_us or clock.now_us(), delivery.get("ip", ""), delivery.get("context", b""), b"", []
        )
        return [
            arrive(Event("", "", 0, one if isinstance(one, bytes) else json.dumps(one).encode()), given)
            for one in messages
        ]

    def rows(self, query, *values):
        """Return the rows of a query as dicts."""
        return self.connection.execute(query, values).fetchall()

    def events(self):
        """Return all event rows in the order in which they were written."""
        return self.rows("SELECT * FROM event_stream ORDER BY event_id")

    def letters(self):
        """Return the reasons of all dead letters, oldest first."""
        return [row["reason"] for row in self.rows("SELECT reason FROM cdp_deadletter ORDER BY id")]

    def profile(self, identifier):
        """Return the profile row that an identifier ("user_id:u1") belongs to, None where it is unknown."""
        namespace, _, value = identifier.partition(":")
        found = self.rows(
            "SELECT p.* FROM customer_profiles p JOIN cdp_identifier i ON i.profile_id = p.id"
            " WHERE i.namespace = %s AND i.value = %s",
            namespace,
            value,
        )
        return found[0] if found else None

    def close(self):
        """Let go of the connections."""
        self.connection.close()
        self.writer.close()
