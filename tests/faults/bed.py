"""The bed of the fault suite: the platform as `manage.py up` runs it, with a second processor and beat beside it."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import psycopg
import redis

from martech.embedded import options, programs
from martech.embedded.supervisor import Supervisor
from tests.running import ROOT, environment, free_port, manage, processes_of, wait_until

START_SECONDS = 120.0
READY_SECONDS = 120.0
DRAIN_SECONDS = 120.0
# What runs twice, so that one takes over from the other.
SECOND = ("processor", "beat")


class Bed:
    """The platform on a data directory of its own; a context manager that leaves no process behind.

    Programs are named as their supervisor names them; `processor-2` and `beat-2` are ours. `lines` is the file with
    what all of them say.
    """

    def __init__(self, lines: Path, **settings: Any) -> None:
        self.lines = lines
        self.settings = settings
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # Short, since a Unix socket's path may have 107 bytes at the most.
            self.home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp")))
            self._output = stack.enter_context(self.lines.open("w"))
            stack.callback(self._require_nothing_left)
            self._start(stack)
            self._start_second(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        for name in self.names():
            self.signal(name, signal.SIGCONT)
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        settings = {"PORT": self.port, "WEB_WORKERS": 2, **self.settings}
        self._up = subprocess.Popen(
            [sys.executable, "manage.py", "up"],
            cwd=ROOT, env=environment(self.home, **settings), stdout=self._output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        stack.callback(self._stop)
        self.wait_ready(START_SECONDS)
        self.write_key = manage(self.home, "create_source", "Faults").stdout.strip()
        self.api_key = manage(self.home, "create_api_key", "Faults", "--scopes", "all").stdout.strip()
        self.addresses: dict[str, str] = json.loads((self.home / "run" / "servers.json").read_text())["environment"]
        self.servers: dict[str, Any] = {
            role: redis.Redis.from_url(self.addresses[f"{role.upper()}_URL"], socket_timeout=2)
            for role in ("log", "broker", "cache")
        }
        for client in self.servers.values():
            stack.callback(client.close)
        self.log_memory = int(self.servers["log"].config_get("maxmemory")["maxmemory"])

    def _start_second(self, stack: ExitStack) -> None:
        """Run a second processor and beat, under a supervisor of our own."""
        own = {
            "SECRET_KEY": (self.home / "secret-key").read_text().strip(),
            "PROMETHEUS_MULTIPROC_DIR": self.home / "run" / "metrics",
            "DJANGO_SETTINGS_MODULE": "martech.settings",
            "PYTHONUNBUFFERED": "1",
        }
        self._seconds = self.home / "second"
        self._seconds.mkdir()
        supervisor = stack.enter_context(
            Supervisor(
                pids=self._seconds, cwd=ROOT, output=self._output,
                environment=environment(self.home, **self.settings, **self.addresses, **own),
            )
        )  # fmt: skip
        for program in programs.programs(options.load()):
            if program.name in SECOND:
                supervisor.start(replace(program, name=f"{program.name}-2"))

    def _stop(self) -> None:
        self._up.terminate()
        try:
            self._up.wait(30)
        except subprocess.TimeoutExpired:
            self._up.kill()
            self._up.wait()

    def _require_nothing_left(self) -> None:
        assert processes_of(self.home) == []

    def names(self) -> list[str]:
        """Return the names of all programs that run."""
        return [path.stem for place in (self.home / "run", self._seconds) for path in place.glob("*.pid")]

    def process(self, name: str) -> psutil.Process | None:
        """Return the process of a program, None while it does not run."""
        place = self._seconds if name.endswith("-2") else self.home / "run"
        try:
            return psutil.Process(json.loads((place / f"{name}.pid").read_text())["pid"])
        except (OSError, ValueError, psutil.NoSuchProcess):
            return None

    def age(self, name: str) -> float:
        """Return the seconds for which a program has run, 0 while it does not."""
        process = self.process(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            return time.time() - process.create_time() if process else 0.0
        return 0.0

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to the first process of a program, if it runs."""
        process = self.process(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            if process:
                process.send_signal(number)

    def children(self, name: str, words: str = "") -> list[psutil.Process]:
        """Return the direct children of a program in whose command line the words are."""
        process = self.process(name)
        if process is None:
            return []
        return [child for child in process.children() if words in _command(child)]

    def rows(self, query: str, values: Any = ()) -> list[tuple[Any, ...]]:
        """Return what a query of the database gives."""
        address = self.addresses["DATABASE_URL"]
        with psycopg.connect(address, autocommit=True, connect_timeout=5) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def heal(self) -> None:
        """Let everything run as it should, and return when the platform is ready."""
        for name in self.names():
            self.signal(name, signal.SIGCONT)
        for worker in self.children("web"):
            worker.send_signal(signal.SIGCONT)
        self.wait_ready()
        self.servers["log"].config_set("maxmemory", self.log_memory)
        wait_until(lambda: self.age("processor") and self.age("processor-2"), READY_SECONDS)

    def ready(self) -> bool:
        """Say whether the platform calls itself ready."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Return when the platform is ready."""
        wait_until(lambda: self.ready() or self._up.poll() is not None, seconds)
        assert self._up.poll() is None, self.last_lines()

    def behind(self) -> dict[int, str]:
        """Return the partitions whose checkpoint is not at the newest position of the log, with that position."""
        newest = {partition: self._newest(partition) for partition in range(self._partitions)}
        rows = self.rows("SELECT partition, position FROM cdp_checkpoint WHERE log = %s", [self._log_name])
        done = dict(rows)
        return {one: position for one, position in newest.items() if position and position != done.get(one)}

    @property
    def _log_name(self) -> str:
        return "redis:" + self.servers["log"].get("martech:log:id").decode()

    @property
    def _partitions(self) -> int:
        return int(self.settings.get("LOG_PARTITIONS", 8))

    def _newest(self, partition: int) -> str:
        key = f"martech:log:{partition}"
        if not self.servers["log"].exists(key):
            return ""
        return self.servers["log"].xinfo_stream(key)["last-generated-id"].decode()

    def drain(self) -> float:
        """Wait until all that is in the log has been processed; return how many seconds that took."""
        started = time.monotonic()
        while left := self.behind():
            assert time.monotonic() - started < DRAIN_SECONDS, f"stuck: {left} not reached\n{self.last_lines()}"
            time.sleep(0.1)
        return time.monotonic() - started

    def token(self) -> str:
        """Return the token of all that is in the log, as `min_position` takes it."""
        newest = {partition: self._newest(partition) for partition in range(self._partitions)}
        return ",".join(f"{partition}.{position}" for partition, position in newest.items() if position)

    def profile(self, reference: str, token: str) -> dict[str, Any]:
        """Return a profile as readers get it at a position: from the cache, where that has it."""
        answer = httpx.get(
            f"{self.url}/v1/profiles/{reference}",
            params={"min_position": token}, headers={"Authorization": f"Bearer {self.api_key}"}, timeout=15,
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        return json.loads(answer.text, parse_float=Decimal)

    def found(self, reference: str) -> dict[str, Any] | None:
        """Return a profile as readers get it now, None where there is none."""
        headers = {"Authorization": f"Bearer {self.api_key}"}
        answer = httpx.get(f"{self.url}/v1/profiles/{reference}", headers=headers, timeout=15)
        assert answer.status_code in {200, 404}, answer.text
        return answer.json() if answer.status_code == 200 else None

    def last_lines(self, number: int = 60) -> str:
        """Return the last lines that the programs said."""
        return "".join(self.lines.read_text(errors="replace").splitlines(keepends=True)[-number:])


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
