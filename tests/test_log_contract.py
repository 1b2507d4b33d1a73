"""What every log adapter promises, shown on each of them."""

import os
import threading
import time
from pathlib import Path

import pytest
import redis

from cdp.log import open_log
from cdp.log.base import (
    Delivery,
    Entry,
    Event,
    Load,
    LogTruncated,
    LogUnavailable,
    Waits,
    decode_entry,
    encode_entry,
    partition_of,
)
from martech.lib import clock
from martech.lib.errors import ConfigurationError, PermanentError
from tests import platform


@pytest.fixture(params=["memory", "redis"])
def log(request):
    url = "memory:" if request.param == "memory" else os.environ["LOG_URL"]
    if request.param == "redis":
        redis.Redis.from_url(url).flushdb()
    opened = open_log(url, partitions=3)
    yield opened
    opened.close()


def append(log, *entries):
    return platform.append(log, entries)


def payloads(found, partition):
    return [stored.payload for stored in found.get(partition, [])]


def test_entries_of_a_partition_come_back_in_the_order_of_their_appends(log):
    append(log, (0, b"a"), (1, b"x"), (0, b"b"))
    append(log, (0, b"c"))
    found = log.read({0: "", 1: "", 2: ""}, limit=10, wait=0)
    assert payloads(found, 0) == [b"a", b"b", b"c"]
    assert payloads(found, 1) == [b"x"]
    assert 2 not in found


def test_positions_are_texts_that_order_compares(log):
    positions = append(log, *[(0, b"%d" % number) for number in range(20)])
    assert all(isinstance(position, str) for position in positions)
    keys = [log.order(position) for position in positions]
    assert keys == sorted(keys)
    assert log.order("") < keys[0]
    assert log.newest(0) == positions[-1]
    assert log.newest(1) == ""


def test_reading_goes_on_after_a_position_and_repeats_what_was_not_committed(log):
    positions = append(log, (0, b"a"), (0, b"b"), (0, b"c"))
    assert payloads(log.read({0: positions[0]}, limit=1, wait=0), 0) == [b"b"]
    # A crash before the commit: the same position is read again.
    assert payloads(log.read({0: positions[0]}, limit=9, wait=0), 0) == [b"b", b"c"]
    assert log.read({0: positions[2]}, limit=9, wait=0) == {}


def test_what_was_trimmed_is_not_on_its_disk_after_compacting(log):
    old = append(log, *[(0, b"a long forgotten secret %d" % number) for number in range(20)])
    last = append(log, (0, b"." * log.block_bytes))[0]
    append(log, (0, b"what came later"))
    assert log.compact(seconds=10)
    log.trim(0, last)
    assert log.compact(seconds=10)
    if log.url.startswith("unix"):
        home = Path(redis.Redis.from_url(log.url).config_get("dir")["dir"])
        kept = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
        assert b"what came later" in kept
        assert b"forgotten" not in kept
    assert payloads(log.read({0: last}, limit=9, wait=0), 0) == [b"what came later"]
    assert log.order(old[-1]) < log.order(last)


def test_lag_counts_what_follows_a_position(log):
    positions = append(log, (0, b"a"), (0, b"b"), (0, b"c"))
    assert log.lag(0, "") == 3
    assert log.lag(0, positions[0]) == 2
    assert log.lag(0, positions[2]) == 0
    log.trim(0, positions[1])
    assert log.lag(0, positions[1]) == 1
    assert log.lag(0, positions[2]) == 0


def test_trimming_forgets_what_is_below_a_position_and_keeps_the_rest(log):
    positions = append(log, (0, b"a"), (0, b"b"), (0, b"c"), (1, b"x"))
    log.trim(0, positions[1])
    assert payloads(log.read({0: "", 1: ""}, limit=9, wait=0), 0) == [b"b", b"c"]
    assert payloads(log.read({1: ""}, limit=9, wait=0), 1) == [b"x"]
    log.trim(0, positions[2])
    assert log.newest(0) == positions[2]


def test_a_position_whose_followers_are_gone_is_an_error_and_not_a_skip(log):
    positions = append(log, (0, b"a"), (0, b"b"), (0, b"c"))
    log.verify(0, "")
    log.verify(0, positions[0])
    log.trim(0, positions[1])
    log.verify(0, positions[1])
    for gone in (positions[0], "999999999999999" if log.url == "memory:" else "999999999999999-0"):
        with pytest.raises(LogTruncated):
            log.verify(0, gone)


