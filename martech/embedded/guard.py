"""The guard: ends what a supervisor leaves behind when it is killed.

A process of its own (`python -I -S guard.py`), told on standard input what runs: `+ PID SIGNAL` and `- PID` lines.
The input ends when the supervisor does, however it ends; whatever still runs then gets its signal, and SIGKILL
after a while. (The parent-death signal of Linux would not do: it is lost on the way through `unshare`, it does not
reach the children's children, and macOS has none.)
"""

import contextlib
import os
import signal
import sys
import time

PATIENCE_SECONDS = 5.0


def main() -> None:
    """Follow the supervisor to its end, then end what is left."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    running: dict[int, int] = {}
    for line in sys.stdin:
        change, pid, *number = line.split()
        if change == "+":
            running[int(pid)] = int(number[0])
        else:
            running.pop(int(pid), None)
    end(running)


def end(running: dict[int, int]) -> None:
    """Signal the process groups, wait, and kill the rest."""
    for pid, number in running.items():
        _signal(pid, number)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and any(_signal(pid, 0) for pid in running):
        time.sleep(0.05)
    for pid in running:
        _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> bool:
    # macOS answers EPERM for a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
        return True
    return False


if __name__ == "__main__":
    main()
