"""How full a Redis log says it is: memory, disk, and a file that holds mostly what was trimmed."""

import shutil

import pytest
import redis

from cdp.log import open_log
from cdp.log.base import LogFull
from cdp.log.redis import _is_local
from tests import platform
from tests.running import wait_until
from tests.valkey import own_valkey


@pytest.fixture
def server():
    with own_valkey() as running:
        yield running


@pytest.fixture
def log(server):
    opened = open_log(server.url, partitions=2)
    yield opened
    opened.close()


@pytest.fixture
def client(server):
    with redis.Redis.from_url(server.url) as opened:
        yield opened


def free(client):
    return shutil.disk_usage(client.config_get("dir")["dir"]).free


def test_memory_is_what_is_used_of_the_ceiling(log, client):
    client.config_set("maxmemory", 64 * 2**20)
    empty = platform.load(log).memory
    platform.append(log, [(0, b"x" * 2**20)] * 16)
    filled = platform.load(log).memory
    assert 0.23 < filled - empty < 0.35
    assert filled == pytest.approx(client.info("memory")["used_memory"] / (64 * 2**20), abs=0.01)
    client.config_set("maxmemory", 2**20)
    assert platform.load(log).memory == 1.0


def test_a_log_without_memory_says_so_and_drops_the_hint(log, client):
    client.config_set("maxmemory", 1)
    with pytest.raises(LogFull):
        platform.append(log, [(0, b"x")])
    log.done({0: 1})
    client.config_set("maxmemory", 0)
    assert client.hgetall("martech:log:done") == {}
    log.done({0: 1})
    assert client.hgetall("martech:log:done") == {b"0": b"1"}


def test_who_empties_a_full_log_can_start(server, log, client):
    platform.append(log, [(0, b"x" * 2**20)] * 4)
    name = log.name
    client.config_set("maxmemory", 2**20)
    emptying = open_log(server.url, partitions=2)
    emptying.check()
    assert emptying.name == name
    found = emptying.read({0: ""}, limit=9, wait=0)[0]
    emptying.trim(0, found[-1].position)
    emptying.close()
    assert client.xlen("martech:log:0") == 1


@pytest.mark.parametrize(("reserves", "expected"), [(1, 0.9), (3, 0.7), (5, 0.5), (20, 0.0)])
def test_a_disk_counts_by_the_reserve_that_is_free(log, client, reserves, expected):
    assert platform.load(log, disk_reserve=free(client) // reserves).disk == pytest.approx(expected, abs=0.02)


def test_a_disk_that_nobody_asks_about_or_that_is_elsewhere_is_not_full(log, client):
    assert platform.load(log).disk == 0.0
    assert platform.load(log, disk_reserve=2**60).disk == pytest.approx(1.0, abs=0.001)
    # As managed servers do.
    client.execute_command("ACL", "SETUSER", "default", "-config")
    assert platform.load(log, disk_reserve=2**60).disk == 0.0


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("unix:///run/log.sock", True),
        ("redis://127.0.0.1:6379/0", True),
        ("redis://localhost", True),
        ("rediss://[::1]:6379", True),
        ("redis://10.0.0.7:6379", False),
        ("redis://log.example", False),
    ],
)
def test_only_a_disk_of_this_machine_is_looked_at(url, local):
    assert _is_local(url) is local


def test_a_tight_disk_gets_back_what_was_trimmed(log, client):
    positions = platform.append(log, [(0, b"x" * 2**20)] * 16 + [(0, b"last")])
    log.trim(0, positions[-1])
    assert client.info("persistence")["aof_current_size"] > 16 * 2**20
    # There is room enough: the server does it in its own time.
    platform.load(log, disk_reserve=free(client) // 5)
    assert not client.info("persistence")["aof_rewrite_in_progress"]
    platform.load(log, disk_reserve=free(client))
    wait_until(lambda: client.info("persistence")["aof_current_size"] < 2**20)
    assert [stored.payload for stored in log.read({0: ""}, limit=9, wait=0)[0]] == [b"last"]
