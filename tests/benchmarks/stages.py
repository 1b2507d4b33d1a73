"""The rows: what is measured, and how."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import Any

import httpx
import msgspec

from cdp.engines.local import SESSION
from tests.benchmarks import histories, identities, importing, references, traffic
from tests.benchmarks.bed import Bed, run_load, wait_until
from tests.benchmarks.erasing import erasure
from tests.benchmarks.load import Plan, Result, quantile
from tests.benchmarks.repeats import BATCH, GENERATIONS, bare, batches, fill, learned, recognise
from tests.benchmarks.table import Figure
from tests.running import free_port

# Events a second offered where latency is measured: about half of what two cores take, all processes together.
STEADY = {1: 2_000, 20: 15_000, 100: 25_000}
END_TO_END = 5_000
READS = 1_500
CONNECTIONS = {1: 64, 20: 32, 100: 16}
REFERENCE_SECONDS = 2.0
PROBES_A_SECOND = 20
VISIBLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What the command line varies. `rate` (events or reads a second) and `batch` are 0 where a row decides."""

    rate: float
    batch: int
    people: int
    seconds: float
    kind: str
    events: int
    window: int


Row = Callable[[Bed, Flags], Figure]


class _Spent:
    """The CPU seconds that were used since it was made."""

    def __init__(self, bed: Bed) -> None:
        self._bed, self._before = bed, bed.cpu()

    def micros(self, events: int, load: Result | None = None) -> dict[str, float]:
        """Return microseconds an event by process."""
        used = {name: seconds - self._before.get(name, 0.0) for name, seconds in self._bed.cpu().items()}
        if load is not None:
            used["load"] = load.cpu_seconds
        return {name: seconds / max(1, events) * 1e6 for name, seconds in used.items()}


def collector(size: int) -> Row:
    """Return the row of requests of so many events: as many as are taken, then latency at a fixed rate."""

    def measure(bed: Bed, flags: Flags) -> Figure:
        batch = flags.batch or size
        plan = _sending(bed, flags, batch)
        with bed.paused("processor"):
            spent = _Spent(bed)
            most = run_load(plan)
            cpu = spent.micros(most.succeeded * batch, most)
            bed.forget_log()
            offered = flags.rate or STEADY.get(batch, STEADY[100])
            steady = run_load(_steady(plan, offered / batch))
            bed.forget_log()
        reference = references.raw_xadd(
            bed, kind=flags.kind, batch=batch, people=flags.people, seconds=min(flags.seconds, REFERENCE_SECONDS)
        )
        return Figure(
            row=f"collector-{batch}", unit="events", figure=most.succeeded * batch / most.seconds,
            reference_name="XADD of the same bodies with fsync", reference=reference, offered=offered,
            p50=steady.p50, p99=steady.p99, cpu=_only(cpu, "load", "web", "log"), remark=_failures(most, steady),
        )  # fmt: skip

    return measure


def _sending(bed: Bed, flags: Flags, batch: int) -> Plan:
    return bed.plan(
        path="/v1/track" if batch == 1 else "/v1/batch", batch=batch, kind=flags.kind, people=flags.people,
        seconds=flags.seconds, connections=CONNECTIONS.get(batch, CONNECTIONS[100]),
    )  # fmt: skip


def _steady(plan: Plan, rate: float) -> Plan:
    # Other message ids than before: repeated events would be dropped.
    return _changed(plan, rate=rate, tag=plan.tag + "s")


def _changed(plan: Plan, **changes: Any) -> Plan:
    return msgspec.structs.replace(plan, **changes)


def _only(cpu: dict[str, float], *names: str) -> dict[str, float]:
    return {name: cpu[name] for name in names if name in cpu}


def _failures(*results: Result) -> str:
    refused, lost = sum(one.refused for one in results), sum(one.unanswered for one in results)
    return f"{refused} requests refused, {lost} unanswered." if refused or lost else ""


