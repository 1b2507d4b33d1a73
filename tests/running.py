"""Running parts of the platform as processes of their own, on a data directory of the test's."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
OWN = ("DATABASE_URL", "LOG_URL", "BROKER_URL", "CACHE_URL", "SECRET_KEY", "MARTECH_DATA", "PROMETHEUS_MULTIPROC_DIR")


def environment(data, **more):
    """Return an environment that knows nothing of the test session's servers."""
    kept = {name: value for name, value in os.environ.items() if name not in OWN and not name.startswith("PYTEST")}
    return kept | {"MARTECH_DATA": str(data)} | {name: str(value) for name, value in more.items()}


def manage(data, *arguments, **more):
    """Run a management command to its end and return what came out."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT, env=environment(data, **more), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def processes_of(data):
    """Return the living processes that belong to a data directory: by environment, command line or workplace."""
    return [one for one in psutil.process_iter() if _belongs(one, str(data))]


def _belongs(process, data):
    with contextlib.suppress(psutil.Error):
        if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
            return False
        with contextlib.suppress(psutil.Error):
            if process.environ().get("MARTECH_DATA") == data:
                return True
        return data in " ".join(process.cmdline()) or process.cwd().startswith(data)
    return False


def free_port():
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(true, seconds=20.0):
    """Return what `true` returns as soon as it is truthy; fail when it never is."""
    deadline = time.monotonic() + seconds
    while not (result := true()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.03)
    return result
