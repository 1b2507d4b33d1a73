"""Who may send: where the write key is looked for, and what happens while nobody can be asked."""

import asyncio
import base64
import time

import pytest
import redis

from cdp.collector.keys import KeysUnavailable, KeyTable, WriteKey, basic_user, hash_key
from tests.collecting import BROWSER, KEYS, LOG_URL, OTHER, READER, SERVER, basic, collecting, publish
from tests.valkey import own_valkey

pytestmark = pytest.mark.anyio

EVENT = {"event": "Signed Up", "userId": "u1"}


def sources(collector):
    return [one.delivery.source_id for one in collector.logged()]


async def test_the_key_is_the_basic_user_name(collector):
    assert (await collector.post("/v1/track", EVENT)).status_code == 200
    with_password = "Basic " + base64.b64encode(f"{BROWSER}:secret".encode()).decode()
    await collector.post("/v1/track", EVENT, key=None, headers={"Authorization": with_password})
    unpadded = "basic  " + base64.b64encode(f"{OTHER}:".encode()).decode().rstrip("=")
    await collector.post("/v1/track", EVENT, key=None, headers={"Authorization": unpadded})
    assert sorted(sources(collector)) == [1, 2, 3]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer t0ken"}, {"Authorization": "Basic Og=="}])
async def test_the_body_names_the_key_where_the_header_does_not(collector, headers):
    single = await collector.post("/v1/track", EVENT | {"writeKey": BROWSER}, key=None, headers=headers)
    batch = {"writeKey": OTHER, "batch": [EVENT | {"type": "track"}]}
    assert single.status_code == 200
    assert (await collector.post("/v1/batch", batch, key=None, headers=headers)).status_code == 200
    assert sorted(sources(collector)) == [2, 3]


async def test_the_header_goes_before_the_body(collector):
    await collector.post("/v1/track", EVENT | {"writeKey": "unknown"})
    items = [EVENT | {"type": "track", "writeKey": OTHER}]
    await collector.post("/v1/batch", {"writeKey": BROWSER, "batch": items})
    assert sources(collector) == [1, 1]
    refused = await collector.post("/v1/track", EVENT | {"writeKey": SERVER}, key="unknown")
    assert (refused.status_code, refused.json()["code"]) == (401, "unknown_write_key")


async def test_items_may_name_keys_of_their_own(collector):
    items = [
        EVENT | {"type": "track"},
        EVENT | {"type": "track", "writeKey": OTHER},
        EVENT | {"type": "track", "writeKey": "unknown"},
        EVENT | {"type": "track", "writeKey": READER},
        EVENT | {"type": "track", "writeKey": 5},
    ]
    assert (await collector.post("/v1/batch", {"writeKey": SERVER, "batch": items}, key=None)).status_code == 200
    assert sources(collector) == [1, 1, 1, 1, 3]


async def test_without_a_key_for_all_only_items_with_their_own_count(collector):
    items = [EVENT | {"type": "track", "event": key or "none", "writeKey": key} for key in (OTHER, None, "unknown")]
    assert (await collector.post("/v1/batch", {"batch": items}, key=None)).status_code == 200
    assert [one.message["event"] for one in collector.logged()] == [OTHER]
    nobody = await collector.post("/v1/batch", {"batch": items[1:]}, key=None)
    assert (nobody.status_code, nobody.json()["code"]) == (401, "unknown_write_key")


@pytest.mark.parametrize("path", ["/v1/track", "/v1/batch"])
async def test_no_key_at_all_is_401(collector, path):
    answer = await collector.post(path, EVENT | {"batch": [EVENT]}, key=None)
    assert (answer.status_code, answer.json()["code"]) == (401, "missing_write_key")
    # A browser would ask its user for a name and password.
    assert "www-authenticate" not in answer.headers
    assert collector.logged() == []


async def test_an_api_key_is_no_write_key(collector):
    assert (await collector.post("/v1/track", EVENT, key=READER)).status_code == 401
    assert (await collector.post("/v1/track", EVENT | {"writeKey": READER}, key=None)).status_code == 401


async def test_import_is_not_for_browsers_unless_their_rules_say_so():
    allowed = {"wk_trusted": WriteKey(source_id=7, source_kind="browser", rules={"refused_calls": []})}
    refusing = {"wk_narrow": WriteKey(source_id=8, rules={"refused_calls": ["alias"]})}
    async with collecting(keys=KEYS | allowed | refusing) as collector:
        batch = {"batch": [EVENT | {"type": "track"}]}
        refused = await collector.post("/v1/import", batch, key=BROWSER)
        assert (refused.status_code, refused.json()["code"]) == (403, "refused_call")
        assert (await collector.post("/v1/import", batch, key="wk_trusted")).status_code == 200
        alias = await collector.post("/v1/alias", {"userId": "u1", "previousId": "a"}, key="wk_narrow")
        assert (alias.status_code, alias.json()["code"]) == (403, "refused_call")
        assert sources(collector) == [7]


