"""The whole platform under one supervisor: what `manage.py up` and `manage.py demo` run."""

import contextlib
import errno
import http.client
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from martech.embedded import first_run, options, programs, watchdog
from martech.embedded.first_run import Access
from martech.embedded.home import Home
from martech.embedded.options import Options
from martech.embedded.servers import ADDRESSES, Servers
from martech.embedded.supervisor import Supervisor
from martech.embedded.table import base_url, ready_block
from martech.lib.errors import ConfigurationError

# A signal that comes twice within this time is one wish: `make` passes on what the terminal sends to both.
ECHO_SECONDS = 1.0
OPEN_FILES = 65536


class Stop(BaseException):
    """Somebody asked for the end; not an Exception, so that nothing on the way takes it for a failure."""


@dataclass(frozen=True, slots=True)
class Platform:
    """The platform once it is ready."""

    options: Options
    access: Access
    supervisor: Supervisor
    url: str


Work = Callable[[Platform], int | None]


def run(work: Work | None = None) -> int:
    """Start the platform, do `work` when it is ready, and stay up until a signal or an unread output ends it.

    Return the exit status: the number that `work` returned (then the platform does not stay up), else 0; 130 when
    the end came before the work was done. ConfigurationError says what a person has to correct.
    """
    settings = options.load()
    home = Home(settings.data)
    home.create()
    done = False
    _raise_open_files()
    try:
        with _started(settings, home) as platform:
            platform.supervisor.show(ready_block(settings, platform.access, colours=sys.stdout.isatty()))
            status = work(platform) if work else None
            done = True
            if status is not None:
                return status
            while not platform.supervisor.unheard.wait(1):
                pass
            _discard_output()
    except Stop:
        return 0 if done or work is None else 130
    return 0


def _discard_output() -> None:
    """Send what is still buffered nowhere: Python would complain about it at its end."""
    with open(os.devnull, "w") as null, contextlib.suppress(OSError):
        os.dup2(null.fileno(), sys.__stdout__.fileno() if sys.__stdout__ else 1)


@contextlib.contextmanager
def _started(settings: Options, home: Home) -> Iterator[Platform]:
    servers = Servers(home, settings)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(_Signals())
        with home.lock("start"):
            _own(home, stack)
            require_free_port(settings)
            _forget_metrics(home)
            supervisor = Supervisor(
                pids=home.run, environment=programs.environment(servers.environment()), cwd=options.ROOT
            )
            stack.enter_context(signals.stopping(supervisor))
            stack.callback(home.forget_servers)
            supervisor.say(f"data in {home.path}")
            servers.start(supervisor)
            servers.wait(supervisor)
            home.write_servers({name: supervisor.environment[name] for name in ADDRESSES}, owner="platform")
        access = _prepare(home, supervisor)
        for program in programs.programs(settings):
            supervisor.start(program)
        _await_ready(settings, supervisor)
        watchdog.start(supervisor, concurrency=settings.worker_concurrency)
        yield Platform(settings, access, supervisor, base_url(settings))


def _own(home: Home, stack: contextlib.ExitStack) -> None:
    try:
        stack.enter_context(home.lock("owner", wait=False))
    except BlockingIOError:
        running = home.read_servers() or {"owner": "platform", "pid": "?"}
        if running["owner"] == "command":
            raise ConfigurationError(
                f"A management command uses the embedded servers of {home.path}: start the platform when it has ended."
            ) from None
        raise ConfigurationError(
            f"The platform is up already on {home.path} (process {running['pid']}): use that one, stop it first, or "
            f"choose another directory with MARTECH_DATA=… and another port with PORT=…."
        ) from None


def require_free_port(settings: Options) -> None:
    """Raise ConfigurationError when the web process could not listen where it should."""
    where = f"{settings.host}:{settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the web process does; a connection that is just closing is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                why = "is taken by another program: stop that, or choose another port with PORT=…"
            elif error.errno == errno.EACCES:
                why = "is reserved for root: choose a port above 1023 with PORT=…"
            else:
                why = f"cannot be listened on ({error}): correct WEB_HOST=…"
            raise ConfigurationError(f"The address {where} {why}.") from error


def _forget_metrics(home: Home) -> None:
    for path in home.metrics.glob("*.db"):
        path.unlink(missing_ok=True)


def _raise_open_files() -> None:
    """Let the web process have as many connections as the system allows: the usual limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    # macOS refuses more than its kernel's own limit.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _prepare(home: Home, supervisor: Supervisor) -> Access:
    """Bring the database up to date; the errors of the database become one line."""
    from django.db import Error, connections

    try:
        missing = first_run.migrate()
        if missing:
            supervisor.say(f"applied {missing} migrations")
        return first_run.ensure_access(home)
    except Error as error:
        raise ConfigurationError(
            f"The database cannot be prepared ({str(error).splitlines()[0]}): correct that, or DATABASE_URL."
        ) from error
    finally:
        connections.close_all()


def _await_ready(settings: Options, supervisor: Supervisor) -> None:
    told, pause = "", 0.1
    while why := _why_not_ready(settings):
        if supervisor.unheard.is_set():
            _discard_output()
            raise Stop
        if why != told:
            told = why
            supervisor.say(f"not ready yet: {why}")
        time.sleep(pause)
        pause = min(pause * 1.2, 1.0)


def _why_not_ready(settings: Options) -> str:
    """Return what /readyz says is missing; empty when nothing is."""
    host = base_url(settings).removeprefix("http://").rpartition(":")[0].strip("[]")
    connection = http.client.HTTPConnection(host, settings.port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return "the web process does not answer"
    finally:
        connection.close()
    return "" if answer.status == 200 else _reason(body) or f"/readyz says {answer.status}"


def _reason(body: bytes) -> str:
    """Return what is down in an answer of /readyz."""
    try:
        parts = json.loads(body)["parts"]
        down = [f"{name}: {part['detail']}" for name, part in parts.items() if part["status"] == "down"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    return "; ".join(down)


class _Signals:
    """Turns the first signal that asks for an end into Stop, and a later one into haste; a context manager."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._supervisor: Supervisor | None = None

    def __enter__(self) -> "_Signals":
        self._before = {number: signal.signal(number, self._handle) for number in self.NUMBERS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def stopping(self, supervisor: Supervisor) -> Iterator[None]:
        """Run the supervisor; from the moment the block ends, a signal hastens the stop and no longer raises."""
        with supervisor:
            self._supervisor = supervisor
            try:
                yield
            finally:
                self._asked_at = self._asked_at or time.monotonic()
                supervisor.say("stopping")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            raise Stop
        if self._supervisor is not None and now - self._asked_at > ECHO_SECONDS:
            self._supervisor.hurry.set()