def test_a_waiting_reader_wakes_up_when_an_entry_comes(log):
    found = {}

    def wait():
        found.update(log.read({0: ""}, limit=9, wait=5))

    reader = threading.Thread(target=wait, daemon=True)
    started = time.monotonic()
    reader.start()
    time.sleep(0.05)
    append(log, (0, b"a"))
    reader.join(5)
    assert payloads(found, 0) == [b"a"]
    assert time.monotonic() - started < 4


def load(log, disk_reserve=0):
    return platform.load(log, disk_reserve=disk_reserve)


def waiting(log):
    """Return how long the log's oldest event waits, in whole seconds."""
    return round(load(log).waiting)


def test_the_oldest_wait_is_of_what_came_after_the_last_that_was_done(log):
    hour_ago, minute_ago = clock.now_us() - 3_600_000_000, clock.now_us() - 60_000_000
    positions = append(log, (0, b"a"), (0, b"b"), (1, b"x"), (1, b"y"))
    assert waiting(log) == 0  # Nobody said how far it is.
    log.done({0: hour_ago, 1: minute_ago, 2: 0})
    assert waiting(log) == 3600
    log.done({0: minute_ago})
    assert waiting(log) == 60
    # Only the checkpoint's own entries are left: nothing waits.
    log.trim(0, positions[1])
    log.trim(1, positions[3])
    assert waiting(log) == 0
    # What comes now has not waited since the last time that something was done.
    append(log, (0, b"c"))
    assert waiting(log) == 0


def test_a_wait_starts_when_the_partition_was_last_seen_empty():
    waits, second = Waits(), 1_000_000
    assert waits.oldest({0: 9}, {}, 100 * second) == 0.0
    assert waits.oldest({0: 9, 1: 2}, {0: 90 * second, 1: 40 * second}, 100 * second) == 60.0
    assert waits.oldest({0: 1}, {0: 90 * second}, 200 * second) == 0.0
    assert waits.oldest({0: 2}, {0: 90 * second}, 230 * second) == 30.0
    # A clock that was set back.
    assert waits.oldest({0: 2}, {0: 90 * second}, 10 * second) == 0.0


def test_a_log_without_a_ceiling_is_never_full(log):
    if log.url == "memory:":
        assert load(log, disk_reserve=2**60) == Load()
        return
    with redis.Redis.from_url(log.url) as server:
        before = server.config_get("maxmemory")["maxmemory"]
        server.config_set("maxmemory", 0)
        assert load(log) == Load()
        server.config_set("maxmemory", before)


def test_a_second_log_on_the_same_server_has_the_same_name(log):
    if log.url == "memory:":
        pytest.skip("a memory log is its process's own")
    assert open_log(log.url, partitions=3).name == log.name


def test_a_server_that_may_lose_events_is_refused(log):
    log.check()
    if log.url == "memory:":
        return
    server = redis.Redis.from_url(log.url)
    for name, wrong, right in [
        ("appendfsync", "everysec", "always"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
    ]:
        server.config_set(name, wrong)
        try:
            with pytest.raises(ConfigurationError, match=name):
                log.check()
        finally:
            server.config_set(name, right)
    server.close()


def test_a_log_that_is_away_says_so():
    away = open_log("redis://127.0.0.1:1/0", partitions=1)
    with pytest.raises(LogUnavailable):
        append(away, (0, b"a"))
    with pytest.raises(LogUnavailable):
        away.read({0: ""}, limit=1, wait=0)
    with pytest.raises(LogUnavailable):
        away.done({0: 1})
    with pytest.raises(LogUnavailable):
        load(away)


def test_an_unknown_kind_of_log_lists_the_known_ones():
    with pytest.raises(ConfigurationError, match=r"Known: memory, redis"):
        open_log("carrier-pigeon://coop", partitions=1)


def test_an_entry_survives_its_encoding_and_an_unknown_format_is_named():
    entry = Entry(
        [Delivery(7, 1, "::1", b"{}", b"", [Event("track", "m1", -5, b'{"a": "\xf0\x9f"}')], "00-ab-cd-01", 3)]
    )
    assert decode_entry(encode_entry(entry)) == entry
    with pytest.raises(PermanentError, match="another version"):
        decode_entry(b"\x09rest")
    with pytest.raises(PermanentError, match="cannot be read"):
        decode_entry(b"\x02rest")


def test_a_partition_depends_on_the_anchor_alone():
    assert {partition_of(f"user_id:u{number}", 8) for number in range(200)} == set(range(8))
    assert partition_of("user_id:u1", 8) == partition_of("user_id:u1", 8)
