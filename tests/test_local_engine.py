"""The local engine: from the log to committed rows, whoever dies on the way."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import redis

from cdp import config as cdp_config
from cdp.engines.leases import connect
from cdp.engines.local import LocalEngine, parse_partitions
from cdp.engines.reading import Ahead, Reader
from cdp.log import open_log
from cdp.log.base import Delivery, Entry, Event, encode_entry, partition_of
from cdp.processing.store import Raced, StalePosition
from cdp.profiles import ProfileReader
from martech.lib import clock
from martech.lib.errors import ConfigurationError, PermanentError
from tests.platform import append, message

MANAGE = Path(__file__).parent.parent / "manage.py"


@pytest.fixture
def config(database_url, core):
    for role in ("LOG_URL", "CACHE_URL"):
        redis.Redis.from_url(os.environ[role]).flushdb()
    return replace(cdp_config.load(), database_url=database_url, log_partitions=4, processor_poll_seconds=0.01)


@pytest.fixture
def log(config):
    opened = open_log(config.log_url, partitions=config.log_partitions)
    yield opened
    opened.close()


def send(log, *messages):
    """Append messages as the collector would, an entry a partition, and return a position token."""
    entries = {}
    for one in messages:
        anchor = f"user_id:{one['userId']}" if "userId" in one else f"anonymous_id:{one['anonymousId']}"
        event = Event("", "", 0, json.dumps(one).encode())
        entries.setdefault(partition_of(anchor, log.partitions), []).append(event)
    payloads = [
        (partition, encode_entry(Entry([Delivery(1, clock.now_us(), "", b"", b"", events)])))
        for partition, events in entries.items()
    ]

    positions = append(log, payloads)
    return ",".join(f"{partition}.{at}" for (partition, _), at in zip(payloads, positions, strict=True))


def engine_of(config, log, partitions=range(4)):
    return LocalEngine(config, log, partitions=list(partitions))


def read_profile(config, namespace, value, token=""):
    async def read():
        reader = ProfileReader(config.cache_url, config.database_url)
        try:
            if token:
                assert await reader.wait_for(token, 10)
            return await reader.by_identifier(namespace, value)
        finally:
            await reader.aclose()

    body = asyncio.run(read())
    return body and json.loads(body)


def test_draining_processes_everything_once(config, log, core):
    send(log, *[message(userId=f"u{number % 10}") for number in range(100)])
    assert engine_of(config, log).drain() == 100
    assert engine_of(config, log).drain() == 0
    assert len(core.events()) == 100
    rows = core.rows("SELECT partition, position, events FROM cdp_checkpoint ORDER BY partition")
    assert [row["position"] for row in rows] == [log.newest(row["partition"]) for row in rows]
    assert sum(row["events"] for row in rows) == 100
    event = core.events()[0]
    assert (event["log_partition"], event["log_position"]) == (
        partition_of(f"user_id:{event['identifiers'][0][1]}", 4),
        log.newest(event["log_partition"]),
    )


def test_a_running_engine_shows_what_was_sent_in_the_cache(config, log):
    engine = engine_of(config, log)
    running = threading.Thread(target=engine.run, daemon=True)
    running.start()
    try:
        token = send(log, message("identify", userId="u1", traits={"name": "Ann"}))
        read_profile(config, "user_id", "u1", token)
        cache = redis.Redis.from_url(config.cache_url)
        wait_until(lambda: cache.exists("i:user_id:u1"))
        profile = read_profile(config, "user_id", "u1", token)
    finally:
        engine.stop()
        running.join(10)
    assert profile["traits"] == {"name": "Ann"}
    assert profile["identifiers"] == [{"namespace": "user_id", "value": "u1"}]
    assert profile["computed_traits"]["event_count"] == 1
    assert profile["version"] == 1
    cached = cache.get(f"p:{profile['id']}")
    assert json.loads(cached.split(b" ", 2)[2]) == profile


def test_without_the_cache_profiles_come_from_the_database(config, log):
    send(log, message(userId="u1"))
    engine_of(replace(config, cache_url="redis://127.0.0.1:1/0"), log).drain()
    away = replace(config, cache_url="redis://127.0.0.1:1/0")
    assert read_profile(away, "user_id", "u1")["computed_traits"]["event_count"] == 1
    assert read_profile(config, "user_id", "u1")["computed_traits"]["event_count"] == 1
    assert read_profile(config, "user_id", "nobody") is None


def test_a_restart_makes_older_cache_entries_count_for_nothing(config, log):
    send(log, message(userId="u1"))
    engine_of(config, log).drain()
    cache = redis.Redis.from_url(config.cache_url)
    key = f"p:{read_profile(config, 'user_id', 'u1')['id']}"
    stale = cache.get(key).replace(b'"event_count":1', b'"event_count":0')
    cache.set(key, stale)
    assert read_profile(config, "user_id", "u1")["computed_traits"]["event_count"] == 0
    engine_of(config, log).drain()
    assert read_profile(config, "user_id", "u1")["computed_traits"]["event_count"] == 1


def test_a_merged_profile_is_found_by_all_its_identifiers(config, log):
    send(log, message("page", anonymousId="a1"))
    engine_of(config, log).drain()
    before = read_profile(config, "anonymous_id", "a1")
    send(log, message("identify", userId="u1", anonymousId="a1"))
    engine_of(config, log).drain()
    after = read_profile(config, "anonymous_id", "a1")
    assert after == read_profile(config, "user_id", "u1")
    assert after["computed_traits"]["event_count"] == 2
    assert after["id"] == before["id"]


def test_a_zombie_commits_nothing(config, log, core):
    send(log, message(userId="u1"), message(userId="u2"))
    zombie = engine_of(config, log)
    with zombie._connected() as connection:
        zombie._take_over(connection)
        stale = Ahead(log, zombie._positions()).take(max_events=100, wait=0)
        # The zombie sleeps, heart and all, until its lease has expired; another one takes its partitions.
        zombie.heart.stop()
        core.connection.execute("UPDATE cdp_processor SET expires_at = now()")
        heir = engine_of(config, log)
        with heir._connected() as other:
            assert heir._take_over(other) == [0, 1, 2, 3]
            with pytest.raises(psycopg.OperationalError, match="terminating connection due to administrator command"):
                zombie._commit(connection, stale)
            with psycopg.connect(config.database_url, autocommit=True) as third:
                with pytest.raises(StalePosition, match="another process took it"):
                    zombie._commit(third, stale)
            assert core.events() == []
            heir.leases.leave(other)
    assert engine_of(config, log).drain() == 2


def test_partitions_held_by_another_processor_are_taken_when_it_lets_go(config, log, core):
    engine = engine_of(config, log)
    first = engine_of(config, log, [0, 1])
    with first._connected() as other:
        assert first._take_over(other) == [0, 1]
        running = threading.Thread(target=engine.run, daemon=True)
        running.start()
        send(log, *[message(userId=f"u{number}") for number in range(40)])
        theirs = sum(partition_of(f"user_id:u{number}", 4) in (0, 1) for number in range(40))
        wait_until(lambda: len(core.events()) == 40 - theirs)
        first.leases.leave(other)
    wait_until(lambda: len(core.events()) == 40)
    engine.stop()
    running.join(10)


def wait_until(true, seconds=15):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_batch_takes_whole_entries_from_every_partition_in_turn(log):
    for number in range(6):
        send(log, *[message(userId=f"u{other}", n=number) for other in range(8)])
    ahead = Ahead(log, dict.fromkeys(range(4), ""))
    sizes, numbers = [], {}
    while (batch := ahead.take(max_events=10, wait=0)).positions:
        sizes.append(len(batch.arrivals))
        for arrival in batch.arrivals:
            body = json.loads(arrival.event.body)
            numbers.setdefault(body["userId"], []).append(body["n"])
    assert sum(sizes) == 48
    assert len(sizes) > 2
    assert all(order == list(range(6)) for order in numbers.values())


def test_what_is_read_ahead_is_bounded_in_bytes(config):
    memory = open_log("memory:", partitions=1)
    large = encode_entry(Entry([Delivery(1, 0, "", b"", b"", [Event("", "", 0, b"x" * 100_000)])]))
    small = encode_entry(Entry([Delivery(1, 0, "", b"", b"", [Event("", "", 0, b"{}")])]))
    append(memory, [(0, large)] * 20 + [(0, small)] * 300)
    ahead = Ahead(memory, {0: ""}, queue_bytes=300_000)
    sizes = []
    while (batch := ahead.take(max_events=1000, wait=0)).positions:
        held = sum(len(stored.payload) for stored in ahead._pending[0])
        sizes.append((len(batch.arrivals), held))
    # The first read takes one entry, since nothing is known of their size; then as many as fit.
    assert sizes[:5] == [(1, 0), (2, 0), (2, 0), (2, 0), (2, 0)]
    # Small entries may be followed by large ones: no more are read than would still fit.
    assert [count for count, _ in sizes[-3:]] == [4, 4, 1]


def test_a_batch_context_counts_for_each_event_that_it_is_repeated_in(config):
    memory = open_log("memory:", partitions=1)
    events = [Event("", "", 0, json.dumps(message(userId="u1")).encode()) for _ in range(10)]
    wide = encode_entry(Entry([Delivery(1, 0, "", b'{"a": "%b"}' % (b"x" * 10_000), b"", events)]))
    append(memory, [(0, wide)] * 10)
    ahead = Ahead(memory, {0: ""}, queue_bytes=250_000)
    sizes = []
    while (batch := ahead.take(max_events=1000, wait=0)).positions:
        sizes.append(len(batch.arrivals))
    # Entries of 111 kB in memory: three end a batch.
    assert sizes == [10, 20, 30, 30, 10]


def test_a_log_that_is_away_is_asked_ever_less_often(config, log, monkeypatch):
    waits = []
    engine = LocalEngine(
        replace(config, log_url="redis://127.0.0.1:1/0"), open_log("redis://127.0.0.1:1/0", partitions=4)
    )
    monkeypatch.setattr(
        engine._stopping, "wait", lambda seconds: waits.append(seconds) or (len(waits) == 7 and engine.stop())
    )
    engine.run()
    assert waits == [0.1, 0.2, 0.5, 1.0, 2.0, 2.0, 2.0]


def test_draining_beside_a_processor_that_lives_says_who_is_in_the_way(config, log, core):
    first = engine_of(config, log, [0, 1])
    with first._connected() as other:
        first._take_over(other)
        with pytest.raises(PermanentError, match=r"Partitions \[0, 1\] are held by another processor"):
            engine_of(config, log).drain()
        first.leases.leave(other)
    # Nobody died of it.
    assert core.rows("SELECT max(crashes) AS crashes FROM cdp_checkpoint") == [{"crashes": 0}]
    assert engine_of(config, log).drain() == 0


def test_dead_letters_that_come_back_do_not_look_like_a_backlog(config, log, core):
    now = clock.now_us()
    body = json.dumps(message(userId="u1")).encode()
    old = Delivery(1, now - 3 * 86_400_000_000, "", b"", b"", [Event("", "", 0, body)], "", 7)
    fresh = Delivery(1, now, "", b"", b"", [Event("", "", 0, json.dumps(message(userId="u1")).encode())])
    append(log, [(0, encode_entry(Entry([fresh, old])))])
    engine = engine_of(config, log)
    engine.drain()
    assert engine._done == {0: now}


def test_options_of_the_address_are_kept(config):
    with connect(f"{config.database_url}&options=-csearch_path%3Dmine", "x", synchronous_commit="off") as connection:
        assert connection.execute("SHOW search_path").fetchone() == ("mine",)
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("off",)
        assert connection.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("30s",)


def test_processed_entries_are_trimmed_and_the_checkpoint_is_kept(config, log):
    send(log, message(userId="u1"))
    send(log, message(userId="u1"))
    engine_of(config, log).drain()
    server = redis.Redis.from_url(config.log_url)
    partition = partition_of("user_id:u1", 4)
    assert server.xlen(f"martech:log:{partition}") == 1
    engine_of(config, log).drain()


def test_a_log_that_lost_what_was_not_read_stops_the_engine(config, log):
    send(log, message(userId="u1"))
    engine_of(config, log).drain()
    redis.Redis.from_url(config.log_url).delete(f"martech:log:{partition_of('user_id:u1', 4)}")
    with pytest.raises(PermanentError, match="no longer holds its checkpoint"):
        engine_of(config, log).drain()


def test_a_log_with_wrong_settings_stops_the_engine(config, log):
    server = redis.Redis.from_url(config.log_url)
    server.config_set("appendfsync", "everysec")
    try:
        with pytest.raises(ConfigurationError, match="appendfsync"):
            engine_of(config, log).run()
    finally:
        server.config_set("appendfsync", "always")


def test_old_events_need_no_old_table_partitions(config, log, core):
    received = clock.now_us() - 400 * 86_400_000_000
    entry = Entry([Delivery(1, received, "", b"", b"", [Event("", "", 0, json.dumps(message(userId="u1")).encode())])])
    append(log, [(0, encode_entry(entry))])
    before = core.rows("SELECT count(*) FROM pg_inherits")
    assert engine_of(config, log).drain() == 1
    assert core.events()[0]["received_at"] == clock.from_us(received)
    assert core.rows("SELECT count(*) FROM pg_inherits") == before


def test_a_reader_hands_over_what_it_meets(log, config):
    append(log, [(0, b"\x09unknown")])
    reader = Reader(Ahead(log, {0: ""}), max_events=10, wait=0.01)
    with pytest.raises(PermanentError, match="another version"):
        reader.take(5)
    reader.stop()


def test_partitions_are_written_as_ranges():
    assert parse_partitions("0-2,5", 8) == [0, 1, 2, 5]
    for wrong in ("", "x", "3-", "0-8"):
        with pytest.raises(PermanentError):
            parse_partitions(wrong, 8)


def test_killing_the_processor_again_and_again_loses_and_doubles_nothing(config, log, core):
    environment = os.environ | {
        "DATABASE_URL": config.database_url, "LOG_PARTITIONS": "4", "PROCESSOR_BATCH_EVENTS": "200",
    }  # fmt: skip
    command = [sys.executable, str(MANAGE), "process_events"]
    sent = [
        message(userId=f"u{number % 50}", event="Order Completed", properties={"total": 1.1}) for number in range(4000)
    ]
    for start in range(0, len(sent), 100):
        send(log, *sent[start : start + 100])
    for pause in (0.2, 0.3, 0.4):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        before = len(core.events())
        while len(core.events()) == before < 4000 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(pause / 10)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    engine_of(config, log).drain()
    assert len(core.events()) == 4000
    totals = core.rows(
        "SELECT computed_traits->'event_count' AS n, computed_traits->>'total_spent' AS total FROM customer_profiles"
    )
    assert {(row["n"], row["total"]) for row in totals} == {(80, "88")}
    assert len(totals) == 50


def test_the_largest_event_is_a_setting(config, log, core):
    send(log, message(userId="u1", properties={"a": "x" * 500}), message(userId="u2"))
    engine_of(replace(config, collector_event_bytes=400), log).drain()
    assert core.letters() == ["too_large"]
    assert len(core.events()) == 1


def test_an_identifier_that_its_profile_does_not_list_is_waited_for_and_not_spun_on(config, log, core):
    send(log, message(userId="u1"))
    engine_of(config, log).drain()
    core.rows("UPDATE customer_profiles SET identity_graph = '{}' RETURNING id")
    send(log, message(userId="u1"))
    with pytest.raises(Raced, match="has moved to another profile"):
        engine_of(config, log).drain()
    engine = engine_of(config, log)
    running = threading.Thread(target=engine.run, daemon=True)
    running.start()
    core.rows('UPDATE customer_profiles SET identity_graph = \'{"user_id": ["u1"]}\' RETURNING id')
    wait_until(lambda: len(core.events()) == 2)
    engine.stop()
    running.join(10)


def test_the_log_is_told_how_far_processing_is(config, log, core):
    def waited():
        async def ask():
            # As a web process that has just started: it has not seen the log empty itself.
            fresh = open_log(config.log_url, partitions=4)
            try:
                return (await fresh.load(disk_reserve=0)).waiting
            finally:
                await fresh.aclose()
                fresh.close()

        return asyncio.run(ask())

    engine = engine_of(config, log)
    running = threading.Thread(target=engine.run, daemon=True)
    running.start()
    send(log, message(userId="u1"))
    wait_until(lambda: redis.Redis.from_url(config.log_url).hlen("martech:log:done") == 4)
    wait_until(lambda: engine.keeper._waiting(core.writer) is not None)
    engine.stop()
    running.join(10)
    time.sleep(1)
    assert waited() == 0
    send(log, message(userId="u1"))
    assert 1 < waited() < 10
