"""F6: a replica takes the log over behind the same address; what it had received is there, and nobody is restarted."""

import subprocess
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import redis

from cdp.engines.local import LocalEngine
from cdp.log import open_log
from martech.embedded.valkey import ValkeyServer
from tests.collecting import KEYS, collecting, config, publish
from tests.faults.proxy import Proxy
from tests.platform import message
from tests.running import free_port, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.anyio]


@contextmanager
def valkey(*arguments):
    """Run a server with the log's settings; gives its process, its socket and a client."""
    with tempfile.TemporaryDirectory(prefix="mt-", dir="/tmp") as home:
        server = ValkeyServer("log", Path(home) / "data", Path(home) / "s")
        server.prepare()
        silence = subprocess.DEVNULL
        with subprocess.Popen([*server.command(), *arguments], stdout=silence, stderr=silence) as process:
            with redis.Redis.from_url(server.url) as client:
                try:
                    wait_until(lambda: _answers(client))
                    yield process, str(server.socket), client
                finally:
                    process.kill()


def _answers(client):
    try:
        return client.ping()
    except redis.RedisError:
        return False


def _process(settings):
    """Process what is in the log, as a processor that was running meanwhile."""
    with closing(open_log(settings.log_url, partitions=settings.log_partitions)) as log:
        return LocalEngine(settings, log).drain()


async def test_a_replica_takes_the_log_over_with_all_that_it_had_received(core, database_url):
    with ExitStack() as stack:
        port = free_port()
        primary, socket, first = stack.enter_context(valkey("--port", str(port)))
        _, other_socket, second = stack.enter_context(valkey("--replicaof", f"127.0.0.1 {port}"))
        wait_until(lambda: second.info("replication")["master_link_status"] == "up")
        proxy = stack.enter_context(Proxy(socket))
        settings = config(database_url=database_url, log_url=f"redis://127.0.0.1:{proxy.port}/0")
        publish(KEYS, url=f"unix://{socket}")
        async with collecting(database_url=database_url, log_url=settings.log_url) as collector:

            async def track(number):
                sent = message(userId=f"u{number}", messageId=f"m{number}")
                return (await collector.post("/v1/track", sent)).status_code

            assert [await track(number) for number in range(20)] == [200] * 20
            assert await anyio.to_thread.run_sync(_process, settings) == 20
            assert [await track(number) for number in range(20, 40)] == [200] * 20
            first.wait(1, 5000)
            primary.kill()
            primary.wait()
            assert await track(40) == 503
            proxy.target = other_socket
            second.replicaof("NO", "ONE")
            deadline = time.monotonic() + 20
            while await track(40) != 200:
                assert time.monotonic() < deadline
                await anyio.sleep(0.1)
            assert await anyio.to_thread.run_sync(_process, settings) == 21
    assert sorted(row["message_id"] for row in core.events()) == sorted(f"m{number}" for number in range(41))
