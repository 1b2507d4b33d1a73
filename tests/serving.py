"""The web process as it is deployed: Granian in a process of its own."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager

import httpx

ALONE, PLATFORM = "cdp.collector:application", "martech.asgi:application"


class Server:
    """A running Granian; `url` is its address, `client` one that may be shared by threads."""

    def __init__(self, process, port, output, client):
        self.process, self.port, self.url, self.client = process, port, f"http://127.0.0.1:{port}", client
        self._output = output

    def stop(self, timeout=15):
        """Ask it to stop, wait, and return its output."""
        self.process.terminate()
        self.process.wait(timeout)
        self._output.seek(0)
        return self._output.read()


def free_port():
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(target=ALONE, *, workers=1, **environment):
    """Serve `target` with environment variables until the end of the block."""
    port = free_port()
    command = [
        sys.executable, "-m", "granian", "--interface", "asgi", "--loop", "uvloop", "--host", "127.0.0.1",
        "--port", str(port), "--workers", str(workers), "--workers-kill-timeout", "10", target,
    ]  # fmt: skip
    # A file and not a pipe, which would fill up.
    with tempfile.TemporaryFile("w+") as output, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT)
        server = Server(process, port, output, client)
        try:
            _await(server)
            yield server
        finally:
            if process.poll() is None:
                server.stop()


def _await(server):
    deadline = time.monotonic() + 30
    while True:
        try:
            if server.client.options("/v1/track", timeout=1).status_code == 204:
                return
        except httpx.TransportError:
            pass
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"The server did not start:\n{server.stop()}")
        time.sleep(0.05)
