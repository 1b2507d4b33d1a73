"""The load generator: requests at times that were set before, over a few connections, in a process of its own.

Open loop: a request is due at its time whether or not earlier ones were answered, and its latency counts from
then; a server that stalls is charged for every request that came due meanwhile. With a rate of 0 requests are
always due, which finds the most that a server does and says nothing of latency.

One thread, one selector, requests written and answers read by hand: about 20 µs of CPU a request.
"""

import selectors
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import Iterator
from itertools import chain
from random import Random

import msgspec
import psutil

from tests.benchmarks import traffic

PATIENCE_SECONDS = 10.0
READ_BYTES = 2**16


class Plan(msgspec.Struct, kw_only=True):
    """What to send: to where, how many requests a second (0: as many as it takes), for how long.

    `kind` is `server` or `browser` (events in batches of `batch`) or `read` (GETs of `path`, %d in it for a person).
    """

    port: int
    authorization: str
    rate: float
    seconds: float
    kind: str = "server"
    path: str = ""
    batch: int = 1
    people: int = 20_000
    connections: int = 64
    tag: str = "load"
    seed: int = 1
    # Stop after so many requests, 0: after `seconds`.
    requests: int = 0


class Result(msgspec.Struct, kw_only=True):
    """What came of it. Latencies in milliseconds from the due time; `unanswered` includes broken connections."""

    sent: int
    succeeded: int
    refused: int
    unanswered: int
    seconds: float
    p50: float
    p99: float
    worst: float
    cpu_seconds: float


class _Connection:
    """One connection with at most one request under way."""

    __slots__ = ("due", "received", "socket", "unsent")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.received = b""
        self.unsent = memoryview(b"")
        self.due = 0.0

    def send(self, request: bytes, due: float) -> bool:
        """Begin a request; say whether all of it went out."""
        self.due, self.received, self.unsent = due, b"", memoryview(request)
        return self.send_on()

    def send_on(self) -> bool:
        """Go on with a request that did not go out at once."""
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            return False
        return not self.unsent

    def receive(self) -> int:
        """Return the status of a whole answer, 0 as long as it is not; ConnectionError when the server hung up."""
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise ConnectionResetError
        self.received += data
        head = self.received.find(b"\r\n\r\n")
        if head < 0 or len(self.received) < head + 4 + _content_length(self.received, head):
            return 0
        return int(self.received[9:12])


def _content_length(answer: bytes, head: int) -> int:
    at = answer.lower().find(b"content-length:", 0, head)
    return int(answer[at + 15 : answer.find(b"\r\n", at)]) if at >= 0 else 0


class Load:
    """Carries out a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        requests = _requests(plan)
        # The first one draws the people, which takes a while.
        self._requests = chain([next(requests)], requests)
        self._selector = selectors.DefaultSelector()
        self._idle: deque[_Connection] = deque()
        self._under_way = 0
        self._latencies = array("d")
        self._succeeded = 0
        self._broken = 0
        for _ in range(plan.connections):
            self._connect()

    def _connect(self) -> None:
        connection = _Connection(self.plan.port)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._idle.append(connection)

    def run(self) -> Result:
        """Send everything when it is due, and wait a while for what is left."""
        cpu = _cpu_seconds()
        start = time.perf_counter()
        due_times = _due_times(self.plan, start)
        next_due = next(due_times, None)
        sent = 0
        while next_due is not None or self._under_way:
            now = time.perf_counter()
            if now - start > self.plan.seconds + PATIENCE_SECONDS:
                break
            while next_due is not None and next_due <= now and self._idle:
                self._send(next_due)
                sent += 1
                next_due = next(due_times, None)
            self._take(0.05 if next_due is None or not self._idle else min(0.05, max(0.0, next_due - now)))
        seconds = time.perf_counter() - start
        return self._result(sent, seconds, _cpu_seconds() - cpu)

    def _send(self, due: float) -> None:
        connection = self._idle.popleft()
        self._under_way += 1
        if not connection.send(next(self._requests), due):
            self._selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

    def _take(self, timeout: float) -> None:
        for key, event in self._selector.select(timeout):
            connection: _Connection = key.data
            try:
                if event & selectors.EVENT_WRITE and connection.send_on():
                    self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
                if event & selectors.EVENT_READ:
                    self._answered(connection, connection.receive())
            except BlockingIOError:
                continue
            except OSError:
                self._replace(connection)

    def _answered(self, connection: _Connection, status: int) -> None:
        if status:
            self._latencies.append(time.perf_counter() - connection.due)
            self._succeeded += status == 200
            self._under_way -= 1
            self._idle.append(connection)

    def _replace(self, connection: _Connection) -> None:
        """Count a request whose connection broke, and take another connection."""
        self._broken += 1
        self._under_way -= 1
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._connect()

    def _result(self, sent: int, seconds: float, cpu_seconds: float) -> Result:
        latencies = sorted(self._latencies)
        return Result(
            sent=sent,
            succeeded=self._succeeded,
            refused=len(latencies) - self._succeeded,
            unanswered=self._broken + self._under_way,
            seconds=seconds,
            p50=quantile(latencies, 0.5) * 1000,
            p99=quantile(latencies, 0.99) * 1000,
            worst=quantile(latencies, 1.0) * 1000,
            cpu_seconds=cpu_seconds,
        )


def quantile(ordered: list[float], part: float) -> float:
    """Return the value that `part` of the ordered values do not exceed, 0 where there are none."""
    return ordered[max(0, -(-int(part * 1000) * len(ordered) // 1000) - 1)] if ordered else 0.0


def _due_times(plan: Plan, start: float) -> Iterator[float]:
    """Give the times at which requests are due: independent of each other (Poisson), or at once without a rate."""
    if not plan.rate:
        sent = 0
        while time.perf_counter() - start < plan.seconds and (not plan.requests or sent < plan.requests):
            sent += 1
            yield start
        return
    gap = Random(plan.seed).expovariate
    due = start + gap(plan.rate)
    while due < start + plan.seconds:
        yield due
        due += gap(plan.rate)


def _requests(plan: Plan) -> Iterator[bytes]:
    common = f"Host: 127.0.0.1\r\nAuthorization: {plan.authorization}\r\n".encode()
    if plan.kind == "read":
        for path in traffic.paths(plan.path, plan.people, plan.seed):
            yield b"GET " + path + b" HTTP/1.1\r\n" + common + b"\r\n"
    common += b"Content-Type: application/json\r\n"
    for to, body in traffic.requests(plan.kind, plan.batch, plan.people, tag=plan.tag, seed=plan.seed):
        yield b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (to.encode(), common, len(body), body)


def _cpu_seconds() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system


def main() -> None:
    """Carry out the plan on standard input; the result goes to standard output."""
    load = Load(msgspec.json.decode(sys.stdin.buffer.read(), type=Plan))
    sys.stdout.buffer.write(msgspec.json.encode(load.run()))


if __name__ == "__main__":
    main()
