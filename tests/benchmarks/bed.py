"""The test bed: the platform's own servers and processes, as `manage.py up` runs them, on a directory of its own."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, Self

import httpx
import msgspec
import psutil
import psycopg
import redis

from tests.benchmarks.load import Plan, Result
from tests.running import ROOT, free_port

ADDRESSES = ("DATABASE_URL", "LOG_URL", "BROKER_URL", "CACHE_URL", "SECRET_KEY", "PROMETHEUS_MULTIPROC_DIR")
START_SECONDS = 60.0
DRAIN_SECONDS = 300.0
# What is measured; worker and beat would only disturb.
PROGRAMS = ("web", "processor")
SERVERS = ("log", "cache", "postgres")


class Bed:
    """Servers, web process and processor; a context manager. Nothing is left behind."""

    def __init__(self) -> None:
        # Ports of servers that a row started beside ours.
        self.extra: dict[str, int] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # Short, since a Unix socket's path may have 107 bytes at the most.
            self.home_path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp")))
            self._output = stack.enter_context((self.home_path / "output").open("w"))
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self.resume("processor")
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        self.port = free_port()
        for name in ADDRESSES:
            os.environ.pop(name, None)
        os.environ |= {
            "MARTECH_DATA": str(self.home_path), "PORT": str(self.port), "DJANGO_SETTINGS_MODULE": "martech.settings",
        }  # fmt: skip
        from martech.embedded import options, programs, sharing
        from martech.embedded.home import Home
        from martech.embedded.servers import Servers
        from martech.embedded.supervisor import Supervisor

        settings, home = options.load(), Home(self.home_path)
        home.create()
        servers = Servers(home, settings)
        addresses = servers.environment() | {
            "SECRET_KEY": sharing.secret_key(home), "PROMETHEUS_MULTIPROC_DIR": str(home.metrics),
        }  # fmt: skip
        os.environ |= addresses
        self.supervisor = stack.enter_context(
            Supervisor(pids=home.run, environment=programs.environment(addresses), cwd=ROOT, output=self._output)
        )
        servers.start(self.supervisor)
        servers.wait(self.supervisor)
        self._prepare(home)
        for program in programs.programs(settings):
            if program.name in PROGRAMS:
                self.supervisor.start(program)
        self._connect(stack)
        wait_until(lambda: _answers(self.port), START_SECONDS, "the web process")
        wait_until(lambda: self.checkpoints() == self.config.log_partitions, START_SECONDS, "the processor")

    def _prepare(self, home: object) -> None:
        import django

        django.setup()
        from django.conf import settings
        from django.db import connections

        from cdp import keys
        from martech.embedded import first_run

        first_run.migrate()
        source = keys.create_source(name="Bench")
        _, self.api_key = keys.create_api_key(name="Bench", scopes=["all"])
        keys.publish_keys()
        connections.close_all()
        self.write_key, self.source_id, self.config = source.write_key, source.pk, settings.CONFIG

    def _connect(self, stack: ExitStack) -> None:
        self.database = stack.enter_context(psycopg.connect(self.config.database_url, autocommit=True))
        self.log = redis.Redis.from_url(self.config.log_url)
        self.cache = redis.Redis.from_url(self.config.cache_url)
        stack.callback(self.log.close)
        stack.callback(self.cache.close)

    def checkpoints(self) -> int:
        """Return how many partitions the processor has taken."""
        return self.number("SELECT count(*) FROM cdp_checkpoint")

    def processed(self) -> int:
        """Return how many events have been processed."""
        return self.number("SELECT coalesce(sum(events), 0)::bigint FROM cdp_checkpoint")

    def number(self, query: str) -> int:
        """Return the one number that a query gives."""
        return int(self.database.execute(query.encode()).fetchall()[0][0])

    def wait_processed(self, count: int) -> None:
        """Return when so many events have been processed since the start."""
        wait_until(lambda: self.processed() >= count, DRAIN_SECONDS, f"{count} processed events", pause=0.005)

    def forget_log(self) -> None:
        """Empty the log; its positions go on. Only while the processor is paused or has nothing to read."""
        for partition in range(self.config.log_partitions):
            self.log.xtrim(f"martech:log:{partition}", maxlen=0, approximate=False)

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Have a program stand still during the block."""
        self._signal(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self.resume(name)

    def resume(self, name: str) -> None:
        """Let a program go on."""
        self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> None:
        pid = self.supervisor.pid(name)
        if pid is not None:
            os.kill(pid, number)

    def cpu(self) -> dict[str, float]:
        """Return the CPU seconds that each server and program has used, children included."""
        pids = {name: self.supervisor.pid(name) for name in (*PROGRAMS, *SERVERS)}
        return {name: cpu_seconds(pid) for name, pid in pids.items() if pid is not None}

    def plan(self, **changes: Any) -> Plan:
        """Return a plan of sending events to the web process, with changes."""
        user = b64encode(f"{self.write_key}:".encode()).decode()
        sending = {
            "port": self.port, "authorization": f"Basic {user}", "rate": 0.0, "seconds": 1.0,
            "tag": token_hex(4),
        }  # fmt: skip
        return Plan(**(sending | changes))


def run_load(plan: Plan) -> Result:
    """Carry out a plan in a process of its own and return what came of it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.load"],
        cwd=ROOT, input=msgspec.json.encode(plan), stdout=subprocess.PIPE, check=True,
        timeout=plan.seconds + 60,
    )  # fmt: skip
    return msgspec.json.decode(done.stdout, type=Result)


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and its children, the ended ones included."""
    process = psutil.Process(pid)
    own = process.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return float(total)


def wait_until(reached: Callable[[], bool], seconds: float, what: str, pause: float = 0.05) -> None:
    """Return when `reached` says so; TimeoutError naming `what` when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Waited {seconds:.0f} s for {what}.")
        time.sleep(pause)


def _answers(port: int) -> bool:
    try:
        return httpx.post(f"http://127.0.0.1:{port}/v1/track", content=b"{}").status_code == 401
    except httpx.HTTPError:
        return False
