"""The local engine: one process that holds partitions, reads them and applies batches.

A thread reads and decodes the next batch while PostgreSQL works on this one: the driver lets go of the GIL.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime

import psycopg
from prometheus_client import Counter, Gauge, Histogram

from cdp import partitions as tables
from cdp.config import Config
from cdp.engines import careful
from cdp.engines.flushing import Flushing
from cdp.engines.keeping import Keeper
from cdp.engines.leases import Heart, Leases, connect
from cdp.engines.reading import Ahead, Batch, Reader
from cdp.log.base import Log
from cdp.processing import store
from cdp.processing.failures import Halted
from cdp.processing.pipeline import Applied, Arrival, Pipeline, again
from cdp.profiles import ProfileCache
from martech.lib import clock
from martech.lib.errors import ConfigurationError, MartechError, PermanentError, RetryableError

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

LOCK_SECONDS = Histogram("martech_processor_lock_wait_seconds", "Time a batch waited for locks, by what is locked",
                         ["locks"])  # fmt: skip
HALTED = Gauge("martech_processor_halted", "1 while our own errors stop processing", multiprocess_mode="livemax")
REUSED = Counter("martech_processor_reused_ids_total", "Events kept under another id: theirs came with other content")

# The log has what a crash of PostgreSQL may forget; whoever stands still in a transaction lets go of its locks; and
# a batch's arrays are looked up by index, without weighing each of their members first.
SESSION = {
    "synchronous_commit": "off", "idle_in_transaction_session_timeout": "30s", "plan_cache_mode": "force_generic_plan",
}  # fmt: skip
# InternalError: the server ended a transaction that stood still.
OUTAGES = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
TRIM_SECONDS = 1.0
# How often checkpoints show that their processor lives, though nothing comes.
SHOW_SECONDS = 5.0
# How often a processor looks for partitions that others let go, or should have.
LOOK_SECONDS = 1.0
# A batch that lost as many races against other processes waits a moment.
RACES = 10
# How often a halted processor looks whether the cause was mended.
HALT_SECONDS = 30.0


class LocalEngine:
    """Holds partitions of the log and keeps PostgreSQL and the cache up with them.

    `partitions` are those it is given; None shares all of them with the other processors that share.
    """

    def __init__(self, config: Config, log: Log, *, partitions: Sequence[int] | None = None) -> None:
        self.config, self.log = config, log
        self.pipeline = Pipeline(config.privacy_key)
        self.cache = ProfileCache(config.cache_url)
        self.flushing = Flushing(self.cache)
        self.leases = Leases("", config.log_partitions, partitions)
        self.keeper = Keeper(config, self.pipeline.window, self.leases)
        self._stopping = threading.Event()
        self._failures = 0
        # Of each partition, the time before which everything received has been processed, in µs since 1970.
        self._done: dict[int, int] = {}
        self._trimmed_at = self._shown_at = 0.0
        self._covered: date | None = None
        _spare_collections()

    def stop(self) -> None:
        """Ask `run` to end after the batch it is at."""
        self._stopping.set()

    def run(self) -> None:
        """Process until stopped. Outages of the log and of PostgreSQL are waited out; nothing is skipped."""
        self.keeper.start()
        try:
            self._run()
        finally:
            self.keeper.stop()
            self.cache.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._connected() as connection:
                    self._serve(connection)
            except (*OUTAGES, RetryableError) as error:
                RETRIES.labels(type(error).__name__).inc()
                delay = RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS) - 1)]
                logger.warning("%s; trying again in %.1f s", str(error).strip().replace("\n", " "), delay)
                self._stopping.wait(delay)
                self._failures += 1

    def drain(self) -> int:
        """Process what is in the log now and return how many events it was; for tests, tools and the end of a run."""
        with self._connected() as connection:
            try:
                return self._drained(connection)
            finally:
                # Whoever stops at an error has not died: nobody should count that as a death.
                if not connection.broken:
                    self.leases.leave(connection)

    def _drained(self, connection: store.Connection) -> int:
        total = 0
        self._cover(connection)
        self._take_over(connection)
        self._require_all()
        ahead = self._ahead(self._positions())
        while (batch := ahead.take(max_events=self.config.processor_batch_events, wait=0)).positions:
            self._commit(connection, batch)
            total += len(batch.arrivals)
        self.flushing.flush(connection)
        self._trim()
        return total

    @contextmanager
    def _connected(self) -> Iterator[store.Connection]:
        """Open the connection that batches are committed over; what an earlier one left undone is forgotten."""
        self.pipeline.forget()
        self.flushing.forget()
        self.leases.log = self.log.name
        with connect(self.config.database_url, "batches", **SESSION) as connection:
            self.leases.register(connection)
            self.heart = Heart(self.config.database_url, self.leases)
            self.heart.start()
            try:
                yield connection
            finally:
                self.heart.stop()

    def _serve(self, connection: store.Connection) -> None:
        """Process over one connection."""
        self.log.check()
        self._cover(connection)
        try:
            while not self._stopping.is_set():
                self._take_over(connection)
                if self.leases.held:
                    self._follow(connection)
                else:
                    self._stopping.wait(LOOK_SECONDS)
        finally:
            # Not where the connection is lost: then others see that.
            if not connection.broken:
                self.flushing.flush(connection)
                self.leases.leave(connection)

    def _take_over(self, connection: store.Connection) -> list[int]:
        """Take what is free of our share, and see that the log still has what follows."""
        taken = self.leases.tend(connection)
        for partition in taken:
            self.log.verify(partition, self.leases.held[partition].position)
        if taken:
            # Who held them before may have died or lost the cache, and not have shown what it committed; and a crash
            # of PostgreSQL may have taken back what was shown.
            self.cache.start_epoch()
            self.flushing.show(connection, {one: at for one in taken if (at := self.leases.held[one].position)})
            logger.info("processing partitions %s of %s", sorted(self.leases.held), self.log.name)
        for partition in taken:
            if self.leases.held[partition].crashes >= careful.DEATHS:
                self._carefully(connection, partition)
        return taken

    def _carefully(self, connection: store.Connection, partition: int) -> None:
        """Take the next entry of a partition where processors died event by event."""
        held = self.leases.held[partition]
        logger.warning("%d processors died at %s of partition %d: its next events are tried one by one",
                       held.crashes, held.position or "the start", partition)  # fmt: skip
        until = time.monotonic() + careful.SECONDS
        while time.monotonic() < until and not self._stopping.is_set():
            batch = careful.tried(
                connection, self.pipeline, self.log, partition, held.position,
                event_bytes=self.config.collector_event_bytes, crashes=held.crashes,
            )  # fmt: skip
            if batch is None:
                return
            self._commit(connection, batch)
            if any(careful.is_killer(arrival) for arrival in batch.arrivals):
                return

    def _positions(self) -> dict[int, str]:
        return {partition: held.position for partition, held in self.leases.held.items()}

    def _follow(self, connection: store.Connection) -> None:
        """Process what comes; returns when we hold other partitions than at the start."""
        reader = Reader(
            self._ahead(self._positions()),
            max_events=self.config.processor_batch_events,
            wait=self.config.processor_poll_seconds,
        )
        look_at = time.monotonic() + LOOK_SECONDS
        try:
            while not self._stopping.is_set():
                caught_up_us = reader.caught_up_us
                # Nothing to do at once: the time to wait for the disk.
                batch = reader.take(0 if self.flushing else 0.25)
                if batch is not None:
                    self._commit(connection, batch)
                elif self.flushing:
                    self.flushing.flush(connection)
                else:
                    for partition in self.leases.held:
                        self._note_done(partition, caught_up_us)
                    self.cache.heal()
                self._failures = 0
                self._keep_house(connection)
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + LOOK_SECONDS
                    if self._shifted(connection):
                        return
        finally:
            reader.stop()

    def _shifted(self, connection: store.Connection) -> bool:
        """Give others what is theirs and take what is ours; tell whether anything changed hands."""
        surplus = self.leases.surplus(connection)
        if surplus:
            self.flushing.flush(connection)
            self.leases.release(connection, surplus)
            logger.info("released partitions %s", surplus)
        return bool(self._take_over(connection) or surplus)

    def _ahead(self, positions: dict[int, str]) -> Ahead:
        return Ahead(
            self.log, positions, event_bytes=self.config.collector_event_bytes,
            queue_bytes=self.config.processor_queue_bytes,
        )  # fmt: skip

    def _commit(self, connection: store.Connection, batch: Batch) -> None:
        """Apply a batch and move the positions in one transaction; the cache shows it once it is on the disk."""
        started = time.monotonic()
        self._cover(connection)
        applied = self._applied(connection, batch)
        self.pipeline.remember(applied)
        for partition, position in batch.positions.items():
            held = self.leases.held[partition]
            held.position, held.crashes = position, 0
        for arrival in batch.arrivals:
            # A dead letter that was given back says when it first came.
            if arrival.log_partition is not None and not arrival.delivery.letter_id:
                self._note_done(arrival.log_partition, arrival.delivery.received_us)
        self.flushing.add(connection, batch, applied)
        _measure(batch, applied, time.monotonic() - started)

    def _applied(self, connection: store.Connection, batch: Batch) -> Applied:
        arrivals: Sequence[Arrival] = batch.arrivals
        expected = {one: (position, self.leases.held[one].epoch) for one, position in batch.read_from.items()}
        races = 0
        while True:
            try:
                with connection.transaction():
                    waiting = time.monotonic()
                    store.lock_positions(connection, self.log.name, expected)
                    LOCK_SECONDS.labels("checkpoints").observe(time.monotonic() - waiting)
                    applied = self.pipeline.apply(connection, arrivals)
                    store.move_positions(connection, self.log.name, batch.positions, batch.events)
                self._resume()
                return applied
            except (store.Raced, psycopg.errors.DeadlockDetected) as error:
                races += 1
                if races == RACES:
                    raise
                RETRIES.labels(type(error).__name__).inc()
                self.pipeline.forget()
                arrivals = again(arrivals)
            except (Halted, ConfigurationError) as error:
                self._halt(error)
                arrivals = again(arrivals)

    def _halt(self, error: MartechError) -> None:
        """Stand still, and say so, until it is time to look whether the cause was mended."""
        logger.error("processing is halted: %s", error.message)
        HALTED.set(1)
        self.leases.halted = error.message[:2000]
        if self._stopping.wait(HALT_SECONDS):
            raise RetryableError("Stopped while halted.") from error

    def _resume(self) -> None:
        if self.leases.halted:
            logger.info("processing goes on")
            HALTED.set(0)
            self.leases.halted = ""

    def _cover(self, connection: store.Connection) -> None:
        """See to it that the coming days have their table partitions, beat or no beat."""
        today = datetime.now(UTC).date()
        if today != self._covered:
            tables.ensure(connection, tables.EVENTS, days=self.config.event_partition_days, today=today)
            self._covered = today

    def _note_done(self, partition: int, until_us: int) -> None:
        self._done[partition] = max(until_us, self._done.get(partition, 0))

    def _require_all(self) -> None:
        """Raise PermanentError where another processor holds what we should drain."""
        wanted = range(self.leases.count) if self.leases.given is None else self.leases.given
        missing = sorted(set(wanted) - self.leases.held.keys())
        if missing:
            raise PermanentError(
                f"Partitions {missing} are held by another processor: stop that one, or let it drain them."
            )

    def _keep_house(self, connection: store.Connection) -> None:
        """Now and then trim the log, tell it how far we are, and show in the checkpoints that we live."""
        now = time.monotonic()
        if now - self._trimmed_at > TRIM_SECONDS:
            self._trimmed_at = now
            self._trim()
            done = {one: self._done[one] for one in self.leases.held if self._done.get(one)}
            if done:
                self.log.done(done)
        if now - self._shown_at > SHOW_SECONDS:
            self._shown_at = now
            store.show_positions(connection, self.log.name, {one: self._done.get(one, 0) for one in self.leases.held})

    def _trim(self) -> None:
        """Let the log forget what PostgreSQL has on its disk."""
        if self.log.supports_trim:
            for partition, position in self.flushing.positions.items():
                self.log.trim(partition, position)
        self.flushing.positions.clear()


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
    EVENTS.labels("suppressed").inc(applied.suppressed)
    LOCK_SECONDS.labels("profiles").observe(applied.lock_seconds)
    REUSED.inc(applied.reused)
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
