"""Back-pressure: who is sent away while the log fills up, for how long, and that it opens again by itself."""

import asyncio
import json
import re

import pytest
import redis
from prometheus_client import REGISTRY

from cdp.collector import pressure
from cdp.collector.answers import Refused, problem
from cdp.collector.keys import WriteKey
from cdp.collector.pressure import Bucket, Pressure, explain, fullest, ratios, retry_after
from cdp.log.base import Load, LogUnavailable, decode_entry
from cdp.log.memory import MemoryLog
from martech.lib import clock
from tests.collecting import KEYS, OTHER, SERVER, collecting, config, publish
from tests.valkey import own_valkey

pytestmark = pytest.mark.anyio

EVENT = {"event": "Signed Up", "userId": "u1"}


def batch(*counts):
    """Return a batch of so many events, each key's share after the other."""
    items = [
        {"type": "track", "event": "e", "userId": "u1", "writeKey": key} for key, count in counts for _ in range(count)
    ]
    return {"batch": items}


class Filled(MemoryLog):
    """A log that says how full it is told to be."""

    def __init__(self, memory=0.0):
        super().__init__(partitions=8)
        self.told, self.error = Load(memory=memory), None

    async def load(self, *, disk_reserve):
        if isinstance(self.told, Exception):
            raise self.told
        return self.told

    async def append(self, entries):
        if self.error is not None:
            raise self.error
        return await super().append(entries)


async def set_level(collector, level):
    collector.application._log.told = Load(memory=level)
    await collector.application._pressure.look()


def taken(collector):
    """Return the deliveries in a log of this process."""
    found = collector.application._log.read(dict.fromkeys(range(8), ""), limit=1000, wait=0)
    return [
        delivery
        for entries in found.values()
        for stored in entries
        for delivery in decode_entry(stored.payload).deliveries
    ]


def shed(name="shed_events_total", **labels):
    return REGISTRY.get_sample_value(f"martech_collector_{name}", {key: str(value) for key, value in labels.items()})


def test_the_level_is_that_of_what_is_fullest():
    found = ratios(Load(memory=0.2, disk=0.5, waiting=21_600.0), 86_400.0)
    assert found == {"memory": 0.2, "disk": 0.5, "waiting": 0.25}
    assert fullest(found) == (0.5, "disk")
    assert ratios(Load(waiting=10.0), 5.0)["waiting"] == 1.0
    assert ratios(Load(waiting=10.0), 0.0)["waiting"] == 0.0


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"memory": 0.699, "disk": 0.0, "waiting": 0.0}, ""),
        (
            {"memory": 0.7, "disk": 0.0, "waiting": 0.0},
            "Sources that send more than their quota get 429: its server's memory is 70% full. Let the processor catch "
            "up, or give the log's server more memory (LOG_MEMORY_MB). It opens again by itself.",
        ),
        (
            {"memory": 0.8, "disk": 0.95, "waiting": 0.0},
            "All tracking calls get 429: its disk is at 95% of what may be used. Free space on the log's disk, or let "
            "less be free (LOG_DISK_RESERVE_MB). It opens again by itself.",
        ),
    ],
)
def test_it_says_what_is_done_why_and_what_helps(found, words):
    assert explain(found) == words


def test_the_fuller_the_log_the_later_senders_come_back():
    assert [round(retry_after(level), 6) for level in (0.7, 0.8, 0.9, 1.0)] == [1.0, 4.0, 7.0, 10.0]


def test_a_bucket_lets_a_second_of_events_come_at_once_and_then_its_rate():
    bucket = Bucket(10, now=100.0)
    assert bucket.wait(10, 100.0) == 0.0
    bucket.take(10)
    assert bucket.wait(1, 100.0) == 0.1
    assert bucket.wait(5, 100.5) == 0.0
    bucket.take(5)
    # A quiet hour is worth one second.
    assert bucket.wait(10, 3700.0) == 0.0
    bucket.take(10)
    assert bucket.wait(10, 3700.0) == 1.0


