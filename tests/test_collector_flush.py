"""Group commit: one append for many requests, an answer only after it, and what happens when it fails."""

import asyncio

import pytest
import redis
from msgspec.structs import replace

from cdp.collector.entries import ENTRY_BYTES, payloads
from cdp.collector.flusher import Flusher
from cdp.log.base import Delivery, Event, LogFull, LogUnavailable, decode_entry
from cdp.log.memory import MemoryLog
from martech.lib.errors import RetryableError
from tests.collecting import KEYS, collecting, publish
from tests.valkey import own_valkey

pytestmark = pytest.mark.anyio

EVENT = {"event": "Signed Up", "userId": "u1"}


class Recording(MemoryLog):
    """A log that counts appends, and fails when told."""

    def __init__(self, error=None, gate=None):
        super().__init__(partitions=8)
        self.appends, self.error, self.gate = [], error, gate

    async def append(self, entries):
        self.appends.append([partition for partition, _ in entries])
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return await super().append(entries)


def parcel(partition, text="e"):
    return partition, Delivery(1, 1, "", b"", b"", [Event("track", "", 0, text.encode())])


async def test_requests_of_a_few_milliseconds_share_one_append_and_one_entry_a_partition():
    log = Recording()
    flusher = Flusher(log, seconds=0.01)
    flusher.start()
    positions = await asyncio.gather(*(flusher.submit([parcel(n % 2, f"e{n}")], 10) for n in range(10)))
    await flusher.stop()
    assert [sorted(partitions) for partitions in log.appends] == [[0, 1]]
    assert positions == [{0: "1", 1: "1"}] * 10
    [stored] = log.read({0: ""}, limit=9, wait=0)[0]
    bodies = [event.body for delivery in decode_entry(stored.payload).deliveries for event in delivery.events]
    assert bodies == [b"e0", b"e2", b"e4", b"e6", b"e8"]


async def test_what_comes_during_an_append_makes_the_next_one():
    log = Recording(gate=asyncio.Event())
    flusher = Flusher(log, seconds=0)
    flusher.start()
    first = asyncio.create_task(flusher.submit([parcel(0)], 10))
    await asyncio.sleep(0.01)
    others = [asyncio.create_task(flusher.submit([parcel(0)], 10)) for _ in range(5)]
    await asyncio.sleep(0.01)
    assert not first.done()
    log.gate.set()
    await asyncio.gather(first, *others)
    assert log.appends == [[0], [0]]
    await flusher.stop()


async def test_much_at_once_becomes_several_appends():
    log = Recording()
    flusher = Flusher(log, seconds=0.01)
    flusher.start()
    await asyncio.gather(*(flusher.submit([parcel(0)], 2**20) for _ in range(5)))
    await flusher.stop()
    assert len(log.appends) == 3


@pytest.mark.parametrize(("error", "code"), [(LogFull("full"), "log_full"), (OSError("odd"), "log_unavailable")])
async def test_a_failed_append_fails_every_request_of_it_and_no_other(error, code):
    log = Recording(error)
    flusher = Flusher(log, seconds=0.01)
    flusher.start()
    outcomes = await asyncio.gather(*(flusher.submit([parcel(0)], 10) for _ in range(3)), return_exceptions=True)
    assert [outcome.code for outcome in outcomes] == [code] * 3
    log.error = None
    assert await flusher.submit([parcel(0)], 10) == {0: "1"}
    await flusher.stop()


async def test_a_request_that_went_away_disturbs_nobody():
    flusher = Flusher(Recording(), seconds=0.02)
    flusher.start()
    gone, stays = (asyncio.create_task(flusher.submit([parcel(0)], 10)) for _ in range(2))
    await asyncio.sleep(0.005)
    gone.cancel()
    assert await stays == {0: "1"}
    await flusher.stop()


async def test_stopping_flushes_what_was_accepted_and_takes_nothing_more():
    log = Recording()
    flusher = Flusher(log, seconds=0.05)
    flusher.start()
    accepted = asyncio.create_task(flusher.submit([parcel(0)], 10))
    await asyncio.sleep(0)
    await flusher.stop()
    assert await accepted == {0: "1"}
    with pytest.raises(LogUnavailable):
        await flusher.submit([parcel(0)], 10)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (LogFull("The log is full.", retry_after=5), 429, "log_full"),
        (LogUnavailable("The log is away."), 503, "log_unavailable"),
        (RetryableError("Odd.", retry_after=10_000), 503, "try_later"),
    ],
)
async def test_trouble_is_answered_with_a_time_to_come_back(error, status, code):
    async with collecting(log=Recording(error)) as collector:
        publish(KEYS)
        answers = [await collector.post("/v1/track", EVENT) for _ in range(20)]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(status, code)}
    delays = [answer.headers["retry-after"] for answer in answers]
    assert all(delay.isdigit() and 1 <= int(delay) <= 300 for delay in delays)


