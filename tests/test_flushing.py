"""What waits for the disk: a crash of PostgreSQL takes back commits, and nobody has seen them or counts on them."""

import os
import signal
import subprocess
import tempfile
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import redis
from psycopg import sql

from cdp import config as cdp_config
from cdp.engines.local import LocalEngine
from cdp.engines.reading import Ahead
from cdp.log import open_log
from martech.embedded.postgres import PostgresServer
from tests.platform import Core, message
from tests.running import wait_until
from tests.test_local_engine import read_profile, send

# Nothing is flushed unless somebody asks for it.
LAZY = {"wal_writer_delay": "10s", "autovacuum": "off", "shared_buffers": "32MB"}


class Server:
    """A PostgreSQL server that can be crashed."""

    def __init__(self, home):
        self.postgres = PostgresServer(home / "pg", home / "s")
        self.postgres.prepare(durable=False)
        self.url = self.postgres.url()
        self.start()

    def start(self):
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(
            self.postgres.command(**LAZY), stdin=null, stdout=null, stderr=null, start_new_session=True
        )
        wait_until(lambda: _answers(self.postgres.url("postgres")))

    def stop(self, number=signal.SIGQUIT):
        """End it at once, without a checkpoint."""
        self.process.send_signal(number)
        self.process.wait(20)


def _answers(url):
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def server(_migrated):
    """Return a server of the test's own with a migrated database."""
    # Short, since a Unix socket's path may have 107 bytes at the most.
    with tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp") as home:
        Path(home).chmod(0o711)
        server = Server(Path(home))
        try:
            _copy_schema(_migrated, server.postgres)
            yield server
        finally:
            server.stop()


def _copy_schema(migrated, postgres):
    from martech.embedded.postgres import binaries

    with psycopg.connect(postgres.url("postgres"), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE martech"))
    source = os.environ["DATABASE_URL"].replace("/martech?", f"/{migrated}?")
    dump = subprocess.run([binaries() / "pg_dump", "--no-owner", source], check=True, capture_output=True)
    subprocess.run([binaries() / "psql", "-q", "-v", "ON_ERROR_STOP=1", postgres.url()], input=dump.stdout, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip


@pytest.fixture
def config(server):
    for role in ("LOG_URL", "CACHE_URL"):
        redis.Redis.from_url(os.environ[role]).flushdb()
    return replace(cdp_config.load(), database_url=server.url, log_partitions=4)


@contextmanager
def processing(config, log):
    """Give an engine that holds everything and its connection; its heart stands still, since it flushes."""
    engine = LocalEngine(config, log)
    with engine._connected() as connection:
        engine.heart.stop()
        engine._cover(connection)
        engine._take_over(connection)
        connection.execute("CHECKPOINT")
        yield engine, connection


def commit(engine, connection):
    batch = Ahead(engine.log, engine._positions()).take(max_events=100, wait=0)
    engine._commit(connection, batch)
    return batch


def test_the_cache_and_the_log_wait_for_the_disk(config):
    with closing(open_log(config.log_url, partitions=4)) as log:
        send(log, message(userId="u1"))
        with closing(Core(config.database_url)), processing(config, log) as (engine, connection):
            cache = redis.Redis.from_url(config.cache_url)
            batch = commit(engine, connection)
            assert (bool(engine.flushing), engine.flushing.positions) == (True, {})
            assert cache.keys("p:*") == []
            engine.flushing.flush(connection)
            assert (bool(engine.flushing), engine.flushing.positions) == (False, batch.positions)
            assert len(cache.keys("p:*")) == 1
            engine.leases.leave(connection)


def test_many_batches_do_not_wait_for_ever(config):
    with closing(open_log(config.log_url, partitions=4)) as log:
        with closing(Core(config.database_url)) as core, processing(config, log) as (engine, connection):
            for number in range(4):
                send(log, message(userId=f"u{number}"))
                commit(engine, connection)
            assert not engine.flushing
            assert len(core.events()) == 4
            assert len(redis.Redis.from_url(config.cache_url).keys("p:*")) == 4


def test_a_crash_takes_back_what_nobody_saw_and_the_log_still_has_it(config, server):
    with closing(Core(config.database_url)), closing(open_log(config.log_url, partitions=4)) as log:
        send(log, message(userId="u1"))
        LocalEngine(config, log).drain()
        token = send(log, message(userId="u1"))
        cache = redis.Redis.from_url(config.cache_url)
        with suppress(psycopg.OperationalError), processing(config, log) as (engine, connection):
            epoch = cache.get("epoch")
            commit(engine, connection)
            engine._trim()
            assert read_profile(config, "user_id", "u1")["computed_traits"]["event_count"] == 2
            # The reader saw what PostgreSQL says, and did not put it into the cache.
            [key] = cache.keys("p:*")
            assert b'"event_count":1' in cache.get(key)
            server.stop()
        server.start()
        with closing(Core(config.database_url)) as core:
            assert len(core.events()) == 1
            assert engine.drain() == 1
            assert int(cache.get("epoch")) > int(epoch)
            assert len(core.events()) == 2
        assert read_profile(config, "user_id", "u1", token)["computed_traits"]["event_count"] == 2


def test_only_the_processor_commits_without_waiting(config, server):
    with closing(open_log(config.log_url, partitions=4)) as log, processing(config, log) as (_, connection):
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("off",)
    with psycopg.connect(server.url) as other:
        assert other.execute("SHOW synchronous_commit").fetchone() == ("on",)
