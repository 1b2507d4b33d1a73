"""Which partitions a processor holds: leases in PostgreSQL, taken over when their holder dies.

A processor is a row that its heart renews every second. It is dead when the row has expired (it stands still, or is
cut off) or when the session that commits its batches is gone (it was killed). Whoever notices ends that session,
which may still hold locks, frees its partitions, and those who have fewer than their share take them. Each take-over
raises the partition's epoch, which every batch compares: a dead processor that wakes up commits nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict

from cdp.processing.store import Connection
from martech.lib import metrics
from martech.lib.errors import ConfigurationError, RetryableError

LEASE_SECONDS = 5
BEAT_SECONDS = 1.0
# One at a time looks who is dead and what is free.
LOCK = 0x6D617276
# How long an ended session may take to let go of its locks.
END_MILLISECONDS = 2000

logger = logging.getLogger("martech.processor")

_REGISTER = """
INSERT INTO cdp_processor (id, log, host, pid, partitions, backend_pid, backend_started_at, started_at, expires_at)
SELECT %(id)s, %(log)s, %(host)s, %(pid)s, %(given)s, pid, backend_start, clock_timestamp(),
       clock_timestamp() + make_interval(secs => %(seconds)s)
FROM pg_stat_activity WHERE pid = pg_backend_pid()
"""
_RENEW = """
UPDATE cdp_processor SET expires_at = clock_timestamp() + make_interval(secs => %s), halted = %s WHERE id = %s
"""
# Processors, each with the session that it commits over while that lives.
PROCESSORS = """
cdp_processor AS processor LEFT JOIN pg_stat_activity AS session
ON session.pid = processor.backend_pid AND session.backend_start = processor.backend_started_at
"""
ALIVE = "processor.expires_at > clock_timestamp() AND session.pid IS NOT NULL"
# Whether a living processor has more partitions than we count, and whether one that shares has fewer: it made a
# row for each of its own when it began.
_OTHER_COUNT = f"""
SELECT EXISTS (
    SELECT FROM {PROCESSORS} JOIN cdp_checkpoint AS held ON held.owner = processor.id
    WHERE {ALIVE} AND processor.log = %(log)s AND held.log = %(log)s AND held.partition >= %(count)s
) OR EXISTS (
    SELECT FROM {PROCESSORS} WHERE {ALIVE} AND processor.log = %(log)s AND processor.partitions IS NULL
) AND %(count)s > (SELECT coalesce(max(partition) + 1, %(count)s) FROM cdp_checkpoint WHERE log = %(log)s)
"""  # noqa: S608 - constants of ours
_DEAD = f"""
SELECT processor.id, session.pid FROM {PROCESSORS}
WHERE processor.log = %(log)s AND processor.id <> %(id)s AND NOT ({ALIVE})
"""  # noqa: S608 - constants of ours
_FREE = """
UPDATE cdp_checkpoint SET owner = NULL, crashes = crashes + 1
WHERE log = %(log)s AND owner IS NOT NULL AND owner NOT IN (SELECT id FROM cdp_processor WHERE log = %(log)s)
RETURNING partition
"""
_ALIVE_AFTER_ALL = """
UPDATE cdp_checkpoint SET crashes = crashes - 1
FROM unnest(%s::int[], %s::text[]) AS held (partition, position)
WHERE log = %s AND cdp_checkpoint.partition = held.partition AND cdp_checkpoint.position = held.position AND crashes > 0
"""
_TAKE = """
UPDATE cdp_checkpoint SET owner = %(id)s, epoch = epoch + 1, updated_at = clock_timestamp()
WHERE log = %(log)s AND partition = ANY(%(wanted)s) AND owner IS NULL
RETURNING partition, position, epoch, crashes
"""


class LeaseLost(RetryableError):
    """Another processor holds what this one held: it stood still for too long. Start anew."""

    code = "lease_lost"


@dataclass(slots=True)
class Held:
    """A partition we hold: where it stands, the epoch of our batches, and how many processors died there."""

    position: str
    epoch: int
    crashes: int


@dataclass(slots=True)
class Leases:
    """The partitions of one processor; all methods are called by the thread that commits, over its connection.

    `given` are the partitions to hold, None to share all `count` with the others that share. `halted` is why the
    processor stands still, "" where it does not.
    """

    log: str
    count: int
    given: Sequence[int] | None = None
    id: UUID = field(default_factory=uuid4)
    halted: str = ""
    held: dict[int, Held] = field(default_factory=dict)

    def register(self, connection: Connection) -> None:
        """Begin anew over a connection, whose session from now on stands for this processor.

        ConfigurationError where a living one counts other partitions.
        """
        before, held, new = self.id, self.held, uuid4()
        with connection.transaction():
            _lock(connection)
            # We are alive: what we held over a lost connection is free, and nobody died.
            connection.execute("UPDATE cdp_checkpoint SET owner = NULL WHERE owner = %s", [before])
            known = connection.execute("DELETE FROM cdp_processor WHERE id = %s", [before]).rowcount
            self._refuse_other_count(connection)
            if held and not known:
                # Others buried us meanwhile: with PostgreSQL away, the first one back finds all sessions gone.
                positions = [one.position for one in held.values()]
                connection.execute(_ALIVE_AFTER_ALL, [list(held), positions, self.log])
            connection.execute(
                _REGISTER,
                {
                    "id": new, "log": self.log, "host": socket.gethostname(), "pid": os.getpid(),
                    "given": None if self.given is None else list(self.given), "seconds": LEASE_SECONDS,
                },
            )  # fmt: skip
            for partition in self.given if self.given is not None else range(self.count):
                connection.execute(
                    "INSERT INTO cdp_checkpoint (log, partition, position, events, updated_at)"
                    " VALUES (%s, %s, '', 0, now()) ON CONFLICT DO NOTHING",
                    [self.log, partition],
                )
        self.id, self.held = new, {}

    def _refuse_other_count(self, connection: Connection) -> None:
        row = connection.execute(_OTHER_COUNT, {"log": self.log, "count": self.count}).fetchone()
        if row and row[0]:
            raise ConfigurationError(
                f"LOG_PARTITIONS is {self.count} here, and another number for a processor that runs. "
                "Let that one drain the log and stop it first, or give this one the same number."
            )

    def tend(self, connection: Connection) -> list[int]:
        """Bury the dead and take what is free up to our share; return the partitions taken.

        LeaseLost when we were buried ourselves.
        """
        with connection.transaction():
            _lock(connection)
            if not connection.execute("SELECT FROM cdp_processor WHERE id = %s", [self.id]).rowcount:
                raise LeaseLost("This processor stood still for so long that another one took its partitions.")
            self._bury(connection)
            free = self._missing(connection)
            return self._take(connection, free) if free else []

    def surplus(self, connection: Connection) -> list[int]:
        """Return the partitions that others should have; call `release` once nothing of them is under way."""
        if self.given is not None:
            return []
        shared = set(self._shared(connection))
        # What another one was given goes first.
        held = sorted(self.held, key=lambda partition: (partition not in shared, partition))
        return held[self._share(connection) :]

    def release(self, connection: Connection, partitions: Sequence[int]) -> None:
        """Let others take partitions."""
        connection.execute(
            "UPDATE cdp_checkpoint SET owner = NULL WHERE log = %s AND owner = %s AND partition = ANY(%s)",
            [self.log, self.id, list(partitions)],
        )
        for partition in partitions:
            del self.held[partition]

    def leave(self, connection: Connection) -> None:
        """Release everything and be gone, at an orderly end."""
        self.release(connection, list(self.held))
        connection.execute("DELETE FROM cdp_processor WHERE id = %s", [self.id])

    def _bury(self, connection: Connection) -> None:
        dead = connection.execute(_DEAD, {"log": self.log, "id": self.id}).fetchall()
        for processor, backend in dead:
            if backend is not None:
                connection.execute("SELECT pg_terminate_backend(%s, %s)", [backend, END_MILLISECONDS])
            connection.execute("DELETE FROM cdp_processor WHERE id = %s", [processor])
        freed = connection.execute(_FREE, {"log": self.log}).fetchall()
        if freed:
            logger.warning("partitions %s lost their processor", sorted(row[0] for row in freed))

    def _missing(self, connection: Connection) -> list[int]:
        """Return the partitions we should hold besides those we do."""
        if self.given is not None:
            return [one for one in self.given if one not in self.held]
        room = self._share(connection) - len(self.held)
        if room <= 0:
            return []
        rows = connection.execute(
            "SELECT partition FROM cdp_checkpoint WHERE log = %s AND owner IS NULL AND partition = ANY(%s)"
            " ORDER BY partition LIMIT %s",
            [self.log, self._shared(connection), room],
        ).fetchall()
        return [partition for (partition,) in rows]

    def _share(self, connection: Connection) -> int:
        """Return how many partitions we should hold: as many as the others that share, or one more."""
        sharing = [
            row[0]
            for row in connection.execute(
                "SELECT id FROM cdp_processor WHERE log = %s AND partitions IS NULL ORDER BY started_at, id", [self.log]
            )
        ]
        if self.id not in sharing:
            return 0
        each, more = divmod(len(self._shared(connection)), len(sharing))
        return each + (sharing.index(self.id) < more)

    def _shared(self, connection: Connection) -> list[int]:
        """Return the partitions that no living processor was given for itself."""
        rows = connection.execute(
            "SELECT DISTINCT unnest(partitions) FROM cdp_processor WHERE log = %s AND partitions IS NOT NULL",
            [self.log],
        ).fetchall()
        given = {partition for (partition,) in rows}
        return [one for one in range(self.count) if one not in given]

    def _take(self, connection: Connection, wanted: list[int]) -> list[int]:
        rows = connection.execute(_TAKE, {"id": self.id, "log": self.log, "wanted": wanted}).fetchall()
        for partition, position, epoch, crashes in rows:
            self.held[partition] = Held(position, epoch, crashes)
        return sorted(row[0] for row in rows)


def _lock(connection: Connection) -> None:
    connection.execute("SET LOCAL lock_timeout = '5s'")
    connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", [LOCK])


class Heart(threading.Thread):
    """Renews a processor's lease over a connection of its own, so that a long batch does not look like a death."""

    def __init__(self, database_url: str, leases: Leases) -> None:
        super().__init__(name="heart", daemon=True)
        self._url, self._leases = database_url, leases
        self._stopped = threading.Event()

    def run(self) -> None:
        """Beat until stopped; called by the thread."""
        while not self._stopped.is_set():
            try:
                with connect(self._url, "heart") as connection:
                    self._beat(connection)
            except psycopg.Error as error:
                logger.warning("the lease cannot be renewed: %s", str(error).strip().replace("\n", " "))
                self._stopped.wait(BEAT_SECONDS)

    def _beat(self, connection: Connection) -> None:
        while not self._stopped.is_set():
            connection.execute(_RENEW, [LEASE_SECONDS, self._leases.halted, self._leases.id])
            metrics.count_cpu("processor")
            self._stopped.wait(BEAT_SECONDS)

    def stop(self) -> None:
        """Stop beating and wait for the thread."""
        self._stopped.set()
        if self.is_alive():
            self.join(5)


def connect(database_url: str, part: str, **settings: Any) -> psycopg.Connection[Any]:
    """Open a connection of a processor.

    A network that swallows everything is noticed within seconds, and a process that stands still in a transaction
    loses its locks.
    """
    given = conninfo_to_dict(database_url).get("options") or ""
    ours = {"idle_in_transaction_session_timeout": "30s"} | settings
    return psycopg.connect(
        database_url,
        autocommit=True,
        application_name=f"martech-processor-{part}",
        connect_timeout=5,
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
        tcp_user_timeout=8000,
        options=" ".join([str(given), *(f"-c {name}={value}" for name, value in ours.items())]).strip(),
    )
