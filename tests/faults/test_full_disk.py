"""A full disk under the log (F8) and under PostgreSQL (F9): no 2xx for what is lost, and it recovers by itself.

The disk is a tmpfs in a mount namespace of the platform's own, seen from here through /proc: that needs root.
"""

import json
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.collecting import basic
from tests.running import free_port, manage, processes_of, wait_until
from tests.up import Up

pytestmark = pytest.mark.faults

SENDERS = 4
# Each append takes a new page of the tmpfs, which leaves no corner for a small one on a full disk.
TEXT = "x" * 20_000
FULL_SECONDS = 5.0


def _has_namespaces():
    if not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0


if not _has_namespaces():
    pytest.skip("mounting a tmpfs needs root and `unshare -m`", allow_module_level=True)


class Disk:
    """A directory of a platform that is a small disk of its own."""

    def __init__(self, up, directory):
        self.up, self.directory = up, directory

    @property
    def path(self):
        return Path(f"/proc/{self.up.process.pid}/root{self.directory}")

    def fill(self, *, leave=0):
        """Take all its space but so many bytes."""
        with (self.path / "filler").open("ab", buffering=0) as filler:
            for size in (2**20, 4096):
                try:
                    while shutil.disk_usage(self.path).free > leave:
                        filler.write(b"\0" * size)
                except OSError:
                    continue

    def clear(self):
        """Give its space back."""
        (self.path / "filler").unlink()


@contextmanager
def disk_under(part, size_mb, **settings):
    """Run a platform whose directory `part` is a disk of so many MiB, with what was in it before."""
    # Short, since a Unix socket's path may have 107 bytes at the most.
    with tempfile.TemporaryDirectory(prefix="md-", dir="/tmp") as home, ExitStack() as stack:
        data, mount = Path(home) / "data", Path(home) / "disk"
        if part == "postgres":
            # A cluster is moved into place when it is made: make it before the place is a disk.
            assert manage(data, "shell", "-c", "print('made')").stdout.endswith("made\n")
        directory = data / part
        for path in (mount, directory):
            path.mkdir(parents=True, exist_ok=True)
        script = (
            f"mount -t tmpfs -o size={size_mb}m tmpfs {shlex.quote(str(mount))}"
            f" && cp -a {shlex.quote(str(directory))}/. {shlex.quote(str(mount))}"
            f" && mount --bind {shlex.quote(str(mount))} {shlex.quote(str(directory))}"
            ' && exec "$@"'
        )
        up = Up(data, free_port(), before=("unshare", "-m", "sh", "-c", script, "sh"), **settings)
        stack.callback(lambda: wait_until(lambda: processes_of(data) == []))
        stack.callback(up.stop)
        up.wait_ready()
        yield up, Disk(up, directory)


class Sending:
    """Threads that send events one by one until each is acknowledged; notes every answer with its time.

    As a context it ends with a test that failed: threads that wait for an answer would keep the process alive.
    """

    def __init__(self, up):
        self.url, self.key = f"http://127.0.0.1:{up.port}", up.found(r"(wk_[\w-]+)")
        self.acknowledged, self.answers = set(), []
        self._enough, self._abandoned = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,), daemon=True) for number in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._enough.set()
        self._abandoned.set()

    def _send(self, sender):
        number = 0
        with httpx.Client(base_url=self.url, headers=basic(self.key), timeout=15) as client:
            # What was begun is sent to its end.
            while not self._enough.is_set():
                message_id = f"m{sender}-{number}"
                body = {
                    "messageId": message_id, "userId": f"u{sender}", "event": "Read", "properties": {"text": TEXT},
                }  # fmt: skip
                while self._post(client, body) != 200:
                    if self._abandoned.wait(0.1):
                        return
                self.acknowledged.add(message_id)
                number += 1

    def _post(self, client, body):
        try:
            status = client.post("/v1/track", json=body).status_code
        except httpx.TransportError:
            status = 0
        self.answers.append((time.monotonic(), status))
        return status

    def statuses(self, since=0.0, until=float("inf")):
        """Return the statuses of the answers that came in a time."""
        return {status for at, status in list(self.answers) if since <= at <= until}

    def finish(self):
        """Return when all that was begun is acknowledged."""
        self._enough.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)


def stored(up):
    """Return the message ids of all event rows."""
    address = json.loads((up.data / "run" / "servers.json").read_text())["environment"]["DATABASE_URL"]
    try:
        with psycopg.connect(address, connect_timeout=5) as connection:
            return [row[0] for row in connection.execute("SELECT message_id FROM event_stream").fetchall()]
    except psycopg.OperationalError:
        return []


def test_a_full_disk_under_the_log_acknowledges_nothing_that_is_lost():
    with disk_under("log", 40, LOG_DISK_RESERVE_MB=0) as (up, disk), Sending(up) as sending:
        wait_until(lambda: len(sending.acknowledged) > 100)
        disk.fill()
        # The log's server cannot write and ends; whoever asks is told to come again.
        wait_until(lambda: sending.statuses() != {200})
        full_since = time.monotonic()
        time.sleep(FULL_SECONDS)
        full_until = time.monotonic()
        disk.clear()
        assert sending.statuses(full_since + 0.5, full_until) <= {429, 503}
        assert "log ended with exit status 1; it starts again" in up.said()

        before = len(sending.acknowledged)
        wait_until(lambda: len(sending.acknowledged) > before + 100, 60)
        sending.finish()
        wait_until(lambda: set(stored(up)) >= sending.acknowledged, 60)
        assert sorted(stored(up)) == sorted(sending.acknowledged)
        wait_until(up.ready)


def test_a_disk_that_fills_up_is_noticed_before_it_is_full():
    with disk_under("log", 64, LOG_DISK_RESERVE_MB=8) as (up, disk), Sending(up) as sending:
        # Twice the disk: the log's file is written anew without what was processed, again and again.
        wait_until(lambda: len(sending.acknowledged) * len(TEXT) > 128 * 2**20, 240)
        # What is not the log's cannot be had back: then nobody may send until there is room.
        disk.fill(leave=8 * 2**20)
        wait_until(lambda: len(sending.answers) and sending.answers[-1][1] == 429, 30)
        told = httpx.get(f"{sending.url}/readyz").json()["parts"]["log"]
        disk.clear()
        assert told["status"] == "degraded"
        assert "429: its disk is at " in told["detail"]
        before = len(sending.acknowledged)
        wait_until(lambda: len(sending.acknowledged) > before + 100, 60)
        sending.finish()
        wait_until(lambda: set(stored(up)) >= sending.acknowledged, 60)
        assert sorted(stored(up)) == sorted(sending.acknowledged)
        assert sending.statuses() == {200, 429}
        assert "log ended" not in up.said()


def test_a_full_disk_under_postgresql_costs_nothing_and_stops_nobody_from_sending():
    with disk_under("postgres", 160) as (up, disk), Sending(up) as sending:
        wait_until(lambda: len(stored(up)) > 100)
        disk.fill()
        full_since = time.monotonic()
        before = len(sending.acknowledged)
        wait_until(lambda: "No space left on device" in up.said(), 60)
        time.sleep(FULL_SECONDS)
        full_until = time.monotonic()
        # Tracking calls need the log alone.
        assert len(sending.acknowledged) > before
        assert sending.statuses(full_since, full_until) == {200}
        sending.finish()
        assert set(stored(up)) != sending.acknowledged
        disk.clear()

        wait_until(lambda: set(stored(up)) >= sending.acknowledged, 90)
        assert sorted(stored(up)) == sorted(sending.acknowledged)
        wait_until(up.ready, 60)
