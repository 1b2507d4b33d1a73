"""What each figure is compared with: the same bytes, with nothing of ours in between."""

import socket
import time
from itertools import islice
from typing import Any

from tests.benchmarks import traffic
from tests.benchmarks.bed import Bed

STREAM = "bench:raw"
# As many requests as the collector may have waiting at once.
PIPELINE = 64
MEMORY_BYTES = 64 * 2**20
COPY_ROWS = 20_000
COLUMNS = (
    "ingested_at, profile_id, anchor_id, identifiers, event_type, name, properties, context, extra, source_id,"
    " message_id, occurred_at, original_timestamp, received_at, flags, log_partition, log_position"
)


def raw_xadd(bed: Bed, *, kind: str, batch: int, people: int, seconds: float) -> float:
    """Return the events a second that the log's server takes of the same bodies by XADD, fsync included."""
    bodies = [body for _, body in islice(traffic.requests(kind, batch, people, tag="raw", seed=1), PIPELINE)]
    head = _bulk(b"XADD") + _bulk(STREAM.encode()) + _bulk(b"*") + _bulk(b"e")
    round_trip = b"".join(b"*5\r\n" + head + _bulk(body) for body in bodies)
    rounds = max(1, MEMORY_BYTES // len(round_trip))
    done, start = 0, time.perf_counter()
    with socket.socket(socket.AF_UNIX) as log:
        log.connect(bed.log.connection_pool.connection_kwargs["path"])
        while done < rounds and time.perf_counter() - start < seconds:
            log.sendall(round_trip)
            _await_lines(log, 2 * PIPELINE)
            done += 1
        elapsed = time.perf_counter() - start
    bed.log.unlink(STREAM)
    return done * PIPELINE * batch / elapsed


def _bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def _await_lines(log: socket.socket, lines: int) -> None:
    while lines > 0:
        lines -= log.recv(2**16).count(b"\n")


def bare_copy(bed: Bed, *, after: int) -> tuple[float, float]:
    """Copy the events that came after an event id into the same table once more, and remove them again.

    Return the events a second and PostgreSQL's CPU microseconds an event.
    """
    where = f"FROM event_stream WHERE event_id > {after}"
    # As one session of the processor does: a batch is a transaction, flushed when it ends.
    rows = _rows(bed, f"COPY (SELECT {COLUMNS} {where} ORDER BY event_id) TO STDOUT")
    last = bed.number("SELECT max(event_id) FROM event_stream")
    cpu, start = bed.cpu()["postgres"], time.perf_counter()
    for first in range(0, len(rows), COPY_ROWS):
        with bed.database.cursor() as cursor, cursor.copy(f"COPY event_stream ({COLUMNS}) FROM STDIN".encode()) as into:
            into.write(b"".join(rows[first : first + COPY_ROWS]))
    elapsed, used = time.perf_counter() - start, bed.cpu()["postgres"] - cpu
    bed.database.execute(f"DELETE FROM event_stream WHERE event_id > {last}".encode())
    bed.database.execute("VACUUM event_stream")
    return len(rows) / elapsed, used / len(rows) * 1e6


def _rows(bed: Bed, query: str) -> list[bytes]:
    with bed.database.cursor() as cursor, cursor.copy(query.encode()) as out:
        found: list[Any] = [bytes(row) for row in out]
    return found
