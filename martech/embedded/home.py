"""The data directory: its secrets, its locks, and the file that says where the running servers are.

secret-key admin-password api-key    0600, made at the first start
postgres/ log/ broker/ cache/        the servers' data
run/servers.json                     addresses while servers run
run/*.lock                           held (flock) by living processes alone, so a crash frees them
run/*.pid                            what runs, for the next start to end after a crash
run/metrics/                         shared by the processes, see martech.lib.metrics
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from martech.embedded.failures import disk_full, explained
from martech.lib.errors import ConfigurationError

# macOS allows 104 bytes for a Unix socket's path, Linux 108; the longest name here is PostgreSQL's.
LONGEST_SOCKET = 100
LONGEST_NAME = "/postgres/.s.PGSQL.5432"
# A cluster with its first write-ahead log takes 40 MB, the migrated tables little, the logs grow from there.
ROOM_TO_CREATE = 256 * 2**20
ROOM_TO_START = 48 * 2**20


class Home:
    """The data directory at `path`, an absolute one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = path / "run"
        self.metrics = self.run / "metrics"
        self._file = self.run / "servers.json"

    def create(self) -> None:
        """Make the directories; ConfigurationError where the place cannot be used."""
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for directory in (self.path, self.run, self.metrics):
                directory.mkdir(exist_ok=True, mode=0o700)
            probe = self.run / "probe"
            probe.write_bytes(b"." * 4096)
            probe.unlink()

    def require_room(self) -> None:
        """Raise ConfigurationError when the disk has too little room to start servers in."""
        wanted = ROOM_TO_START if (self.path / "postgres" / "PG_VERSION").exists() else ROOM_TO_CREATE
        with explained(self.path):
            free = shutil.disk_usage(self.path).free
        if free < wanted:
            raise ConfigurationError(
                f"{disk_full(self.path).message} It has {free >> 20} MiB left; a start takes {wanted >> 20} MiB."
            )

    def sockets(self) -> Path:
        """Return the directory of the servers' Unix sockets, which may not have a long path or odd characters."""
        name = f"martech-{os.getuid()}-{hashlib.sha256(os.fsencode(self.run)).hexdigest()[:12]}"
        places = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")  # noqa: S108
        elsewhere = [Path(place) / name for place in places if place and os.access(place, os.W_OK)]
        return next((path for path in (self.run, *elsewhere) if _holds_sockets(path)), self.run)

    def create_sockets(self) -> None:
        """Make the sockets' directory; ConfigurationError when somebody else made it."""
        path = self.sockets()
        with explained(path), suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
        if path != self.run and (not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid()):
            raise ConfigurationError(
                f"{path} belongs to somebody else: remove it, or set TMPDIR to a place of your own."
            )

    def let_pass(self) -> None:
        """Let other users pass through to directories of their own, and read nothing."""
        with explained(self.path):
            for directory in {self.path, self.run, self.sockets()}:
                directory.chmod(0o711)

    def secret(self, name: str, make: Callable[[], str] = secrets.token_urlsafe) -> str:
        """Return the kept secret `name`; make and keep it where there is none."""
        kept = self.kept_secret(name)
        if kept:
            return kept
        value = make()
        self.keep_secret(name, value)
        return value

    def kept_secret(self, name: str) -> str:
        """Return the secret `name`, empty where none is kept."""
        with explained(self.path):
            try:
                return (self.path / name).read_text().strip()
            except (FileNotFoundError, NotADirectoryError):
                return ""

    def keep_secret(self, name: str, value: str) -> None:
        """Keep a secret in a file of its own that only the owner may read."""
        with explained(self.path):
            _write_private(self.path / name, value + "\n")

    @contextmanager
    def lock(self, name: str, *, shared: bool = False, wait: bool = True) -> Iterator[TextIO]:
        """Hold a lock that dies with its holder; BlockingIOError when `wait` is false and another holds it."""
        with explained(self.path):
            file = (self.run / f"{name}.lock").open("a+")
        with file:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            yield file

    def is_locked(self, name: str) -> bool:
        """Say whether somebody holds the lock `name`."""
        try:
            with self.lock(name, wait=False):
                return False
        except BlockingIOError:
            return True

    def write_servers(self, environment: dict[str, str], *, owner: str) -> None:
        """Say where the servers are that this process runs, and for whom (`platform` or `command`)."""
        document = {"owner": owner, "pid": os.getpid(), "environment": environment}
        with explained(self.path):
            _write_private(self._file, json.dumps(document, indent=1) + "\n")

    def read_servers(self) -> dict | None:
        """Return what `write_servers` said; None when nothing runs. Call it with the lock `start` held."""
        if not self._file.exists() or not self.is_locked("owner"):
            return None
        with explained(self.path):
            return json.loads(self._file.read_text())

    def forget_servers(self) -> None:
        """Remove the file of `write_servers`."""
        self._file.unlink(missing_ok=True)


def _holds_sockets(directory: Path) -> bool:
    path = os.fsencode(directory) + os.fsencode(LONGEST_NAME)
    return len(path) <= LONGEST_SOCKET and re.fullmatch(rb"[\w./+-]+", path) is not None


def _write_private(path: Path, text: str) -> None:
    """Write a file that only the owner may read, whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
