"""The local engine: one process that owns partitions, reads them and applies batches.

A thread reads and decodes the next batch while PostgreSQL works on this one: the driver lets go of the GIL.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import psycopg
from prometheus_client import Counter, Gauge, Histogram

from cdp import partitions as tables
from cdp.config import Config
from cdp.engines.reading import Ahead, Batch, Reader
from cdp.log.base import Log
from cdp.processing import store
from cdp.processing.pipeline import Applied, Arrival, Pipeline, again
from cdp.profiles import ProfileCache
from martech.lib import clock
from martech.lib.errors import PermanentError, RetryableError

logger = logging.getLogger("martech.processor")

EVENTS = Counter("martech_processor_events_total", "Events taken from the log, by outcome", ["outcome"])
REJECTIONS = Counter("martech_processor_dead_letters_total", "Events put aside, by reason", ["reason"])
BATCH_SECONDS = Histogram("martech_processor_batch_seconds", "Time of a batch's transaction and cache write")
BATCH_EVENTS = Histogram(
    "martech_processor_batch_events", "Events in a batch", buckets=(1, 10, 100, 1000, 5000, 10000, 20000, 50000)
)
RETRIES = Counter("martech_processor_retries_total", "Batches done again, by cause", ["cause"])
DELAY = Gauge(
    "martech_processor_delay_seconds", "Age of the newest event of the last batch when it was committed",
    multiprocess_mode="livemax",
)  # fmt: skip

# Serialises the processors of one partition: the advisory lock's first key.
LOCK_CLASS = 0x6D617274
RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
TRIM_SECONDS = 1.0
# How often checkpoints show that their processor lives, though nothing comes.
SHOW_SECONDS = 5.0
# How often a processor looks for partitions that another one let go.
LOOK_SECONDS = 2.0
# A batch that lost as many races against other processes waits a moment.
RACES = 10


class LocalEngine:
    """Owns partitions of the log and keeps PostgreSQL and the cache up with them."""

    def __init__(self, config: Config, log: Log, *, partitions: Sequence[int]) -> None:
        self.config, self.log = config, log
        self.wanted = list(partitions)
        self.pipeline = Pipeline()
        self.cache = ProfileCache(config.cache_url)
        self._stopping = threading.Event()
        self._trimmed_at = self._shown_at = 0.0
        self._covered: tuple[datetime, datetime] | None = None
        _spare_collections()

    def stop(self) -> None:
        """Ask `run` to end after the batch it is at."""
        self._stopping.set()

    def run(self) -> None:
        """Process until stopped. Outages of the log and of PostgreSQL are waited out; nothing is skipped."""
        self.cache.start_epoch()
        failures = 0
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self.config.database_url, autocommit=True) as connection:
                    self._serve(connection)
                failures = 0
            except (psycopg.OperationalError, psycopg.InterfaceError, RetryableError) as error:
                RETRIES.labels(type(error).__name__).inc()
                delay = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                logger.warning("%s; trying again in %.1f s", str(error).strip().replace("\n", " "), delay)
                self.pipeline.forget()
                self._stopping.wait(delay)
                failures += 1
        self.cache.close()

    def drain(self) -> int:
        """Process what is in the log now and return how many events it was; for tests, tools and the end of a run."""
        self.cache.start_epoch()
        total = 0
        with psycopg.connect(self.config.database_url, autocommit=True) as connection:
            self._cover(connection)
            positions = self._take_over(connection, self.wanted)
            ahead = self._ahead(positions)
            while (batch := ahead.take(max_events=self.config.processor_batch_events, wait=0)).positions:
                self._commit(connection, batch)
                positions |= batch.positions
                total += len(batch.arrivals)
            self._trim(positions)
        return total

    def _serve(self, connection: store.Connection) -> None:
        """Process over one connection, whose advisory locks own the partitions."""
        self.log.check()
        self._cover(connection)
        positions: dict[int, str] = {}
        while not self._stopping.is_set():
            missing = [one for one in self.wanted if one not in positions]
            positions |= self._take_over(connection, missing)
            if positions:
                self._follow(connection, positions)
            else:
                self._stopping.wait(LOOK_SECONDS)

    def _follow(self, connection: store.Connection, positions: dict[int, str]) -> None:
        """Process what comes; returns when it is time to look for partitions that others let go."""
        reader = Reader(
            self._ahead(positions),
            max_events=self.config.processor_batch_events,
            wait=self.config.processor_poll_seconds,
        )
        look_again = time.monotonic() + (LOOK_SECONDS if len(positions) < len(self.wanted) else float("inf"))
        try:
            while not self._stopping.is_set() and time.monotonic() < look_again:
                batch = reader.take(0.25)
                if batch is not None:
                    self._commit(connection, batch)
                    positions |= batch.positions
                elif not self.cache.heal():
                    logger.debug("the cache is away")
                self._keep_house(connection, positions)
        finally:
            reader.stop()

    def _ahead(self, positions: dict[int, str]) -> Ahead:
        return Ahead(self.log, positions, event_bytes=self.config.collector_event_bytes)

    def _take_over(self, connection: store.Connection, partitions: Sequence[int]) -> dict[int, str]:
        """Lock those of the partitions that are free and return their positions; make missing checkpoints."""
        name = self.log.name
        for partition in partitions:
            connection.execute(
                "INSERT INTO cdp_checkpoint (log, partition, position, events, updated_at)"
                " VALUES (%s, %s, '', 0, now()) ON CONFLICT DO NOTHING",
                [name, partition],
            )
        owned = [one for one in partitions if self._owns(connection, one)]
        rows = connection.execute(
            "SELECT partition, position FROM cdp_checkpoint WHERE log = %s AND partition = ANY(%s)", [name, owned]
        ).fetchall()
        for partition, position in rows:
            self.log.verify(partition, position)
        if owned:
            logger.info("processing partitions %s of %s", owned, name)
        return dict(rows)

    def _owns(self, connection: store.Connection, partition: int) -> bool:
        row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", [LOCK_CLASS, partition]).fetchone()
        return bool(row and row[0])

    def _commit(self, connection: store.Connection, batch: Batch) -> None:
        """Apply a batch and move the positions in one transaction; then let the cache show it."""
        started = time.monotonic()
        now_us = clock.now_us()
        self._cover(connection, batch)
        applied = self._applied(connection, batch, now_us)
        self.pipeline.remember(applied)
        self.cache.write(
            applied.documents,
            [*((one, profile) for one, (_, profile) in applied.identifiers.items()), *applied.moved],
            applied.merged,
            batch.positions,
        )
        _measure(batch, applied, time.monotonic() - started)

    def _applied(self, connection: store.Connection, batch: Batch, now_us: int) -> Applied:
        arrivals: Sequence[Arrival] = batch.arrivals
        races = 0
        while True:
            try:
                with connection.transaction():
                    store.lock_positions(connection, self.log.name, batch.read_from)
                    applied = self.pipeline.apply(connection, arrivals, now_us=now_us)
                    store.move_positions(connection, self.log.name, batch.positions, batch.events)
                return applied
            except (store.Raced, psycopg.errors.DeadlockDetected) as error:
                races += 1
                if races == RACES:
                    raise
                RETRIES.labels(type(error).__name__).inc()
                self.pipeline.forget()
                arrivals = again(arrivals)

    def _cover(self, connection: store.Connection, batch: Batch | None = None) -> None:
        """See to it that every day of the batch has its table partitions, beat or no beat."""
        now = datetime.now(UTC)
        received = [arrival.delivery.received_us for arrival in batch.arrivals] if batch else []
        first = min([now, *(clock.from_us(min(received)) for _ in received[:1])])
        if self._covered and self._covered[0] <= first and now + timedelta(days=1) < self._covered[1]:
            return
        ahead = (now.date() - first.date()).days + 7
        size = self.config.event_partition_days
        tables.ensure(connection, tables.EVENTS, days=size, today=first.date(), ahead=ahead)
        midnight = datetime(first.year, first.month, first.day, tzinfo=UTC)
        self._covered = (midnight, midnight + timedelta(days=ahead))

    def _keep_house(self, connection: store.Connection, positions: dict[int, str]) -> None:
        """Now and then trim the log, and show in the checkpoints that we live."""
        now = time.monotonic()
        if self.log.supports_trim and now - self._trimmed_at > TRIM_SECONDS:
            self._trimmed_at = now
            self._trim(positions)
        if now - self._shown_at > SHOW_SECONDS:
            self._shown_at = now
            connection.execute(
                "UPDATE cdp_checkpoint SET updated_at = now() WHERE log = %s AND partition = ANY(%s)",
                [self.log.name, list(positions)],
            )

    def _trim(self, positions: dict[int, str]) -> None:
        """Forget what PostgreSQL has: a commit with synchronous_commit=on has been flushed."""
        for partition, position in positions.items():
            if position:
                self.log.trim(partition, position)


def _spare_collections() -> None:
    """Keep the garbage collector off a batch's many short-lived rows: it took a third of the processor's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _measure(batch: Batch, applied: Applied, seconds: float) -> None:
    BATCH_SECONDS.observe(seconds)
    BATCH_EVENTS.observe(len(batch.arrivals))
    EVENTS.labels("stored").inc(applied.events)
    EVENTS.labels("duplicate").inc(applied.duplicates)
    for reason, count in applied.rejections.items():
        EVENTS.labels("rejected").inc(count)
        REJECTIONS.labels(reason).inc(count)
    if batch.arrivals:
        DELAY.set(max(0.0, (clock.now_us() - batch.arrivals[-1].delivery.received_us) / 1e6))


def parse_partitions(text: str, count: int) -> list[int]:
    """Return the partitions that a text such as `0-3,6` names; PermanentError when one does not exist."""
    chosen: set[int] = set()
    try:
        for part in text.split(","):
            low, dash, high = part.partition("-")
            chosen.update(range(int(low), int(high if dash else low) + 1))
    except ValueError as error:
        raise PermanentError(f"'{text}' names no partitions. Write them as 0-3,6.") from error
    if not chosen or max(chosen) >= count:
        raise PermanentError(f"'{text}' names partitions that do not exist: there are 0 to {count - 1}.")
    return sorted(chosen)
