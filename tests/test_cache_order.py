"""Two processors and one cache: whoever comes late with what it committed puts nothing older there."""

import json
import os
from contextlib import closing
from dataclasses import replace

import psycopg
import pytest
import redis

from cdp import config as cdp_config
from cdp.engines.local import LocalEngine
from cdp.engines.reading import Ahead
from cdp.log import open_log
from cdp.log.base import Delivery, Entry, Event, encode_entry
from cdp.profiles import ProfileCache
from martech.lib import clock
from tests.platform import append, message
from tests.running import wait_until
from tests.test_local_engine import read_profile

pytestmark = pytest.mark.usefixtures("core")


@pytest.fixture
def config(database_url):
    for role in ("LOG_URL", "CACHE_URL"):
        redis.Redis.from_url(os.environ[role]).flushdb()
    return replace(cdp_config.load(), database_url=database_url, log_partitions=2)


def send(config, partition, *messages):
    """Append messages as one entry and return its token."""
    events = [Event("", "", 0, json.dumps(one).encode()) for one in messages]
    with closing(open_log(config.log_url, partitions=2)) as log:
        payload = encode_entry(Entry([Delivery(1, clock.now_us(), "", b"", b"", events)]))
        return f"{partition}.{append(log, [(partition, payload)])[0]}"


class Processor:
    """An engine that is told when to commit and when to show."""

    def __init__(self, config, partition):
        self.log = open_log(config.log_url, partitions=2)
        self.engine = LocalEngine(config, self.log, partitions=[partition])

    def __enter__(self):
        self._connected = self.engine._connected()
        self.connection = self._connected.__enter__()
        self.engine._cover(self.connection)
        self.engine._take_over(self.connection)
        return self

    def __exit__(self, *exc):
        self._connected.__exit__(*exc)
        self.log.close()

    def commit(self):
        """Commit what is in the log, and let what is shown wait."""
        self.engine.flushing._lsns = lambda connection: (2**62, 0)
        self.engine._commit(self.connection, Ahead(self.log, self.engine._positions()).take(max_events=100, wait=0))

    def show(self):
        """Let the cache show what was committed."""
        self.engine.flushing.flush(self.connection)


def test_the_newer_document_stays_whichever_comes_last(config):
    with Processor(config, 0) as one, Processor(config, 1) as two:
        send(config, 0, message(userId="ann"))
        one.commit()
        send(config, 1, message(userId="ann", anonymousId="a"))
        two.commit()
        two.show()
        one.show()
        assert read_profile(config, "user_id", "ann")["computed_traits"]["event_count"] == 2
        with psycopg.connect(config.database_url) as connection:
            connection.execute("UPDATE customer_profiles SET computed_traits = '{}'")
        # It is there: PostgreSQL was not asked.
        assert read_profile(config, "user_id", "ann")["computed_traits"]["event_count"] == 2


def test_a_merged_profile_does_not_come_back(config):
    with Processor(config, 0) as one, Processor(config, 1) as two:
        send(config, 0, message(anonymousId="a"), message(userId="ann"))
        one.commit()
        send(config, 1, message("identify", userId="ann", anonymousId="a"))
        two.commit()
        two.show()
        one.show()
        known = [read_profile(config, *identifier) for identifier in (("user_id", "ann"), ("anonymous_id", "a"))]
        assert [one["computed_traits"]["event_count"] for one in known] == [3, 3]
        assert known[0]["id"] == known[1]["id"]


def test_what_the_dead_did_not_come_to_show_is_shown_by_who_takes_over(config):
    with Processor(config, 0) as dead, Processor(config, 0) as heir:
        send(config, 0, message(userId="ann"))
        dead.commit()
        dead.show()
        token = send(config, 0, message(userId="ann"))
        dead.commit()
        assert read_profile(config, "user_id", "ann")["computed_traits"]["event_count"] == 1
        dead.connection.close()
        wait_until(lambda: heir.engine._take_over(heir.connection))
        assert read_profile(config, "user_id", "ann", token)["computed_traits"]["event_count"] == 2


def test_a_cache_that_failed_before_an_orderly_hand_over_shows_nothing_stale(config):
    with Processor(config, 0) as one:
        send(config, 0, message("identify", userId="ann", traits={"plan": "one"}))
        one.commit()
        one.show()
        token = send(config, 0, message("identify", userId="ann", traits={"plan": "two"}))
        one.commit()
        working, one.engine.cache._redis = one.engine.cache._redis, redis.Redis.from_url("redis://127.0.0.1:1/0")
        one.show()
        one.engine.leases.leave(one.connection)
        working.close()
    with Processor(config, 0):
        assert read_profile(config, "user_id", "ann", token)["traits"] == {"plan": "two"}


def test_a_position_goes_on_once_the_cache_is_back_and_never_back(config):
    server = redis.Redis.from_url(config.cache_url)
    cache, late = ProfileCache(config.cache_url), ProfileCache(config.cache_url)
    assert cache.write([], [], [], {0: "9-0", 1: "1-0"})
    working, cache._redis = cache._redis, redis.Redis.from_url("redis://127.0.0.1:1/0")
    assert not cache.write([], [], [], {0: "10-0"})
    assert not cache.heal()
    cache._redis = working
    assert cache.heal()
    assert server.mget("at:0", "at:1") == [b"10-0", b"1-0"]
    for position in ("9-7", "10-0", "9-99999999999999999999"):
        late.write([], [], [], {0: position})
    assert server.get("at:0") == b"10-0"
    late.write([], [], [], {0: "10-1"})
    assert server.get("at:0") == b"10-1"
    cache.set_positions({0: "3-0"})
    assert server.get("at:0") == b"3-0"
    cache.close()
    late.close()


def test_readers_put_what_did_not_change_back_after_a_new_epoch(config, core):
    with Processor(config, 0) as one:
        send(config, 0, message(userId="ann"))
        one.commit()
        one.show()
        one.engine.cache.start_epoch()
        core.connection.execute("UPDATE customer_profiles SET timestamp = timestamp - interval '1 minute'")
        assert read_profile(config, "user_id", "ann")["computed_traits"]["event_count"] == 1
        core.connection.execute("UPDATE customer_profiles SET computed_traits = '{}'")
        # PostgreSQL is not asked again.
        assert read_profile(config, "user_id", "ann")["computed_traits"]["event_count"] == 1
        [key] = redis.Redis.from_url(config.cache_url).keys("p:*")
        assert 0 < redis.Redis.from_url(config.cache_url).ttl(key) <= 60
