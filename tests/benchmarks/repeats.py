"""What recognising repeated messages costs an event: look-ups and keys, with a window that is full."""

import time
from os import urandom
from typing import Any

import psycopg
from psycopg import sql

from cdp.processing import duplicates
from cdp.processing.duplicates import Key, Window
from tests.benchmarks.bed import Bed

GENERATIONS = 10
BATCH = 20_000
# Keys that a batch repeats.
REPEATED = 0.02


def fill(bed: Bed, keys: int) -> None:
    """Let the window hold so many sealed keys, in ten generations, once."""
    if bed.number("SELECT coalesce(sum(keys), 0)::bigint FROM cdp_duplicategeneration") >= keys:
        return
    for _ in range(GENERATIONS):
        open_ = duplicates.open_generation(bed.database)
        bed.database.execute(
            sql.SQL("INSERT INTO {} SELECT gen_random_uuid(), 1, now() FROM generate_series(1, %s)").format(
                open_.table
            ),
            [keys // GENERATIONS],
        )
        duplicates.seal(bed.database, larger_than=0)
    duplicates.count(bed.database)


def learned(bed: Bed) -> Window:
    """Return a window that has a filter of each sealed generation."""
    window = Window()
    while window.learn(bed.database):
        pass
    return window


def batches(number: int) -> list[list[Key]]:
    """Return batches of keys; some are of the batch before."""
    made: list[list[Key]] = []
    for _ in range(number):
        again = made[-1][: int(BATCH * REPEATED)] if made else []
        made.append(again + [Key(urandom(16), 1) for _ in range(BATCH - len(again))])
    return made


def recognise(connection: psycopg.Connection[Any], window: Window, made: list[list[Key]]) -> float:
    """Do what a processor's batches do, each in a transaction; return the seconds it took."""
    started = time.perf_counter()
    for keys in made:
        with connection.transaction():
            duplicates.hold(connection)
            seen = window.seen(connection, [one.id_hash for one in keys])
            window.keep(connection, [one for one in keys if one.id_hash not in seen], 0)
    return time.perf_counter() - started


def bare(connection: psycopg.Connection[Any], made: list[list[Key]]) -> float:
    """Copy the same keys into a table without any index; return the seconds it took."""
    connection.execute("CREATE TEMP TABLE bare (id_hash uuid, payload_hash bigint, ingested_at timestamptz)")
    started = time.perf_counter()
    for keys in made:
        rows = b"".join(b"%b\t%d\t2026-01-01\n" % (one.id_hash.hex().encode(), one.payload_hash) for one in keys)
        with connection.cursor() as cursor, cursor.copy("COPY bare FROM STDIN") as into:
            into.write(rows)
    elapsed = time.perf_counter() - started
    connection.execute("DROP TABLE bare")
    return elapsed
