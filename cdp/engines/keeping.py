"""What a processor does beside its batches, over a connection of its own: the care of the keys of duplicates."""

from __future__ import annotations

import logging
import threading
from datetime import datetime, timedelta

import psycopg

from cdp.config import Config
from cdp.engines.leases import Leases, connect
from cdp.processing import duplicates
from cdp.processing.store import Connection

LOOK_SECONDS = 5.0

logger = logging.getLogger("martech.processor")


class Keeper(threading.Thread):
    """Seals generations, reads them into filters, and forgets those that the window has passed.

    The window is counted from when the oldest event that waits in any partition was received, so that what piles up
    during an outage still finds what came before it.
    """

    def __init__(self, config: Config, window: duplicates.Window, leases: Leases) -> None:
        super().__init__(name="keeper", daemon=True)
        self._config, self._window, self._leases = config, window, leases
        self._stopped = threading.Event()

    def run(self) -> None:
        """Look after the window until stopped; called by the thread."""
        while not self._stopped.is_set():
            try:
                with connect(self._config.database_url, "keeper") as connection:
                    while not self._stopped.is_set():
                        self._care(connection)
                        self._stopped.wait(LOOK_SECONDS)
            except psycopg.Error as error:
                logger.warning("duplicates cannot be looked after: %s", str(error).strip().replace("\n", " "))
                self._stopped.wait(LOOK_SECONDS)

    def _care(self, connection: Connection) -> None:
        if duplicates.seal(connection):
            logger.info("opened a new generation of duplicates")
        duplicates.count(connection)
        waiting = self._waiting(connection)
        if waiting is not None:
            before = waiting - timedelta(days=self._config.duplicate_window_days)
            held = duplicates.generations(connection)
            duplicates.forget(connection, duplicates.past(held, before=before, most=self._config.duplicate_window_ids))
        duplicates.sweep(connection)
        while not self._stopped.is_set() and self._window.learn(connection):
            logger.info("%d generations of duplicates have a filter", self._window.filtered)

    def _waiting(self, connection: Connection) -> datetime | None:
        """Return the time before which everything received has been processed, None where that is unknown."""
        row = connection.execute(
            "SELECT min(done_at) FROM cdp_checkpoint WHERE log = %s AND partition < %s"
            " HAVING bool_and(done_at IS NOT NULL)",
            [self._leases.log, self._leases.count],
        ).fetchone()
        return row[0] if row else None

    def stop(self) -> None:
        """Stop, and wait for the thread."""
        self._stopped.set()
        if self.is_alive():
            self.join(5)
