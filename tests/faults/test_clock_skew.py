"""F13: a processor whose clock is days off holds what it holds, and each event counts once all the same."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing

import pytest
import redis

from cdp.log import open_log
from cdp.log.base import Delivery, Entry, Event, encode_entry
from martech.lib import clock
from tests.platform import append
from tests.running import ROOT, wait_until

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(shutil.which("faketime") is None, reason="needs the program faketime"),
]
PARTITIONS = 4


def start(url, skew=None):
    """Start a processor, with a clock that is off by `skew`."""
    command = [sys.executable, "manage.py", "process_events"]
    if skew:
        command = ["faketime", "-f", skew, *command]
    # Timers count from a clock that no step moves.
    environment = os.environ | {"DATABASE_URL": url, "LOG_PARTITIONS": str(PARTITIONS), "DONT_FAKE_MONOTONIC": "1"}
    # The program faketime stays, as the parent of what it runs.
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)


def holders(core):
    """Return how many partitions each living processor holds."""
    rows = core.rows("SELECT owner, count(*) AS n FROM cdp_checkpoint WHERE owner IS NOT NULL GROUP BY owner")
    return {row["owner"]: row["n"] for row in rows}


def send(log, numbers):
    payloads = []
    for number in numbers:
        body = b'{"type": "track", "event": "Clicked", "userId": "u%d", "messageId": "m%d"}' % (number % 9, number)
        entry = Entry([Delivery(1, clock.now_us(), "", b"", b"", [Event("", "", 0, body)])])
        payloads.append((number % PARTITIONS, encode_entry(entry)))
    append(log, payloads)


@pytest.mark.parametrize("skew", ["+2d", "-1h"])
def test_a_processor_with_a_wrong_clock_keeps_its_partitions_and_counts_each_event_once(core, database_url, skew):
    redis.Redis.from_url(os.environ["LOG_URL"]).flushdb()
    with closing(open_log(os.environ["LOG_URL"], partitions=PARTITIONS)) as log:
        processes = [start(database_url), start(database_url, skew)]
        try:
            wait_until(lambda: sorted(holders(core).values()) == [2, 2], 30)
            before = holders(core)
            send(log, range(400))
            wait_until(lambda: len(core.events()) == 400)
            # What came before, sent again, with news behind it that shows when it was processed.
            send(log, range(200))
            send(log, range(400, 500))
            wait_until(lambda: len(core.events()) >= 500)
            assert holders(core) == before
        finally:
            for process in processes:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert sorted(row["message_id"] for row in core.events()) == sorted(f"m{number}" for number in range(500))
    assert core.letters() == []