async def test_a_revoked_key_is_refused_within_5_seconds(collector):
    assert (await collector.post("/v1/track", EVENT)).status_code == 200
    publish({OTHER: KEYS[OTHER]}, stamp="2")
    started = time.monotonic()
    while (await collector.post("/v1/track", EVENT)).status_code != 401:
        assert time.monotonic() - started < 5
        await asyncio.sleep(0.01)
    assert (await collector.post("/v1/track", EVENT, key=OTHER)).status_code == 200


async def test_a_revoked_key_is_refused_within_5_seconds_even_if_the_announcement_is_lost(collector):
    rest = {OTHER: KEYS[OTHER]}
    await asyncio.sleep(0.3)  # It has read the table and waits for announcements.
    with redis.Redis.from_url(LOG_URL) as store:
        store.hdel("martech:keys", *(hash_key(key) for key in KEYS if key not in rest))
        store.hset("martech:keys", "published", "2")
    started = time.monotonic()
    while (await collector.post("/v1/track", EVENT)).status_code != 401:
        assert time.monotonic() - started < 5
        await asyncio.sleep(0.05)


async def test_a_new_key_is_good_at_once(collector):
    with redis.Redis.from_url(LOG_URL) as store:
        store.hset("martech:keys", hash_key("wk_new"), b'{"kind":"write","source_id":9}')
    assert (await collector.post("/v1/track", EVENT, key="wk_new")).status_code == 200
    assert sources(collector) == [9]


async def test_a_store_that_was_never_filled_is_no_reason_to_refuse():
    async with collecting() as collector:
        with redis.Redis.from_url(LOG_URL) as store:
            store.delete("martech:keys")
        answer = await collector.post("/v1/track", EVENT, key="unknown")
        assert (answer.status_code, answer.json()["code"]) == (503, "keys_unavailable")
        assert 1 <= int(answer.headers["retry-after"]) <= 300
        assert (await collector.post("/v1/track", EVENT)).status_code == 200


async def test_while_the_store_is_away_known_keys_stay_good_and_unknown_ones_are_not_refused():
    with own_valkey() as server:
        publish(KEYS, server.url)
        table = KeyTable(server.url)
        await table.start()
        server.kill()
        assert await table.find(SERVER) == KEYS[SERVER]
        with pytest.raises(KeysUnavailable):
            await table.find("unknown")
        server.start()
        assert await table.find("unknown") is None
        await table.stop()


async def test_a_restart_of_the_log_server_is_survived():
    with own_valkey() as server:
        publish(KEYS, server.url)
        async with collecting(log_url=server.url) as collector:
            assert (await collector.post("/v1/track", EVENT)).status_code == 200
            server.kill()
            away = await collector.post("/v1/track", EVENT)
            assert (away.status_code, away.json()["code"]) == (503, "log_unavailable")
            assert 1 <= int(away.headers["retry-after"]) <= 300
            server.start()
            assert (await collector.post("/v1/track", EVENT)).status_code == 200
            publish({OTHER: KEYS[OTHER]}, server.url, stamp="2")
            started = time.monotonic()
            while (await collector.post("/v1/track", EVENT)).status_code != 401:
                assert time.monotonic() - started < 5
                await asyncio.sleep(0.05)


async def test_many_unknown_keys_cost_one_question_at_a_time(collector):
    with redis.Redis.from_url(LOG_URL) as store:
        before = (
            store.info("commandstats")["cmdstat_hmget"]["calls"] if "cmdstat_hmget" in store.info("commandstats") else 0
        )
        table = KeyTable(LOG_URL)
        assert await asyncio.gather(*(table.find(f"unknown-{n}") for n in range(500))) == [None] * 500
        await table.stop()
        assert store.info("commandstats")["cmdstat_hmget"]["calls"] - before == 1


@pytest.mark.parametrize(
    ("header", "user"),
    [
        (b"Basic a2V5Og==", "key"), (b"Basic a2V5", "key"), (b"BASIC a2V5Og", "key"), (b"Bearer a2V5Og==", ""),
        (b"Basic", ""), (b"Basic \xff\xfe", ""), (b"", ""), (b"Basic a", ""),
    ],
)  # fmt: skip
async def test_basic_user_reads_what_it_can(header, user):
    assert basic_user(header) == user
    assert basic("key") == {"Authorization": "Basic a2V5Og=="}