def processor(bed: Bed, flags: Flags) -> Figure:
    """Let the processor drain a log that was filled while it stood still."""
    _meet_everybody(bed, flags)
    batch = flags.batch or 100
    before, after = bed.processed(), bed.number("SELECT coalesce(max(event_id), 0) FROM event_stream")
    with bed.paused("processor"):
        filled = run_load(_changed(_sending(bed, flags, batch), seconds=60.0, requests=max(1, flags.events // batch)))
        events = filled.succeeded * batch
        spent, start = _Spent(bed), time.perf_counter()
    bed.wait_processed(before + events)
    elapsed, cpu = time.perf_counter() - start, spent.micros(events)
    copied, copy_micros = references.bare_copy(bed, after=after)
    return Figure(
        row="processor", unit="events", figure=events / elapsed, reference_name="bare COPY of the same rows",
        reference=copied, cpu=_only(cpu, "processor", "postgres", "log", "cache"),
        remark=f"COPY takes {copy_micros:.1f} µs of PostgreSQL an event. {_failures(filled)}",
    )  # fmt: skip


def _meet_everybody(bed: Bed, flags: Flags) -> None:
    """Make the people, once: everybody's first event costs more than the later ones."""
    if bed.number("SELECT count(*) FROM customer_profiles") > 0:
        return
    before = bed.processed()
    sent = run_load(_changed(_sending(bed, flags, 100), seconds=60.0, requests=max(1, 2 * flags.people // 100), seed=7))
    bed.wait_processed(before + sent.succeeded * 100)


def repeats(bed: Bed, flags: Flags) -> Figure:
    """Recognise repeated messages in a window of many generations: what a processor does before anything else."""
    fill(bed, flags.window)
    window, made = learned(bed), batches(max(1, flags.events // BATCH))
    bed.database.execute(f"SET plan_cache_mode = {SESSION['plan_cache_mode']}".encode())
    events = sum(map(len, made))
    plain = bare(bed.database, made)
    spent, cpu, elapsed = _Spent(bed), time.process_time(), 0.0
    elapsed = recognise(bed.database, window, made)
    micros = _only(spent.micros(events), "postgres") | {"processor": (time.process_time() - cpu) / events * 1e6}
    return Figure(
        row="dedupe", unit="events", figure=events / elapsed, reference_name="bare COPY of the same keys",
        reference=events / plain, cpu=micros,
        remark=f"{flags.window:,} ids in {GENERATIONS} sealed generations, each with its filter.",
    )  # fmt: skip


def fsync(bed: Bed, flags: Flags) -> Figure:
    """Let the log's server take requests of 20 events with fsync always, and every second only."""
    how: dict[str, Any] = {"kind": flags.kind, "batch": flags.batch or 20, "people": flags.people,
           "seconds": min(flags.seconds, REFERENCE_SECONDS)}  # fmt: skip
    always = references.raw_xadd(bed, **how)
    bed.log.config_set("appendfsync", "everysec")
    try:
        every_second = references.raw_xadd(bed, **how)
    finally:
        bed.log.config_set("appendfsync", "always")
    return Figure(
        row="fsync-always", unit="events", figure=always, reference_name="XADD with fsync once a second",
        reference=every_second, remark="64 requests wait for one fsync together.",
    )  # fmt: skip


def imported(ending: str) -> Row:
    """Return the row of a file's import: hash, mapping, the core's own check of each row, the log, the ledger."""

    def measure(bed: Bed, flags: Flags) -> Figure:
        path, tag = bed.home_path / f"rows.{ending}", token_hex(4)
        importing.write(path, flags.events, traffic.people(flags.people, seed=1), tag)
        with bed.paused("processor"):
            before, cpu = importing.newest(bed), time.process_time()
            seconds, rows = importing.take(bed, path)
            cpu = time.process_time() - cpu
            raw = importing.raw_xadd(bed, before)
            bed.forget_log()
        return Figure(
            row=f"import-{ending}", unit="rows", figure=rows / seconds,
            reference_name="XADD of the same entries with fsync", reference=rows / raw,
            remark=f"{path.stat().st_size / rows:.0f} bytes a row; {cpu / rows * 1e6:.1f} µs of CPU in the importer.",
        )  # fmt: skip

    return measure


def reads(bed: Bed, flags: Flags) -> Figure:
    """Read profiles that are in the cache."""
    _meet_everybody(bed, flags)
    people = _cached(bed, flags.people)
    plan = bed.plan(
        path="/v1/profiles/user_id:user-%07d", authorization=f"Bearer {bed.api_key}", kind="read",
        seconds=flags.seconds, people=people, connections=32,
    )  # fmt: skip
    with _raw_server(bed) as port:
        raw = run_load(_changed(plan, port=port, path="/raw/%d", seconds=min(flags.seconds, REFERENCE_SECONDS)))
    spent = _Spent(bed)
    most = run_load(plan)
    cpu = spent.micros(most.succeeded, most)
    offered = flags.rate or READS
    steady = run_load(_steady(plan, offered))
    return Figure(
        row="reads", unit="reads", figure=most.succeeded / most.seconds,
        reference_name="one Redis GET through the same server", reference=raw.succeeded / raw.seconds,
        offered=offered, p50=steady.p50, p99=steady.p99, cpu=_only(cpu, "load", "web", "cache"),
        remark=_failures(raw, most, steady),
    )  # fmt: skip


def _cached(bed: Bed, people: int) -> int:
    """Put the busiest people's documents where the reference reads them; return how many there are in a row."""
    for person in range(people):
        found: Any = bed.cache.get(f"i:user_id:user-{person:07d}")
        document: Any = bed.cache.get(b"p:" + found) if found else None
        if document is None:
            return max(1, person)
        bed.cache.set(f"raw:{person}", document.partition(b" ")[2], ex=600)
    return people


@contextmanager
def _raw_server(bed: Bed) -> Iterator[int]:
    """Serve the reference with the web process's own server and options."""
    from martech.embedded import options, programs

    port = free_port()
    web = next(one for one in programs.programs(options.load()) if one.name == "web")
    command = [*web.command[:-1], "tests.benchmarks.raw_get:application"]
    command[command.index("--port") + 1] = str(port)
    if "raw" not in bed.extra:
        bed.supervisor.start(replace(web, name="raw", command=command))
        bed.extra["raw"] = port
        wait_until(lambda: _serves(port), 20.0, "the reference's server")
    yield bed.extra["raw"]


def _serves(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/raw/0").status_code == 200
    except httpx.HTTPError:
        return False


def end_to_end(bed: Bed, flags: Flags) -> Figure:
    """Send at a fixed rate, and look how soon after its acknowledgement an event can be read."""
    _meet_everybody(bed, flags)
    batch = flags.batch or 20
    rate = flags.rate or END_TO_END
    before = bed.processed()
    spent = _Spent(bed)
    with _Probe(bed) as probe:
        load = run_load(_changed(_sending(bed, flags, batch), rate=rate / batch))
        ended = time.perf_counter()
        lag = load.succeeded * batch + probe.sent - (bed.processed() - before)
    bed.wait_processed(before + load.succeeded * batch + probe.sent)
    elapsed = load.seconds + time.perf_counter() - ended
    seen = sorted(probe.seconds)
    return Figure(
        row="end-to-end", unit="events", figure=load.succeeded * batch / elapsed,
        reference_name="what was offered", reference=rate, offered=rate,
        p50=quantile(seen, 0.5) * 1000, p99=quantile(seen, 0.99) * 1000,
        cpu=spent.micros(load.succeeded * batch, load),
        remark=f"Latencies are from acknowledged to readable, {len(seen)} times, at worst {max(seen):.2f} s; requests "
        f"took {load.p50:.1f} ms, 99 % within {load.p99:.1f} ms; {lag} events were under way when the load ended. "
        f"{_failures(load)}",
    )  # fmt: skip


class _Probe:
    """Sends an event now and then and waits until its effect can be read; a context manager.

    At fixed times too, however long earlier events take to be seen.
    """

    def __init__(self, bed: Bed) -> None:
        self.seconds: list[float] = []
        self.sent = 0
        self._bed = bed
        self._done = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> "_Probe":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join(4 * VISIBLE_SECONDS)

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None)
        base = f"http://127.0.0.1:{self._bed.port}"
        async with httpx.AsyncClient(base_url=base, timeout=2 * VISIBLE_SECONDS, limits=limits) as client:
            async with asyncio.TaskGroup() as probes:
                start, number = time.perf_counter(), 0
                while not self._done.is_set():
                    number += 1
                    probes.create_task(self._once(client, f"probe-{number}"))
                    await asyncio.sleep(max(0.0, start + number / PROBES_A_SECOND - time.perf_counter()))

    async def _once(self, client: httpx.AsyncClient, user: str) -> None:
        event = {"userId": user, "event": "Probed"}
        sent = await client.post("/v1/track", params={"position": "1"}, json=event, auth=(self._bed.write_key, ""))
        acknowledged = time.perf_counter()
        self.sent += sent.status_code == 200
        token = sent.headers["X-Martech-Position"]
        read = await client.get(
            f"/v1/profiles/user_id:{user}", params={"min_position": token},
            headers={"Authorization": f"Bearer {self._bed.api_key}"},
        )  # fmt: skip
        took = time.perf_counter() - acknowledged
        self.seconds.append(took if read.status_code == 200 else VISIBLE_SECONDS)


ROWS: dict[str, Row] = {
    "collector-1": collector(1),
    "collector-20": collector(20),
    "collector-100": collector(100),
    "processor": processor,
    "dedupe": repeats,
    "fsync-always": fsync,
    "import-csv": imported("csv"),
    "import-ndjson": imported("ndjson"),
    "reads": reads,
    "end-to-end": end_to_end,
    "merge": lambda bed, flags: identities.merges(bed),
    "derivation": lambda bed, flags: identities.derivation(bed),
    "replay": lambda bed, flags: histories.replay(bed, flags.events, flags.people),
    "archive": lambda bed, flags: histories.archive(bed, flags.events, flags.people),
    "erasure": erasure,
}
