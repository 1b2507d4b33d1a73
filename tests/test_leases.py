"""Who holds which partitions: shared among the living, taken over from the dead, void for those that come back."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from itertools import chain

import psycopg
import pytest
import redis

from cdp.engines.leases import LeaseLost, Leases
from cdp.log import open_log
from cdp.log.base import Delivery, Entry, Event, encode_entry
from cdp.processing import store
from martech.lib import clock
from martech.lib.errors import ConfigurationError
from tests.platform import append, message
from tests.running import ROOT, wait_until

LOG = "a-log"


@contextmanager
def processor(url, *given, count=8):
    """Register a processor over a session of its own; without a heart it lives for five seconds."""
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        held = Leases(LOG, count, given or None)
        held.register(connection)
        yield held, connection


def settle(*processors, rounds=3):
    """Let processors tend their leases, a few times in turn."""
    for _ in range(rounds):
        for held, connection in processors:
            surplus = held.surplus(connection)
            held.release(connection, surplus)
            held.tend(connection)
    return [sorted(held.held) for held, _ in processors]


def test_one_processor_holds_everything(database_url):
    with processor(database_url) as one:
        assert settle(one) == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_those_that_share_hold_equal_parts_and_a_newcomer_gets_its_own(database_url):
    with processor(database_url) as one, processor(database_url) as two:
        assert settle(one, two) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        with processor(database_url) as three:
            found = settle(one, two, three)
            assert [len(held) for held in found] == [3, 3, 2]
            assert sorted(chain(*found)) == list(range(8))
            one[0].leave(one[1])
            found = settle(two, three)
            assert [len(held) for held in found] == [4, 4]
            assert sorted(chain(*found)) == list(range(8))


def test_given_partitions_are_not_shared(database_url):
    with processor(database_url, 0, 5) as given, processor(database_url) as one, processor(database_url) as two:
        assert settle(given, one, two) == [[0, 5], [1, 2, 3], [4, 6, 7]]
        with processor(database_url, 5) as late:
            assert settle(late) == [[]]


@pytest.mark.parametrize("count", [4, 16])
def test_another_number_of_partitions_is_refused_while_a_processor_lives(database_url, count):
    with processor(database_url) as one:
        settle(one)
        for given in ((), (0,)):
            with (
                pytest.raises(ConfigurationError, match=f"LOG_PARTITIONS is {count} here"),
                processor(database_url, *given, count=count),
            ):
                pass
        assert one[1].execute("SELECT count(*) FROM cdp_processor").fetchone() == (1,)
        one[0].leave(one[1])
        with processor(database_url, count=count) as other, processor(database_url, count=count) as another:
            assert [len(held) for held in settle(other, another)] == [count // 2] * 2


def test_given_partitions_do_not_tell_how_many_there_are(database_url):
    with processor(database_url, 0) as one, processor(database_url, 5) as two:
        assert settle(one, two) == [[0], [5]]


def test_one_that_shares_makes_room_for_one_that_was_given_partitions(database_url):
    with processor(database_url) as one:
        assert settle(one) == [[0, 1, 2, 3, 4, 5, 6, 7]]
        with processor(database_url, 0) as given:
            assert settle(one, given) == [[1, 2, 3, 4, 5, 6, 7], [0]]


def test_a_registration_that_fails_is_no_death(database_url):
    with processor(database_url) as (held, connection):
        held.tend(connection)
        with closing(psycopg.connect(database_url, autocommit=True)) as broken:
            broken.close()
            with pytest.raises(psycopg.OperationalError):
                held.register(broken)
        with closing(psycopg.connect(database_url, autocommit=True)) as again:
            held.register(again)
            held.tend(again)
            assert {one.crashes for one in held.held.values()} == {0}


def test_a_killed_processor_is_buried_at_once(database_url):
    with processor(database_url) as one:
        with processor(database_url) as two:
            assert settle(one, two) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        # The session is gone with its process; the lease has not expired.
        assert settle(one, rounds=1) == [[0, 1, 2, 3, 4, 5, 6, 7]]
        assert [one[0].held[partition].crashes for partition in (0, 7)] == [0, 1]


def test_one_that_stands_still_is_buried_and_its_locks_end(database_url):
    with processor(database_url) as still, processor(database_url) as one:
        settle(still, one)
        still[1].execute("BEGIN")
        store.lock_positions(still[1], LOG, {0: ("", still[0].held[0].epoch)})
        one[1].execute("UPDATE cdp_processor SET expires_at = now() WHERE id = %s", [still[0].id])
        assert settle(one, rounds=1) == [[0, 1, 2, 3, 4, 5, 6, 7]]
        with pytest.raises(psycopg.OperationalError):
            still[1].execute("COMMIT")
        with closing(psycopg.connect(database_url, autocommit=True)) as again:
            with pytest.raises(LeaseLost, match="stood still for so long"):
                still[0].tend(again)
            with pytest.raises(store.StalePosition):
                store.lock_positions(again, LOG, {0: ("", still[0].held[0].epoch)})
            still[0].register(again)
            assert settle(one, (still[0], again)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_new_connection_of_the_same_processor_is_no_death(database_url):
    with processor(database_url) as (held, connection):
        held.tend(connection)
        with closing(psycopg.connect(database_url, autocommit=True)) as again:
            held.register(again)
            assert held.tend(again) == list(range(8))
            assert {one.crashes for one in held.held.values()} == {0}
            assert {one.epoch for one in held.held.values()} == {2}


def test_sessions_that_end_all_at_once_are_no_deaths(database_url):
    with processor(database_url) as one, processor(database_url) as two:
        assert settle(one, two) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        for _, connection in (one, two):
            connection.close()
        with closing(psycopg.connect(database_url, autocommit=True)) as first:
            one[0].register(first)
            assert settle((one[0], first), rounds=1) == [list(range(8))]
            with closing(psycopg.connect(database_url, autocommit=True)) as second:
                two[0].register(second)
                rows = second.execute("SELECT DISTINCT crashes FROM cdp_checkpoint").fetchall()
    assert rows == [(0,)]


def test_taking_over_raises_the_epoch_and_moving_on_forgets_the_deaths(database_url):
    with processor(database_url) as (_, connection):
        for deaths in range(3):
            with processor(database_url) as (held, own):
                held.tend(own)
                assert (held.held[0].epoch, held.held[0].crashes) == (deaths + 1, deaths)
        connection.execute("UPDATE cdp_checkpoint SET trial = '{}'")
        store.move_positions(connection, LOG, {0: "1-1"}, {0: 5})
        row = connection.execute("SELECT position, events, crashes, trial FROM cdp_checkpoint WHERE partition = 0")
        assert row.fetchone() == ("1-1", 5, 0, None)


def environment(url):
    return os.environ | {"DATABASE_URL": url, "LOG_PARTITIONS": "4", "PROCESSOR_BATCH_EVENTS": "50"}


@contextmanager
def running(url):
    """Run a real processor."""
    process = subprocess.Popen(
        [sys.executable, "manage.py", "process_events"], cwd=ROOT, env=environment(url), stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def owners(core):
    """Return how many partitions each processor holds, by its process id."""
    return {row["pid"]: row["n"] for row in core.rows(
        "SELECT pid, count(owner) AS n FROM cdp_processor p LEFT JOIN cdp_checkpoint c ON c.owner = p.id GROUP BY pid"
    )}  # fmt: skip


def test_a_zombie_among_two_processors_costs_nothing(database_url, core):
    with redis.Redis.from_url(os.environ["LOG_URL"]) as server:
        server.flushdb()
    with closing(open_log(os.environ["LOG_URL"], partitions=4)) as log:
        with running(database_url) as one, running(database_url) as two:
            wait_until(lambda: owners(core) == {one.pid: 2, two.pid: 2}, 30)
            send(log, 2000)
            wait_until(lambda: len(core.events()) > 200)
            os.kill(one.pid, signal.SIGSTOP)
            stopped = time.monotonic()
            try:
                wait_until(lambda: owners(core) == {two.pid: 4}, 15)
                assert time.monotonic() - stopped < 10
                wait_until(lambda: len(core.events()) == 2000)
            finally:
                os.kill(one.pid, signal.SIGCONT)
            send(log, 1000)
            wait_until(lambda: len(core.events()) == 3000)
            wait_until(lambda: owners(core) == {one.pid: 2, two.pid: 2}, 15)
    assert {row["n"] for row in core.rows("SELECT computed_traits->'event_count' AS n FROM customer_profiles")} == {30}
    assert core.letters() == []


def send(log, count):
    payloads = []
    for number in range(0, count, 10):
        user = number // 10 % 100
        events = [Event("", "", 0, _body(f"u{user}")) for _ in range(10)]
        payloads.append((user % 4, encode_entry(Entry([Delivery(1, clock.now_us(), "", b"", b"", events)]))))
    append(log, payloads)


def _body(user):
    return json.dumps(message(userId=user)).encode()
