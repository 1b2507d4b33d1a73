"""F16: connections that hang, break or are refused cost no event, and heal by themselves."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import anyio
import pytest
import redis
from psycopg.conninfo import conninfo_to_dict

from cdp.log import open_log
from cdp.log.base import Delivery, Entry, Event, encode_entry, partition_of
from martech.lib import clock
from tests.collecting import KEYS, LOG_URL, READER, collecting, publish
from tests.faults.proxy import Proxy
from tests.platform import append, message
from tests.running import ROOT, wait_until

pytestmark = pytest.mark.faults

BEARER = {"Authorization": f"Bearer {READER}"}
CUTS = ["swallow", "hang_up", "go_down"]
PARTITIONS = 4


async def wait_for(status, ask):
    """Return when `ask` is answered with this status."""
    with anyio.fail_after(20):
        while (await ask()).status_code != status:  # noqa: ASYNC110 - the other side has no event for us
            await anyio.sleep(0.1)


def behind(proxy):
    return f"redis://127.0.0.1:{proxy.port}/5"


@contextmanager
def server_of(role):
    """Give a proxy before one of the session's Valkeys."""
    with Proxy(os.environ[f"{role}_URL"].removeprefix("unix://")) as proxy:
        yield proxy


@contextmanager
def database_of(url):
    """Give a proxy before the session's PostgreSQL, and the address of a database through it."""
    parts = conninfo_to_dict(url)
    with Proxy(f"{parts['host']}/.s.PGSQL.5432") as proxy:
        yield proxy, f"postgresql://{parts['user']}@127.0.0.1:{proxy.port}/{parts['dbname']}"


def empty():
    """Empty the servers' database 5, and publish the keys in it."""
    for role in ("LOG", "CACHE"):
        redis.Redis.from_url(f"{os.environ[f'{role}_URL']}?db=5").flushdb()
    publish(KEYS)


@pytest.mark.anyio
@pytest.mark.parametrize("cut", CUTS)
async def test_events_are_refused_while_the_log_is_cut_off_and_taken_again_by_themselves(cut):
    empty()
    with server_of("LOG") as proxy:
        async with collecting(log_url=behind(proxy)) as collector:

            def track(message_id):
                return collector.post("/v1/track", message(userId="u", messageId=message_id))

            assert (await track("before")).status_code == 200
            getattr(proxy, cut)()
            answer = (await track("meanwhile")).status_code
            # Who sees in time that the other side hung up connects anew, and loses nothing.
            assert answer == 503 or (cut, answer) == ("hang_up", 200)
            proxy.mend()
            await wait_for(200, partial(track, "after"))
            taken = {"before", "after"} | ({"meanwhile"} if answer == 200 else set())
            assert taken <= {one.message["messageId"] for one in collector.logged()} <= taken | {"meanwhile"}


@pytest.mark.anyio
async def test_profiles_are_read_from_the_database_while_the_cache_is_cut_off(core, database_url):
    empty()
    core.apply(message("identify", userId="ann", traits={"plan": "pro"}))
    with server_of("CACHE") as proxy:
        async with collecting(database_url=database_url, cache_url=behind(proxy)) as collector:
            for cut in ("swallow", "go_down"):
                getattr(proxy, cut)()
                answer = await collector.client.get("/v1/profiles/user_id:ann", headers=BEARER)
                assert (answer.status_code, answer.json()["traits"]) == (200, {"plan": "pro"})


@pytest.mark.anyio
async def test_profiles_that_nobody_can_tell_are_503_and_come_again(core, database_url):
    empty()
    core.apply(message("identify", userId="ann", traits={"plan": "pro"}))
    with database_of(database_url) as (proxy, address):
        async with collecting(database_url=address) as collector:
            read = partial(collector.client.get, "/v1/profiles/user_id:ann", headers=BEARER)
            for cut in CUTS:
                assert (await read()).status_code == 200
                empty()
                getattr(proxy, cut)()
                with anyio.fail_after(15):
                    assert (await read()).status_code == 503, cut
                proxy.mend()
                await wait_for(200, read)


def send(log, first, count):
    """Append events as the collector would, an entry each."""
    payloads = []
    for number in range(first, first + count):
        body = json.dumps(message(userId=f"u{number % 7}", messageId=f"cut-{number}")).encode()
        entry = Entry([Delivery(1, clock.now_us(), "", b"", b"", [Event("", "", 0, body)])])
        payloads.append((partition_of(f"user_id:u{number % 7}", PARTITIONS), encode_entry(entry)))
    append(log, payloads)


def test_a_processor_outlives_every_cut_and_processes_each_event_once(core, database_url):
    empty()
    log = open_log(LOG_URL, partitions=PARTITIONS)
    sent = 0
    with server_of("LOG") as to_log, database_of(database_url) as (to_database, address):
        environment = os.environ | {
            "DATABASE_URL": address, "LOG_URL": behind(to_log), "LOG_PARTITIONS": str(PARTITIONS),
        }  # fmt: skip
        with subprocess.Popen(
            [sys.executable, "manage.py", "process_events"], cwd=ROOT, env=environment, stderr=subprocess.PIPE
        ) as process:
            try:
                for proxy in (to_log, to_database):
                    for cut in CUTS:
                        send(log, sent, 50)
                        wait_until(lambda: len(core.events()) > sent, 30)  # noqa: B023 - called at once
                        getattr(proxy, cut)()
                        send(log, sent + 50, 50)
                        proxy.mend()
                        sent += 100
                        wait_until(lambda: len(core.events()) == sent, 30)  # noqa: B023 - called at once
                assert process.poll() is None
            finally:
                process.kill()
    log.close()
    assert sorted(row["message_id"] for row in core.events()) == sorted(f"cut-{number}" for number in range(sent))