def test_a_batch_larger_than_the_rate_comes_when_the_bucket_is_full_and_is_paid_off():
    bucket = Bucket(10, now=0.0)
    assert bucket.wait(50, 0.0) == 0.0
    bucket.take(50)
    assert bucket.wait(1, 0.0) == 4.1
    assert bucket.wait(50, 4.0) == 1.0
    assert bucket.wait(50, 5.0) == 0.0


def test_a_quota_of_nothing_lets_nothing_come():
    assert Bucket(0, now=0.0).wait(1, 1000.0) == float("inf")


async def test_below_the_first_mark_everything_passes():
    async with collecting(log=Filled(), source_quota=1) as collector:
        publish(KEYS)
        await set_level(collector, 0.69)
        answers = [(await collector.post("/v1/batch", batch((SERVER, 50)))).status_code for _ in range(5)]
    assert answers == [200] * 5


async def test_above_the_first_mark_each_source_keeps_to_its_quota():
    keys = KEYS | {OTHER: WriteKey(source_id=3, quota=60)}
    async with collecting(log=Filled(), source_quota=20) as collector:
        publish(keys)
        await collector.application._keys._reload()
        await set_level(collector, 0.7)
        before = shed(source=1) or 0
        assert (await collector.post("/v1/batch", batch((SERVER, 20)))).status_code == 200
        refused = await collector.post("/v1/batch", batch((SERVER, 19)))
        assert (refused.status_code, refused.json()["code"]) == (429, "source_quota")
        assert refused.json()["message"] == (
            "The event log is filling up, and this source has sent its quota of events. Send again later."
        )
        assert re.fullmatch(r"[12]", refused.headers["retry-after"])
        assert shed(source=1) == before + 19
        # Others have their own, and what was refused has cost nothing.
        assert (await collector.post("/v1/batch", batch((OTHER, 60)), key=OTHER)).status_code == 200
        assert (await collector.post("/v1/track", EVENT, key=OTHER)).status_code == 429
        events = [event for one in taken(collector) for event in one.events]
    assert len(events) == 80


async def test_a_batch_of_several_sources_comes_whole_or_not_at_all():
    async with collecting(log=Filled(), source_quota=5) as collector:
        publish(KEYS)
        await set_level(collector, 0.8)
        assert (await collector.post("/v1/batch", batch((SERVER, 5)), key=None)).status_code == 200
        assert (await collector.post("/v1/batch", batch((OTHER, 5), (SERVER, 1)), key=None)).status_code == 429
        assert (await collector.post("/v1/batch", batch((OTHER, 5)), key=None)).status_code == 200


async def test_above_the_second_mark_no_tracking_call_is_taken_and_all_else_goes_on():
    async with collecting(log=Filled()) as collector:
        publish(KEYS)
        await set_level(collector, 0.9)
        before = shed("shed_requests_total")
        answers = [
            await collector.post("/v1/track", EVENT),
            await collector.post("/v1/batch", batch((SERVER, 1))),
            # It is not even read: neither key nor JSON matter.
            await collector.post("/v1/import", b"no json", key=None),
        ]
        assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(429, "log_filling")}
        assert all(7 <= int(answer.headers["retry-after"]) <= 14 for answer in answers)
        assert shed("shed_requests_total") == before + 3
        assert (await collector.client.options("/v1/track")).status_code == 204
        assert (await collector.client.get("/v1/projects/wk_server/settings")).status_code == 200
        assert (await collector.client.get("/healthz")).status_code == 200
        assert (await collector.client.get("/v1/profiles/user_id:x")).json()["code"] == "not_authenticated"
        told = await collector.client.get("/readyz")
        assert (told.status_code, told.json()["status"]) == (200, "degraded")
        assert told.json()["detail"].startswith("All tracking calls get 429: its server's memory is 90% full.")
        assert taken(collector) == []
        # It opens at once where it closed.
        await set_level(collector, 0.89)
        assert (await collector.post("/v1/track", EVENT)).status_code == 200
        await set_level(collector, 0.0)
        assert (await collector.client.get("/readyz")).json() == {"status": "ready"}


