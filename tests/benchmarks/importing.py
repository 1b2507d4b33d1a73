"""Importing a file: from its first byte to the last row's place in the log, hash and ledger included."""

import csv
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.benchmarks import traffic
from tests.benchmarks.bed import Bed

HEADER = ["userId", "event", "timestamp", "order_id", "total", "currency", "sku", "title", "quantity"]
PIPELINE = 8


def write(path: Path, rows: int, people: list[int], tag: str) -> None:
    """Write a file of so many events, in the format that its name says; `tag` makes it another file each time."""
    with path.open("w", newline="") as file:
        (_write_csv if path.suffix == ".csv" else _write_ndjson)(file, rows, people, tag)


def _write_csv(file: Any, rows: int, people: list[int], tag: str) -> None:
    writer = csv.writer(file)
    writer.writerow(HEADER)
    for number in range(rows):
        writer.writerow(
            [f"user-{people[number % len(people)]:07d}", "Order Completed", "2019-03-04T05:06:07Z", f"{tag}-{number}",
             "38.29", "EUR", "CD-20117", "Blue Train, live", "3"]
        )  # fmt: skip


def _write_ndjson(file: Any, rows: int, people: list[int], tag: str) -> None:
    events = [template.replace("TAG", tag) for template in traffic.templates("server")]
    for number in range(rows):
        person = people[number % len(people)]
        file.write(events[number % len(events)] % (person, person, number) + "\n")


def take(bed: Bed, path: Path) -> tuple[float, int]:
    """Import a file as the command does, in this process; return the seconds, and how many rows went in."""
    from cdp.imports import ledger
    from cdp.imports.errors import LocalErrors
    from cdp.imports.files import LocalFile
    from cdp.imports.mapping import Mapping, complete
    from cdp.imports.running import run
    from cdp.models import Source

    source = Source.objects.get(pk=bed.source_id)
    started = time.perf_counter()
    with ExitStack() as stack:
        file = LocalFile(path)
        stack.callback(file.close)
        wanted = Mapping() if path.suffix != ".csv" else Mapping(
            constants={"type": "track"}, types={"total": "number", "quantity": "number"}
        )  # fmt: skip
        found = ledger.begin(
            sha256=file.sha256(), source=source, mapping=complete(wanted, file.layout(wanted)), author="bench",
            name=path.name, file_format=file.file_format, size=file.size,
        )  # fmt: skip
        content = stack.enter_context(file.content())
        # The log is as full as the rows before made it, since nobody processes: that is another row's affair.
        run(found, content, LocalErrors(path.with_suffix(".errors")), config=bed.config)
    return time.perf_counter() - started, found.events


def raw_xadd(bed: Bed, before: dict[int, str]) -> float:
    """Append the entries that an import left in the log once more, with nothing of ours; return the seconds."""
    entries: list[tuple[str, bytes]] = []
    for partition in range(bed.config.log_partitions):
        key = f"martech:log:{partition}"
        found: Any = bed.log.xrange(key, f"({before[partition] or '0-0'}", "+")
        entries += [(f"bench:{partition}", fields[b"e"]) for _, fields in found]
    # In the order of the rounds: each of an import's appends has an entry for each partition.
    rounds = [entries[start :: len(entries) // PIPELINE or 1] for start in range(len(entries) // PIPELINE or 1)]
    started = time.perf_counter()
    for one in rounds:
        pipeline = bed.log.pipeline(transaction=False)
        for key, payload in one:
            pipeline.xadd(key, {b"e": payload})
        pipeline.execute()
    elapsed = time.perf_counter() - started
    bed.log.unlink(*(f"bench:{partition}" for partition in range(bed.config.log_partitions)))
    return elapsed


def newest(bed: Bed) -> dict[int, str]:
    """Return where each partition ends now."""
    found = {}
    for partition in range(bed.config.log_partitions):
        last: Any = bed.log.xrevrange(f"martech:log:{partition}", count=1)
        found[partition] = last[0][0].decode() if last else ""
    return found
