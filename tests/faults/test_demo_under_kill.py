"""The demo while its processes are killed: nothing is lost and nothing counts twice.

ROUNDS says how often each program is killed (once up to 3 rounds, twice above), SEED in which order.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from tests.running import ROOT, environment, free_port, processes_of, wait_until

pytestmark = pytest.mark.faults

KILLS = 1 if int(os.environ.get("ROUNDS", "3")) <= 3 else 2
SEED = int(os.environ.get("SEED", "1"))
VICTIMS = ["web", "log", "processor", "cache", "worker", "broker", "postgres"]
DEMO_SECONDS = 300
# The supervisor pauses for 0.5, 1, 2 and 4 s after these, and the web process starts in one or two.
KILLS_IN_A_ROW = 4


class Demo:
    """A demo that runs as its own process, and the lines that it says."""

    def __init__(self, data, process):
        self.data, self.process, self.lines = data, process, []
        self._reader = threading.Thread(target=lambda: self.lines.extend(process.stderr), daemon=True)
        self._reader.start()

    def says(self, text):
        """Say whether a line with this text has come."""
        return any(text in line for line in list(self.lines))

    def pid(self, name):
        """Return the process id of a program, as its supervisor noted it; None while it does not run."""
        try:
            return json.loads((self.data / "run" / f"{name}.pid").read_text())["pid"]
        except (OSError, ValueError):
            return None

    def kill(self, name):
        """Kill a program once it runs; return its process id."""
        return wait_until(lambda: self._killed(name), 60)

    def _killed(self, name):
        pid = self.pid(name)
        try:
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            # It was killed before, and its supervisor has not noticed yet.
            return None
        return pid

    def result(self):
        """Wait for the end; return the exit status and the comparison."""
        output = self.process.stdout.read()
        status = self.process.wait(DEMO_SECONDS)
        assert output, "".join(self.lines[-20:])
        return status, json.loads(output)


@contextmanager
def demo(data):
    """Run `manage.py demo` until its end."""
    with subprocess.Popen(
        [sys.executable, "manage.py", "demo", "--exit", "--json"],
        cwd=ROOT, env=environment(data, PORT=free_port()), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield Demo(data, process)
        finally:
            process.terminate()
    assert processes_of(data) == []


def differences(comparison):
    return [line for line in comparison["lines"] if not line["equal"]]


def test_whatever_is_killed_during_the_replay_the_totals_are_equal(tmp_path):
    chance = random.Random(SEED)
    victims = VICTIMS * KILLS
    chance.shuffle(victims)
    with demo(tmp_path / "data") as running:
        wait_until(lambda: running.says("Martech is ready") or running.process.poll() is not None, 120)
        for victim in victims:
            time.sleep(chance.uniform(0.5, 2.0))
            assert running.process.poll() is None, "the replay was over before the last kill"
            running.kill(victim)
        status, comparison = running.result()
    assert differences(comparison) == []
    assert status == 0
    for victim in set(victims):
        assert running.says(f"{victim} was ended by SIGKILL; it starts again"), victim


def test_a_web_process_that_is_away_for_ten_seconds_costs_no_event(tmp_path):
    with demo(tmp_path / "data") as running:
        wait_until(lambda: running.says("Martech is ready") or running.process.poll() is not None, 120)
        time.sleep(1)
        for _ in range(KILLS_IN_A_ROW):
            running.kill("web")
            time.sleep(0.2)
        status, comparison = running.result()
    assert differences(comparison) == []
    assert status == 0
