"""A collector in this process over the session's log server, and looks at what it put there."""

import base64
import json
import os
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NamedTuple

import httpx
import msgspec
import redis

from cdp import config as configuration
from cdp.collector.application import create_application
from cdp.collector.keys import CHANNEL, PUBLISHED, TABLE, ApiKey, WriteKey, hash_key
from cdp.log import open_log
from cdp.log.base import Delivery, Event, decode_entry

# A database of its own: the key tables of Django's tests go to 0.
LOG_URL = f"{os.environ['LOG_URL']}?db=5"
CACHE_URL = f"{os.environ['CACHE_URL']}?db=5"
SERVER, BROWSER, OTHER, READER = "wk_server", "wk_browser", "wk_other", "mk_reader"
KEYS = {
    SERVER: WriteKey(source_id=1),
    BROWSER: WriteKey(source_id=2, source_kind="browser"),
    OTHER: WriteKey(source_id=3),
    READER: ApiKey(key_id=1, scopes=["profiles:read"]),
}


class Logged(NamedTuple):
    """One event in the log, and where it lies."""

    partition: int
    position: str
    delivery: Delivery
    event: Event

    @property
    def message(self):
        return json.loads(self.event.body)


def publish(keys, url=LOG_URL, stamp="1"):
    """Fill the key table as `cdp.keys.publish_keys` does, with keys that PostgreSQL does not know."""
    rows = {hash_key(key): msgspec.json.encode(row) for key, row in keys.items()}
    with redis.Redis.from_url(url) as store, store.pipeline() as pipeline:
        pipeline.delete(TABLE)
        pipeline.hset(TABLE, mapping=rows | {PUBLISHED: stamp})
        pipeline.publish(CHANNEL, stamp)
        pipeline.execute()


def basic(key):
    """Return the header by which SDKs send a write key."""
    return {"Authorization": "Basic " + base64.b64encode(f"{key}:".encode()).decode()}


def config(**changes):
    """Return the configuration of a collector under test."""
    return replace(configuration.load(), **({"log_url": LOG_URL, "cache_url": CACHE_URL} | changes))


class Collecting:
    """A running collector and a client of it."""

    def __init__(self, application, settings, client):
        self.application, self.config, self.client = application, settings, client

    async def post(self, path, body, *, key=SERVER, headers=None):
        """Send a body (what is not bytes, as JSON) with a write key (None: without one)."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        auth = {} if key is None else basic(key)
        return await self.client.post(path, content=content, headers=auth | (headers or {}))

    def logged(self):
        """Return the events in the log, by partition and position."""
        log = open_log(self.config.log_url, partitions=self.config.log_partitions)
        found = log.read(dict.fromkeys(range(log.partitions), ""), limit=1000, wait=0.001)
        log.close()
        return [
            Logged(partition, stored.position, delivery, event)
            for partition, entries in sorted(found.items())
            for stored in entries
            for delivery in decode_entry(stored.payload).deliveries
            for event in delivery.events
        ]


@asynccontextmanager
async def collecting(*, keys=KEYS, then=None, peer="192.0.2.7", log=None, **changes):
    """Run a collector over an empty log and cache with some keys published; `changes` are of its configuration."""
    settings = config(**changes)
    if log is None and settings.log_url == LOG_URL:
        for url in (LOG_URL, CACHE_URL):
            with redis.Redis.from_url(url) as store:
                store.flushdb()
        publish(keys)
    log = log or open_log(settings.log_url, partitions=settings.log_partitions)
    application = create_application(settings, log, then=then)
    transport = httpx.ASGITransport(application, client=(peer, 40000))
    async with (
        application.running(),
        httpx.AsyncClient(transport=transport, base_url="http://cdp.example:8000") as client,
    ):
        yield Collecting(application, settings, client)
