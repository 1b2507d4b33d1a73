"""Keeps programs running: prints what they say, restarts what crashes, stops all in order and leaves nothing."""

import contextlib
import errno
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TextIO, cast

import psutil
from honcho import colour
from honcho.printer import Message, Printer
from honcho.process import Process

from martech.embedded import guard, leftovers

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# A program that ran this long was well (what it cannot work with it meets at its start): its next crash starts from
# the first pause again. Otherwise servers that are killed every few seconds would stay away for longer and longer.
WELL_SECONDS = 5.0
WATCH_SECONDS = 0.25
OWN_NAME = "platform"
WIDTH = len("processor")
# Red is for what goes wrong.
COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "intense_cyan", "intense_green", "intense_magenta")
TELLING = re.compile(r"FATAL|PANIC|rror|No space left|annot|ailed|denied")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A process to keep running.

    `stage`: lower stages are stopped first. `stop_signals`: the first one asks, the next one insists after `grace`
    seconds; SIGKILL to the whole group ends it in any case. `abandoned_signal`: what the guard sends when the
    supervisor was killed. `workplace`: processes of the program's name whose working directory it is belong to
    the program even though they left its group. `environment` is added to the supervisor's. `least_grace` holds
    even in a hurry.
    """

    name: str
    command: Sequence[str]
    stage: int
    stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)
    grace: float = 2.5
    least_grace: float = 0.0
    abandoned_signal: signal.Signals = signal.SIGKILL
    workplace: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


class Supervisor:
    """Runs programs until it is left; a context manager.

    `pids` is the directory of its pid files. Each line goes to `output` with the program's name before it; when
    nobody reads `output` any more, `unheard` is set and nothing more is printed. Setting `hurry` cuts the patience
    of a stop, even of one under way.
    """

    def __init__(self, *, pids: Path, environment: Mapping[str, str], cwd: Path, output: TextIO | None = None) -> None:
        self.pids = pids
        self.environment = dict(environment)
        self.cwd = cwd
        self.stopping = threading.Event()
        self.hurry = threading.Event()
        self.unheard = threading.Event()
        self._output = output or sys.stdout
        self._printer = Printer(self._output, width=WIDTH)
        self._lock = threading.Lock()
        self._colours = itertools.cycle(getattr(colour, name) for name in COLOURS)
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> "Supervisor":
        leftovers.end(self.pids)
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        with contextlib.suppress(OSError):
            self._guard.communicate()

    def start(self, program: Program) -> None:
        """Run the program from now on."""
        child = _Child(self, program, next(self._colours))
        self._children[program.name] = child
        child.thread.start()

    def pid(self, name: str) -> int | None:
        """Return the process id of a program while it runs."""
        return self._children[name].pid

    def uptime(self, name: str) -> float:
        """Return for how many seconds the present process of a program has run; 0 while there is none."""
        child = self._children[name]
        return time.monotonic() - child.began if child.pid is not None else 0.0

    def restart(self, name: str, why: str) -> None:
        """End a program, which then starts again; one that clings on is killed."""
        child = self._children[name]
        pid = child.pid
        if pid is None or self.stopping.is_set():
            return
        self.say(f"{name} is started again: {why}")
        child.signal(child.program.stop_signals[0])
        deadline = time.monotonic() + child.program.grace
        while child.pid == pid and time.monotonic() < deadline:
            time.sleep(0.05)
        if child.pid == pid:
            child.kill()

    def ends(self, name: str) -> tuple[int, str]:
        """Return how often a program ended by itself, and the most telling of the last lines it printed."""
        child = self._children[name]
        lines = list(child.last_lines) or ["it said nothing"]
        return child.ends, next((line for line in reversed(lines) if TELLING.search(line)), lines[-1])

    def say(self, text: str) -> None:
        """Print a line of our own."""
        self.write(Message("line", text, datetime.now().astimezone(), OWN_NAME, None))

    def show(self, block: str) -> None:
        """Print a block with nothing before its lines, so that they can be copied."""
        self._print(lambda: print(block, file=self._output, flush=True))

    def write(self, message: Message) -> None:
        """Print what a program said."""
        self._print(lambda: self._printer.write(message))

    def _print(self, write: Callable[[], None]) -> None:
        with self._lock:
            if self.unheard.is_set():
                return
            try:
                write()
            except OSError as error:
                # A full disk under a log file costs the line, a reader that went away ends the reading.
                if error.errno in (errno.EPIPE, errno.EIO):
                    self.unheard.set()

    def tell_guard(self, line: str) -> None:
        """Keep the guard's picture of what runs."""
        stdin = cast(TextIO, self._guard.stdin)
        with self._lock, contextlib.suppress(OSError, ValueError):
            stdin.write(line + "\n")
            stdin.flush()

    def stop(self) -> None:
        """Stop everything, the lowest stage first."""
        self.stopping.set()
        children = list(self._children.values())
        for stage in sorted({child.program.stage for child in children}):
            self._stop_stage([child for child in children if child.program.stage == stage])

    def _stop_stage(self, children: list["_Child"]) -> None:
        for attempt in range(max(len(child.program.stop_signals) for child in children)):
            for child in children:
                child.signal(child.program.stop_signals[min(attempt, len(child.program.stop_signals) - 1)])
            self._await_end(children)
        for child in children:
            child.kill()
        for child in children:
            child.thread.join(1.0)

    def _await_end(self, children: list["_Child"]) -> None:
        began = time.monotonic()
        while alive := [child.program for child in children if child.thread.is_alive()]:
            waited = time.monotonic() - began
            patience = max(program.least_grace if self.hurry.is_set() else program.grace for program in alive)
            if waited > patience:
                return
            time.sleep(0.02)

    def _watch(self) -> None:
        """End the rest of a group whose leader is gone: while it holds the leader's pipe, nobody notices."""
        while not self.stopping.wait(WATCH_SECONDS) or any(
            child.thread.is_alive() for child in self._children.values()
        ):
            for child in list(self._children.values()):
                child.end_headless()
            if self.stopping.is_set():
                time.sleep(0.05)


