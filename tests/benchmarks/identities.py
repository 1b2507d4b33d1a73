"""What it costs to find out who is who: people who join, and many identifiers that the rules look at as a whole."""

import json
import time
from itertools import count
from secrets import token_hex

import msgspec
import psycopg

from cdp.log.base import Delivery, Event
from cdp.processing import clusters, graph
from cdp.processing.pipeline import Pipeline, arrive
from martech.lib import clock
from tests.benchmarks.bed import Bed
from tests.benchmarks.table import Figure

PAIRS, BATCH = 5_000, 500
IDENTIFIERS, TIMES = 1_000, 20
_numbers = count()


def merges(bed: Bed) -> Figure:
    """Join 5,000 pairs of people, beside as many events of people who are one already."""
    mark, connection, pipeline = token_hex(4), _connected(bed), Pipeline()
    both = [{"userId": f"u{mark}{number}", "anonymousId": f"a{mark}{number}"} for number in range(PAIRS)]
    _take(connection, pipeline, bed, [{name: value} for one in both for name, value in one.items()])
    seconds = _take(connection, pipeline, bed, both)
    plain = _take(connection, pipeline, bed, both)
    return Figure(
        row="merge", unit="merges", figure=PAIRS / seconds, reference_name="events of people who are one already",
        reference=PAIRS / plain,
        remark=f"In batches of {BATCH}: two profiles, their states and identifiers, the link and the decision each.",
    )  # fmt: skip


def derivation(bed: Bed) -> Figure:
    """Make the clusters anew of 1,000 identifiers that hang together, beside the bare reading of what bears on them."""
    mark, connection, pipeline = token_hex(4), _connected(bed), Pipeline()
    _allow_many(bed)
    bodies = [
        {"userId": f"u{mark}", "context": _external("device", f"{mark}-{number}")} for number in range(IDENTIFIERS)
    ]
    # One whom the rules keep apart, so that they have something to decide.
    _take(connection, pipeline, bed, [*bodies, {"userId": f"v{mark}", "context": _external("device", f"{mark}-0")}])
    [(profile,)] = connection.execute(
        "SELECT profile_id FROM cdp_identifier WHERE namespace = 'user_id' AND value = %s", [f"u{mark}"]
    ).fetchall()
    made, read = [], []
    for _ in range(TIMES):
        start = time.perf_counter()
        with connection.transaction(force_rollback=True):
            pipeline.look_at_all(connection, [profile], reason="bench")
        made.append(time.perf_counter() - start)
        start = time.perf_counter()
        graph.load(connection, [profile], clusters.DEFAULT)
        read.append(time.perf_counter() - start)
    return Figure(
        row="derivation", unit="clusters", figure=TIMES / sum(made), reference_name="reading their rows and links",
        reference=TIMES / sum(read), remark=f"{IDENTIFIERS:,} identifiers; {1000 * sum(made) / TIMES:.0f} ms each.",
    )  # fmt: skip


def _external(kind: str, value: str) -> dict[str, list[dict[str, str]]]:
    return {"externalIds": [{"type": kind, "id": value}]}


def _allow_many(bed: Bed) -> None:
    rules = {
        name: one._asdict() | {"blocked": sorted(one.blocked)} for name, one in clusters.DEFAULT.namespaces.items()
    }
    rules["device"] = {"limit": 10 * IDENTIFIERS, "priority": 50, "blocked": [], "shared_after": 0}
    bed.database.execute(
        "INSERT INTO cdp_identityrules (status, namespaces, note, author, created_at, progress)"
        " VALUES ('applied', %s, '', '', now(), '{}')",
        [json.dumps(rules)],
    )
    bed.database.execute("UPDATE cdp_definitionversion SET version = version + 1")


def _connected(bed: Bed) -> psycopg.Connection:
    return psycopg.connect(bed.config.database_url, autocommit=True)


def _take(connection: psycopg.Connection, pipeline: Pipeline, bed: Bed, bodies: list[dict]) -> float:
    """Send messages through the core in batches; return the seconds it took."""
    arrivals = [
        arrive(
            Event(
                "track",
                "",
                0,
                msgspec.json.encode({"event": "X", "messageId": f"b{next(_numbers)}-{token_hex(4)}"} | one),
            ),
            Delivery(bed.source_id, clock.now_us(), "", b"", b"", []),
        )
        for one in bodies
    ]
    start = time.perf_counter()
    for first in range(0, len(arrivals), BATCH):
        with connection.transaction():
            applied = pipeline.apply(connection, arrivals[first : first + BATCH])
        pipeline.remember(applied)
    return time.perf_counter() - start
