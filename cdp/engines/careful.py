"""Events that kill the process: found one by one, where processors have died again and again at one position.

An exception is caught by the core, but a crash of the interpreter, an exhausted memory or an `os._exit` is not. So
each event of the next entry is tried alone in a transaction that is rolled back, and before that the checkpoint says
which one it is. What is still said there after a death is the suspect; one that killed often enough is put aside.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import msgspec
import psycopg

from cdp.engines.reading import Batch
from cdp.log.base import Log, decode_entry
from cdp.processing.decode import Rejection
from cdp.processing.pipeline import Arrival, Pipeline, arrive
from cdp.processing.store import Connection
from martech.lib.errors import MartechError

# Processors that may die at a position before its events are tried alone, and by one event before it is put aside:
# others kill processors too.
DEATHS = 2
DEATHS_BY_ONE = 3
# For so long entry after entry is tried like this; what killed was in the batch, not always in its first entry.
SECONDS = 5.0

KILLER = "kills_processor"

logger = logging.getLogger("martech.processor")


@dataclass(slots=True)
class Trial:
    """What the checkpoint says of the next entry: the event being tried (-1: none), deaths by it, proven killers.

    What comes before the event being tried has been found harmless; after the last one it is the entry's length.
    `crashes` is how many processors had died there before: who only lost a connection has not died of anything.
    """

    at: int = -1
    deaths: int = 0
    crashes: int = 0
    killers: list[int] = field(default_factory=list)


def one_entry(log: Log, partition: int, position: str) -> tuple[str, list[tuple[Any, Any]]] | None:
    """Return the next entry's position and its (event, delivery) pairs, None where there is none."""
    found = log.read({partition: position}, limit=1, wait=0).get(partition)
    if not found:
        return None
    deliveries = decode_entry(found[0].payload).deliveries
    return found[0].position, [(event, delivery) for delivery in deliveries for event in delivery.events]


def tried(
    connection: Connection,
    pipeline: Pipeline,
    log: Log,
    partition: int,
    position: str,
    *,
    event_bytes: int,
    crashes: int,
) -> Batch | None:
    """Return the next entry as a batch in which what kills processors is put aside; None where there is none.

    `crashes` is how many processors have died at the position.
    """
    entry = one_entry(log, partition, position)
    if entry is None:
        return None
    after, events = entry
    trial = _resumed(connection, log.name, partition, crashes)
    arrivals = []
    for number, (event, delivery) in enumerate(events):
        if number in trial.killers:
            logger.error("event %d of entry %s in partition %d kills processors; it is put aside", number, after,
                         partition)  # fmt: skip
            arrivals.append(Arrival(event, delivery, _killer(event.message_id), partition, after))
            continue
        if number >= trial.at:
            if number > trial.at:
                trial.at, trial.deaths = number, 0
            _note(connection, log.name, partition, trial)
            _rehearse(connection, pipeline, arrive(event, delivery, partition, after, max_bytes=event_bytes))
        arrivals.append(arrive(event, delivery, partition, after, max_bytes=event_bytes))
    if trial.at < len(events):
        # Who dies from here on is not killed by the last event.
        trial.at, trial.deaths = len(events), 0
        _note(connection, log.name, partition, trial)
    return Batch(arrivals, {partition: position}, {partition: after}, {partition: len(arrivals)})


def _resumed(connection: Connection, log: str, partition: int, crashes: int) -> Trial:
    """Return how far earlier trials came: what was being tried has killed once more."""
    row = connection.execute(
        "SELECT trial FROM cdp_checkpoint WHERE log = %s AND partition = %s", [log, partition]
    ).fetchone()
    trial = Trial(**row[0]) if row and row[0] else Trial()
    if trial.at >= 0 and crashes > trial.crashes:
        trial.deaths += 1
    trial.crashes = crashes
    if trial.deaths >= DEATHS_BY_ONE:
        trial.killers.append(trial.at)
    return trial


def _note(connection: Connection, log: str, partition: int, trial: Trial) -> None:
    connection.execute(
        "UPDATE cdp_checkpoint SET trial = %s::jsonb WHERE log = %s AND partition = %s",
        [msgspec.json.encode(trial).decode(), log, partition],
    )


def _rehearse(connection: Connection, pipeline: Pipeline, arrived: Arrival) -> None:
    """Do what the event asks for, and undo it. Whatever is raised will be raised again, and dealt with then."""
    try:
        with connection.transaction(force_rollback=True):
            pipeline.apply(connection, [arrived])
    except (MartechError, psycopg.DatabaseError) as error:
        if connection.broken:
            raise
        # What it says may quote the event.
        logger.debug("a rehearsal met %s", type(error).__name__)


def is_killer(arrival: Arrival) -> bool:
    """Tell whether an event was found to kill processors."""
    return isinstance(arrival.decoded, Rejection) and arrival.decoded.reason == KILLER


def _killer(message_id: str) -> Rejection:
    detail = f"{DEATHS_BY_ONE} processors died while they processed this event. Report it; replay it after a fix."
    return Rejection(KILLER, detail, message_id)