async def test_a_full_log_that_goes_away_is_told_as_away_until_it_is_back(caplog):
    log = Filled()
    async with collecting(log=log) as collector:
        publish(KEYS)
        await set_level(collector, 0.95)
        assert (await collector.post("/v1/track", EVENT)).json()["code"] == "log_filling"
        log.told = log.error = LogUnavailable("The log is away.")
        await collector.application._pressure.look()
        answer = await collector.post("/v1/track", EVENT)
        assert (answer.status_code, answer.json()["code"]) == (503, "log_unavailable")
        assert collector.application._pressure.found == {"memory": 0.0, "disk": 0.0, "waiting": 0.0}
        log.error = None
        await set_level(collector, 0.95)
        assert (await collector.post("/v1/track", EVENT)).json()["code"] == "log_filling"
    # It has not become emptier, and then fuller again.
    assert [record.message.partition(":")[0] for record in caplog.records] == ["All tracking calls get 429"]


async def test_the_log_is_looked_at_again_and_again(monkeypatch):
    monkeypatch.setattr(pressure, "REFRESH_SECONDS", 0.01)
    log = Filled()
    watching = Pressure(config(), log)
    watching.start()
    log.told = OSError("odd")
    await asyncio.sleep(0.05)
    log.told = Load(disk=0.75)
    async with asyncio.timeout(5):
        while watching.level != 0.75:  # noqa: ASYNC110 - nothing tells when it has looked
            await asyncio.sleep(0.01)
    await watching.stop()
    with pytest.raises(Refused, match="almost full"):
        watching.refuse_all()


async def test_a_level_that_wavers_is_logged_once(caplog):
    log = Filled()
    watching = Pressure(config(), log)
    for level in (0.69, 0.71, 0.69, 0.71, 0.95, 0.85, 0.95):
        log.told = Load(memory=level)
        await watching.look()
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "Sources that send more than their quota get 429", "All tracking calls get 429",
    ]  # fmt: skip


async def test_a_server_that_fills_up_sheds_before_it_is_full_and_opens_when_it_is_drained():
    with own_valkey() as server:
        publish(KEYS, server.url)
        async with collecting(log_url=server.url, source_quota=10) as collector:
            with redis.Redis.from_url(server.url) as client:
                client.config_set("maxmemory", 16 * 2**20)
                codes = set()
                body = {"event": "e", "userId": "u1", "properties": {"text": "x" * 30_000}}
                async with asyncio.timeout(30):
                    while "log_filling" not in codes:
                        answer = await collector.post("/v1/track", body)
                        codes.add(answer.json().get("code", "ok"))
                assert codes == {"ok", "source_quota", "log_filling"}
                assert client.info("memory")["used_memory"] < 16 * 2**20
                for key in client.keys("martech:log:[0-9]"):
                    client.xtrim(key, maxlen=1, approximate=False)
                await collector.application._pressure.look()
            assert (await collector.post("/v1/track", EVENT)).status_code == 200


async def test_events_that_wait_too_long_close_the_log_until_the_processor_is_back():
    with own_valkey() as server:
        publish(KEYS, server.url)
        async with collecting(log_url=server.url) as before:
            for _ in range(2):
                assert (await before.post("/v1/track", EVENT)).status_code == 200
            before.application._log.done(dict.fromkeys(range(8), clock.now_us() - 3_500_000_000))
        async with collecting(log_url=server.url, collector_wait_seconds=3600.0) as collector:
            await collector.application._pressure.look()
            refused = await collector.post("/v1/track", EVENT)
            assert (refused.status_code, refused.json()["code"]) == (429, "log_filling")
            collector.application._log.done(dict.fromkeys(range(8), clock.now_us()))
            await collector.application._pressure.look()
            assert (await collector.post("/v1/track", EVENT)).status_code == 200


def test_what_is_refused_is_told_as_sdks_read_it():
    watching = Pressure(config(), MemoryLog(partitions=1))
    watching.level = 1.0
    with pytest.raises(Refused) as refused:
        watching.refuse_all()
    headers = dict(problem(refused.value).start["headers"])
    assert 10 <= int(headers[b"retry-after"]) <= 20
    assert json.loads(problem(refused.value).body["body"])["code"] == "log_filling"
