"""What is done with the whole history of events: replayed and compared, and archived."""

import time
from datetime import UTC, datetime, timedelta

from tests.benchmarks.bed import Bed, run_load
from tests.benchmarks.table import Figure

EVERY_ANCHOR = (-1, 2**63 - 1)


def _fill(bed: Bed, events: int, people: int) -> None:
    """Have so many events in the table at least."""
    there = bed.number("SELECT count(*) FROM event_stream")
    if there < events:
        plan = bed.plan(path="/v1/batch", batch=100, people=people, seconds=120.0, connections=16,
                        requests=(events - there) // 100 + 1)  # fmt: skip
        before = bed.processed()
        bed.wait_processed(before + run_load(plan).succeeded * 100)


def replay(bed: Bed, events: int, people: int) -> Figure:
    """Rebuild everybody from their events and compare, beside the reading of these alone."""
    from cdp import history
    from cdp import replay as replaying

    _fill(bed, events, people)
    start, cpu, servers = time.perf_counter(), time.process_time(), bed.cpu()["postgres"]
    report = replaying.verify()
    elapsed, own, used = time.perf_counter() - start, time.process_time() - cpu, bed.cpu()["postgres"] - servers
    start = time.perf_counter()
    with history.snapshot() as reading, reading.session.cursor() as cursor:
        for table in reading.tables:
            read = history.query(table.name, *EVERY_ANCHOR, history.Filter(), reading.rules.folder.reading)
            with cursor.copy(read) as copied:
                sum(1 for _ in copied)
    return Figure(
        row="replay", unit="events", figure=report.events / elapsed, reference_name="bare COPY TO of the same columns",
        reference=report.events / (time.perf_counter() - start), cpu={"postgres": used / report.events * 1e6},
        remark=f"{report.events:,} events of {report.profiles:,} people, {report.differences.total()} differences; "
        f"{own / report.events * 1e6:.1f} µs of Python an event.",
    )  # fmt: skip


def archive(bed: Bed, events: int, people: int) -> Figure:
    """Write today's events to Parquet files, beside a bare COPY TO of the same rows as CSV."""
    from cdp import archive as archiving
    from cdp.models import ArchiveFile

    _fill(bed, events, people)
    tomorrow = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    start, cpu, servers = time.perf_counter(), time.process_time(), bed.cpu()["postgres"]
    written = sum(one.events for one in archiving.archive_closed(now=tomorrow + archiving.MARGIN))
    elapsed, own, used = time.perf_counter() - start, time.process_time() - cpu, bed.cpu()["postgres"] - servers
    size = sum(ArchiveFile.objects.values_list("size", flat=True))
    # So that the next run writes them again.
    ArchiveFile.objects.all().delete()
    start = time.perf_counter()
    with (
        bed.database.cursor() as cursor,
        cursor.copy(b"COPY (SELECT * FROM event_stream) TO STDOUT (FORMAT csv)") as out,
    ):
        sum(1 for _ in out)
    return Figure(
        row="archive", unit="events", figure=written / elapsed, reference_name="bare COPY TO of the same rows",
        reference=written / (time.perf_counter() - start), cpu={"postgres": used / written * 1e6},
        remark=f"{size / written:.0f} bytes an event in the files; {own / written * 1e6:.1f} µs of Python an event.",
    )  # fmt: skip
