"""A server that a test may stop, start and misconfigure."""

import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import redis

from martech.embedded.valkey import ValkeyServer


class OwnValkey:
    """One Valkey with the settings of its role, in a directory of its own."""

    def __init__(self, home: Path, role: str = "log") -> None:
        self._server = ValkeyServer(role, home / "data", home / "s")
        self._server.prepare()
        self._process = None
        self.url = self._server.url

    def start(self):
        """Start it and wait until it answers."""
        command = self._server.command()
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)

    def kill(self):
        """Kill it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def own_valkey(role="log"):
    """Run a server until the end of the block."""
    # A short path, since a socket's may have 107 bytes at the most.
    with tempfile.TemporaryDirectory(prefix="mt-", dir="/tmp") as home:
        server = OwnValkey(Path(home), role)
        server.start()
        try:
            yield server
        finally:
            server.kill()
