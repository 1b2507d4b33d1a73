"""How a management command comes to its servers: those of the running platform, else some for its own time.

Three locks (flock) keep it simple, since the system frees them however their holder ends:

- `start` is held while somebody starts, joins, leaves or stops the servers; so these happen one at a time.
- `owner` is held by the process that supervises the servers: `manage.py up`, or a keeper (martech.embedded.keeper).
- `users` is held, shared, by each command that uses a keeper's servers. The first command starts a keeper, commands
  that come meanwhile share its servers, the last one to leave stops it; should that one be killed, the keeper gets
  the lock and stops by itself. `up` does not start while commands use the servers, and says so.
"""

import contextlib
import fcntl
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO, cast

import psutil

from martech.embedded import options
from martech.embedded.failures import explained
from martech.embedded.home import Home
from martech.embedded.servers import ADDRESSES, Servers
from martech.lib.errors import ConfigurationError

SERVERLESS = {"help", "version", "check", "spectacular", "diffsettings", "collectstatic", "findstatic", "makemessages"}
QUESTIONS = {"--help", "-h", "--version"}
PLATFORM = {"up", "demo"}
STOP_SECONDS = 10.0


@contextlib.contextmanager
def servers_for(argv: Sequence[str]) -> Iterator[None]:
    """Set the addresses that the command `argv` needs in the environment, where they are unset, and keep them valid.

    `up` and `demo` get the addresses that they are going to start. Commands that need no server start none.
    """
    settings = options.load()
    home = Home(settings.data)
    os.environ["MARTECH_DATA"] = str(home.path)
    if all(os.environ.get(name) for name in (*ADDRESSES, "SECRET_KEY")):
        yield
    elif _serverless(argv):
        _set({"SECRET_KEY": home.kept_secret("secret-key") or secrets.token_urlsafe()})
        yield
    else:
        home.create()
        _set({"SECRET_KEY": secret_key(home), "PROMETHEUS_MULTIPROC_DIR": str(home.metrics)})
        servers = Servers(home, settings)
        if argv[1] in PLATFORM:
            _set(servers.environment())
            yield
        else:
            with _joined(home, servers):
                yield


def secret_key(home: Home) -> str:
    """Return the key that signs sessions, kept in the data directory."""
    return home.secret("secret-key", lambda: secrets.token_urlsafe(48))


def _serverless(argv: Sequence[str]) -> bool:
    if len(argv) < 2 or QUESTIONS.intersection(argv):
        return True
    return argv[1] in SERVERLESS and "--database" not in argv


def _set(environment: dict[str, str]) -> None:
    for name, value in environment.items():
        if not os.environ.get(name):
            os.environ[name] = value


@contextlib.contextmanager
def _joined(home: Home, servers: Servers) -> Iterator[None]:
    """Use the servers that run, or a keeper's."""
    with contextlib.ExitStack() as stack:
        with home.lock("start"):
            running = home.read_servers()
            if running is None and not servers.environment():
                users = None
            else:
                users = stack.enter_context(home.lock("users", shared=True))
            if running is None and users is not None:
                _start_keeper(home)
                running = home.read_servers()
            _set((running or {}).get("environment", {}))
            _require_all()
        try:
            yield
        finally:
            if users is not None:
                _leave(home, users)


def _require_all() -> None:
    missing = [name for name in ADDRESSES if not os.environ.get(name)]
    if missing:
        raise ConfigurationError(
            f"Another command runs the embedded servers without {', '.join(missing)}: wait for its end, or set them."
        )


def _start_keeper(home: Home) -> None:
    """Start a keeper and return when its servers answer; ConfigurationError says why they do not."""
    with explained(home.path), (home.run / "servers.log").open("w") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "martech.embedded.keeper"],
            cwd=options.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    with cast(TextIO, keeper.stdout) as stdout:
        answer = stdout.read().strip()
    if answer != "ready":
        keeper.wait(STOP_SECONDS)
        raise ConfigurationError(answer or f"The embedded servers did not start: {home.run / 'servers.log'} says why.")


def _leave(home: Home, users: TextIO) -> None:
    """Stop the keeper when nobody else uses its servers."""
    with home.lock("start"):
        running = home.read_servers()
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if running is not None and running["owner"] == "command":
            with contextlib.suppress(psutil.Error):
                keeper = psutil.Process(running["pid"])
                keeper.terminate()
                keeper.wait(STOP_SECONDS)
