"""Processes that outlived their supervisor: found by what it noted about them, ended by their id."""

import contextlib
import json
import signal
from pathlib import Path

import psutil

from martech.embedded import guard

# psutil derives a process's start from the system clock, which may be set meanwhile.
CLOCK_STEP_SECONDS = 2.0


def note(run: Path, name: str, pid: int, number: signal.Signals) -> None:
    """Note that the program `name` runs, and which signal ends it."""
    # A full disk must not stop a restart: the guard knows the process as well.
    with contextlib.suppress(OSError, psutil.NoSuchProcess):
        entry = {"pid": pid, "started": psutil.Process(pid).create_time(), "signal": number.value}
        (run / f"{name}.pid").write_text(json.dumps(entry))


def forget(run: Path, name: str) -> None:
    """Note that the program `name` ended."""
    (run / f"{name}.pid").unlink(missing_ok=True)


def end(run: Path) -> None:
    """End what an earlier supervisor of this directory left running."""
    files = sorted(run.glob("*.pid"))
    guard.end(dict(found for file in files if (found := _ours(file)) is not None))
    for file in files:
        file.unlink(missing_ok=True)


def _ours(file: Path) -> tuple[int, int] | None:
    """Return the process id and the signal of a noted process, when it still is the one that was noted."""
    try:
        entry = json.loads(file.read_text())
        started = psutil.Process(entry["pid"]).create_time()
    except (ValueError, KeyError, psutil.NoSuchProcess):
        return None
    same = abs(started - entry["started"]) <= CLOCK_STEP_SECONDS
    return (entry["pid"], entry["signal"]) if same else None


def end_workers(name: str, workplace: Path) -> None:
    """Kill the processes called `name` whose working directory is `workplace`."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == name and process.cwd() == str(workplace):
                process.kill()
