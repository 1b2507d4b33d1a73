"""How far the platform has come with what the log holds."""

from typing import Any, Self

import psycopg

from cdp.config import Config
from cdp.log import open_log
from cdp.log.base import LogUnavailable


class Backlog:
    """Compares the log with the checkpoints; a context manager. Servers that are away are waited for."""

    def __init__(self, config: Config) -> None:
        self._database_url = config.database_url
        self._log = open_log(config.log_url, partitions=config.log_partitions)
        self._connection: psycopg.Connection[Any] | None = None
        self._events = 0
        self._before: int | None = None

    def __enter__(self) -> Self:
        self.look()
        return self

    def __exit__(self, *exc: object) -> None:
        self._log.close()
        if self._connection is not None:
            self._connection.close()

    @property
    def processed(self) -> int:
        """How many events have been processed since the beginning, as of the last look."""
        return self._events - (self._before or 0)

    def look(self) -> dict[int, str]:
        """Return the partitions that are behind, each with the position to reach; all of them when nobody says."""
        try:
            checkpoints = self._checkpoints()
            newest = {partition: self._log.newest(partition) for partition in range(self._log.partitions)}
        except (psycopg.OperationalError, LogUnavailable):
            self._connection = None
            return dict.fromkeys(range(self._log.partitions), "")
        self._events = sum(events for _, events in checkpoints.values())
        if self._before is None:
            self._before = self._events
        order = self._log.order
        return {
            partition: position
            for partition, position in newest.items()
            if order(checkpoints.get(partition, ("", 0))[0]) < order(position)
        }

    def token(self) -> str:
        """Return the token of the newest position of every partition, as `min_position` takes it."""
        newest = {partition: self._log.newest(partition) for partition in range(self._log.partitions)}
        return ",".join(f"{partition}.{position}" for partition, position in newest.items() if position)

    def _checkpoints(self) -> dict[int, tuple[str, int]]:
        if self._connection is None:
            self._connection = psycopg.connect(self._database_url, autocommit=True, connect_timeout=5)
        rows = self._connection.execute(
            "SELECT partition, position, events FROM cdp_checkpoint WHERE log = %s", [self._log.name]
        )
        return {partition: (position, events) for partition, position, events in rows}