class _Child:
    """One program's life, in a thread: run, note the end, pause, run again. Its honcho process's event queue, too."""

    def __init__(self, supervisor: Supervisor, program: Program, colour: str) -> None:
        self.program = program
        self.thread = threading.Thread(target=self._live, name=program.name, daemon=True)
        self.pid: int | None = None
        self.began = 0.0
        self.ends = 0
        self.last_lines: deque[str] = deque(maxlen=8)
        self._supervisor = supervisor
        self._colour = colour
        self._end = ""

    def _live(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._supervisor.stopping.is_set():
            began = time.monotonic()
            self._run_once()
            if self._supervisor.stopping.is_set():
                return
            self.ends += 1
            if time.monotonic() - began >= WELL_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            self._supervisor.say(f"{self.program.name} {self._end}; it starts again in {pause:g} s")
            self._supervisor.stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _run_once(self) -> None:
        process = Process(
            f"exec {shlex.join(self.program.command)} </dev/null",
            name=self.program.name,
            colour=self._colour,
            env=self._supervisor.environment | dict(self.program.environment),
            cwd=str(self._supervisor.cwd),
        )
        try:
            process.run(events=self)
        except OSError as error:
            self._end = f"could not be started ({error})"
        finally:
            self._has_ended()

    def put(self, message: Message) -> None:
        """Take an event of the honcho process, in the thread that runs it."""
        if message.type == "line":
            self.last_lines.append(message.data.decode("utf-8", "replace").strip())
            self._supervisor.write(message)
        elif message.type == "start":
            self._has_started(message.data["pid"])
        else:
            self._end = _describe(message.data["returncode"])

    def _has_started(self, pid: int) -> None:
        self.began = time.monotonic()
        self.pid = pid
        self._supervisor.tell_guard(f"+ {pid} {self.program.abandoned_signal.value}")
        leftovers.note(self._supervisor.pids, self.program.name, pid, self.program.abandoned_signal)
        if self._supervisor.stopping.is_set():
            self.signal(self.program.stop_signals[0])

    def _has_ended(self) -> None:
        if self.pid is None:
            return
        self._end_rest(self.pid)
        self._supervisor.tell_guard(f"- {self.pid}")
        leftovers.forget(self._supervisor.pids, self.program.name)
        self.pid = None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program's first process."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the program with its children."""
        if self.pid is not None:
            self._end_rest(self.pid)

    def end_headless(self) -> None:
        """Kill the children when the first process is dead."""
        pid = self.pid
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid is not None and psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                self._end_rest(pid)

    def _end_rest(self, pid: int) -> None:
        # macOS answers EPERM for a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        if self.program.workplace is not None:
            leftovers.end_workers(self.program.name, self.program.workplace)


def _describe(returncode: int) -> str:
    """Say how a process ended."""
    if returncode >= 0:
        return f"ended with exit status {returncode}"
    try:
        return f"was ended by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was ended by signal {-returncode}"
