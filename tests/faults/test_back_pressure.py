"""The processor stands still under load from stock SDKs: they are sent away, keep their events, and nothing is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.running import free_port, manage, processes_of, wait_until
from tests.up import Up

pytestmark = pytest.mark.faults

SDKS = {"segment": "segment.analytics", "rudder": "rudderstack.analytics"}


@contextmanager
def telling(up, keys):
    """Run a stock SDK for each key; their processes end when their stdin does, or with the block."""
    with ExitStack() as stack:
        running = []
        for name, package in SDKS.items():
            command = [
                sys.executable, "-W", "ignore", str(Path(__file__).with_name("telling.py")), package,
                f"http://127.0.0.1:{up.port}", keys[name], name,
            ]  # fmt: skip
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            running.append(stack.enter_context(process))
            stack.callback(process.kill)
        yield running


@pytest.fixture
def up():
    # Short, since a Unix socket's path may have 107 bytes at the most.
    with tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp") as home:
        running = Up(Path(home) / "data", free_port(), LOG_MEMORY_MB=32, SOURCE_QUOTA=400)
        try:
            running.wait_ready()
            yield running
        finally:
            os.kill(running.pid("processor"), signal.SIGCONT)
            running.stop()
        assert processes_of(running.data) == []


def shed(up):
    """Return how many events of how many sources were sent away by quota, and how many requests unread."""
    text = httpx.get(f"http://127.0.0.1:{up.port}/metrics").text
    sources = re.findall(r"^martech_collector_shed_events_total\{.*\} (\S+)", text, flags=re.MULTILINE)
    requests = re.findall(r"^martech_collector_shed_requests_total (\S+)", text, flags=re.MULTILINE)
    return sum(float(one) > 0 for one in sources), sum(map(float, requests))


def log_part(up):
    status, told = up.call("/readyz")
    return status, told["parts"]["log"]


def people(up):
    """Return what is stored: events by user as rows and as they were counted, and the traits."""
    address = json.loads((up.data / "run" / "servers.json").read_text())["environment"]["DATABASE_URL"]
    with psycopg.connect(address) as connection:
        [(rows,)] = connection.execute("SELECT count(*) FROM event_stream").fetchall()
        found = connection.execute(
            "SELECT identity_graph->'user_id'->>0, computed_traits->'event_count', traits FROM customer_profiles"
        ).fetchall()
    return rows, {user: int(count) for user, count, _ in found}, {user: traits for user, _, traits in found}


def test_a_processor_that_stands_still_costs_no_event(up):
    keys = {
        "segment": up.found(r"(wk_[\w-]+)"), "rudder": manage(up.data, "create_source", "Rudder").stdout.strip(),
    }  # fmt: skip
    os.kill(up.pid("processor"), signal.SIGSTOP)
    with telling(up, keys) as sdks:
        # First by quota, then all; and it is said why.
        said = set()

        def all_sheds():
            status, part = log_part(up)
            said.add((status, part["status"], part["detail"].partition(" is ")[0]))
            sources, requests = shed(up)
            return sources == 2 and requests > 0 and len(said) >= 3

        wait_until(all_sheds, 60)
        assert {one for one in said if one[1] != "ok"} == {
            (200, "degraded", "Sources that send more than their quota get 429: its server's memory"),
            (200, "degraded", "All tracking calls get 429: its server's memory"),
        }
        os.kill(up.pid("processor"), signal.SIGCONT)
        told = [json.loads(sdk.communicate(timeout=90)[0]) for sdk in sdks]
    assert [one["given_up"] for one in told] == [[], []]
    sent = told[0]["events"] | told[1]["events"]
    latest = told[0]["latest"] | told[1]["latest"]
    wait_until(lambda: people(up)[0] >= sum(sent.values()), 60)
    rows, counted, traits = people(up)
    assert rows == sum(sent.values())
    assert counted == sent
    assert traits == {user: {"latest": number, "name": user} for user, number in latest.items()}
    # It has opened again by itself.
    wait_until(lambda: log_part(up)[1]["status"] == "ok", 10)
    assert up.identify("afterwards", name="Ann")[0] == 200
