"""The row of an erasure: a person with many events goes from every store."""

import time
from typing import Any

from tests.benchmarks.bed import Bed
from tests.benchmarks.table import Figure

EVENTS = 1_000
PEOPLE = 20


def erasure(bed: Bed, flags: Any) -> Figure:
    """Erase people of many events each, one after the other, while a processor runs; beside, their rows are deleted."""
    import httpx

    from cdp import privacy

    before = bed.processed()
    tag = f"{time.time_ns():x}"
    names = [f"erased-{tag}-{number}" for number in range(2 * PEOPLE)]
    with httpx.Client(base_url=f"http://127.0.0.1:{bed.port}", auth=(bed.write_key, ""), timeout=30) as client:
        for name in names:
            _send(client, name)
    bed.wait_processed(before + len(names) * EVENTS)
    plain = _deleted(bed, names[PEOPLE:])
    took = []
    for name in names[:PEOPLE]:
        start = time.perf_counter()
        asked = privacy.request(reference=f"user_id:{name}", actor="bench", enqueue=False)
        done = privacy.run(asked.pk, patience=60)
        took.append(time.perf_counter() - start)
        assert done.receipts["postgresql"]["events"] == EVENTS, done.receipts
    took.sort()
    return Figure(
        row="erasure", unit="events", figure=PEOPLE * EVENTS / sum(took), reference_name="DELETE of as many events",
        reference=PEOPLE * EVENTS / plain,
        remark=f"People of {EVENTS:,} events: {1000 * took[PEOPLE // 2]:.0f} ms from the request to the last receipt,"
        f" {1000 * took[-1]:.0f} at worst. Most of it waits for the log to be processed, trimmed and written anew.",
    )  # fmt: skip


def _send(client: Any, name: str) -> None:
    for start in range(0, EVENTS, 100):
        batch = [
            {"type": "track", "userId": name, "event": "Order Completed", "properties": {"total": number}}
            for number in range(start, start + 100)
        ]
        client.post("/v1/batch", json={"batch": batch}).raise_for_status()


def _deleted(bed: Bed, names: list[str]) -> float:
    """Delete the events of people one by one, as an administrator would, and return the seconds it took."""
    rows = bed.database.execute("SELECT id FROM cdp_identifier WHERE value = ANY(%s)", [names]).fetchall()
    start = time.perf_counter()
    for (anchor,) in rows:
        bed.database.execute("DELETE FROM event_stream WHERE anchor_id = %s", [anchor])
    return time.perf_counter() - start