async def test_a_log_server_without_memory_is_back_pressure():
    with own_valkey() as server:
        publish(KEYS, server.url)
        async with collecting(log_url=server.url) as collector:
            assert (await collector.post("/v1/track", EVENT)).status_code == 200
            with redis.Redis.from_url(server.url) as client:
                client.config_set("maxmemory", 1)
            answer = await collector.post("/v1/track", EVENT)
            assert (answer.status_code, answer.json()["code"]) == (429, "log_full")


async def test_a_log_that_may_lose_events_is_not_written_to():
    from martech.lib.errors import ConfigurationError

    with own_valkey() as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("appendfsync", "everysec")
        with pytest.raises(ConfigurationError, match="appendfsync everysec"):
            async with collecting(log_url=server.url):
                pass


def delivery(number, size, events=1, context=b""):
    """Return a delivery with events of so many bytes, named for their order."""
    found = [Event("track", f"m{number}-{one}", 0, b"%04d" % one + b"x" * (size - 4)) for one in range(events)]
    return Delivery(number, 1, "192.0.2.7", context, b"{}", found, "00-ab-cd-01", 7)


def entries_of(found):
    return [decode_entry(payload).deliveries for payload in payloads(found)]


def whole(entries):
    """Return all events of some entries, in their order, each with the head of its delivery."""
    return [
        (replace(found, events=[]), event) for deliveries in entries for found in deliveries for event in found.events
    ]


def test_what_is_small_is_one_entry():
    found = [delivery(number, 1000, events=10) for number in range(20)]
    assert entries_of(found) == [found]


def test_a_large_round_is_cut_into_entries_that_keep_order_and_heads():
    found = [delivery(number, 1000, events=70, context=b'{"a": 1}') for number in range(20)]
    entries = entries_of(found)
    assert len(entries) == 7
    assert max(map(len, payloads(found))) <= ENTRY_BYTES
    assert whole(entries) == whole([found])


def test_a_large_batch_is_cut_into_deliveries_with_the_same_head():
    found = [delivery(1, 30_000, events=20)]
    entries = entries_of(found)
    assert [[len(one.events) for one in deliveries] for deliveries in entries] == [[8], [8], [4]]
    assert max(map(len, payloads(found))) <= ENTRY_BYTES
    assert whole(entries) == whole([found])


def test_an_event_that_is_larger_than_an_entry_has_one_of_its_own():
    found = [delivery(1, 100, events=2), delivery(2, 2 * ENTRY_BYTES), delivery(3, 100)]
    entries = entries_of(found)
    assert [[one.source_id for one in deliveries] for deliveries in entries] == [[1], [2], [3]]
    assert whole(entries) == whole([found])


def test_a_large_head_is_repeated_only_with_as_many_bytes_of_events():
    # 256 small events and a context of a quarter of a megabyte, in a request of 282 KB.
    found = [delivery(1, 36, events=256, context=b"x" * (ENTRY_BYTES - 100))]
    assert entries_of(found) == [found]
    assert sum(map(len, payloads(found))) == 275_543
    # Pieces of as much again: two times the request at the most.
    found = [delivery(1, 1000, events=2440, context=b"x" * (ENTRY_BYTES - 100))]
    entries = entries_of(found)
    assert [[len(one.events) for one in deliveries] for deliveries in entries] == [[245], *[[244]] * 8, [243]]
    assert sum(map(len, payloads(found))) == 5_106_100
    assert whole(entries) == whole([found])


async def test_a_request_is_told_the_position_of_the_last_of_its_entries():
    log = MemoryLog(partitions=8)
    flusher = Flusher(log, seconds=0.005)
    flusher.start()
    large = flusher.submit([(0, delivery(1, 30_000, events=20)), (1, delivery(1, 100))], 600_000)
    assert await asyncio.gather(large, flusher.submit([parcel(0)], 10)) == [{0: "3", 1: "1"}] * 2
    await flusher.stop()
