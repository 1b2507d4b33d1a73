"""Metrics of all processes together, as `/metrics` shows them.

Each module makes its own `prometheus_client` metrics, named `martech_*`, where it is imported. Where
`PROMETHEUS_MULTIPROC_DIR` is set when a process starts, its values live in files of that directory, so that
any one process can render those of all. Gauges need `multiprocess_mode="live…"`: those of a dead process
are left out, while what it has counted stays.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

# A crash loop leaves files of each of its lives; beyond so many, those of the dead are added up into one.
DEAD_FILES_KEPT = 16


CPU = Counter("martech_process_cpu_seconds_total", "CPU time that processes have used, by what they are", ["process"])
_counted: dict[int, float] = {}


def count_cpu(process: str) -> None:
    """Add what this process has used since the last call; each kind of process calls it about once a second."""
    used, pid = time.process_time(), os.getpid()
    CPU.labels(process).inc(used - _counted.get(pid, 0.0))
    _counted[pid] = used


class Collector(Protocol):
    """What adds metrics that are looked up when someone asks for them."""

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they are now."""


def render(accept: str, extra: Collector | None = None) -> tuple[bytes, str]:
    """Return the metrics of all processes, and their content type.

    OpenMetrics where the request's `Accept` header asks for it, else Prometheus' text format.
    """
    registry = CollectorRegistry(auto_describe=False)
    directory = _directory()
    registry.register(_Files(directory) if directory else REGISTRY)
    if extra is not None:
        registry.register(extra)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def forget_process(pid: int) -> None:
    """Leave out the gauges of a process that has ended; whoever notices its end calls this."""
    if directory := _directory():
        mark_process_dead(pid, str(directory))


def _directory() -> Path | None:
    path = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
    return Path(path) if path and os.path.isdir(path) else None


class _Files:
    """The metrics that all processes have written to `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def collect(self) -> Iterable[Metric]:
        _sweep(self.directory)
        with _locked(self.directory, fcntl.LOCK_SH):
            return list(
                MultiProcessCollector.merge([str(path) for path in self.directory.glob("*.db") if _filled(path)])
            )


def _filled(path: Path) -> bool:
    """Tell whether a file can be read: it is empty at first, and a gauge's goes with its process."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _sweep(directory: Path) -> None:
    """Forget the gauges of processes that died unnoticed, and add up what many dead ones counted."""
    dead = [path for path in directory.glob("*_*.db") if not _alive(_pid(path))]
    for pid in {_pid(path) for path in dead}:
        mark_process_dead(pid, str(directory))
    counted = [path for path in dead if not path.name.startswith("gauge_")]
    if len(counted) > DEAD_FILES_KEPT:
        with _locked(directory, fcntl.LOCK_EX):
            _add_up(directory, [path for path in counted if path.exists()])


def _pid(path: Path) -> int:
    last = path.stem.rpartition("_")[2]
    # The file that sums up the dead belongs to nobody: it counts as alive.
    return int(last) if last.isdecimal() else os.getpid()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _add_up(directory: Path, files: list[Path]) -> None:
    """Replace the files of dead processes by one of each kind that holds their sums."""
    kinds: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        kinds[path.name.partition("_")[0]].append(path)
    for kind, paths in kinds.items():
        kept = directory / f"{kind}_retired.db"
        sums: dict[str, float] = defaultdict(float)
        for path in [kept, *paths] if kept.exists() else paths:
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                sums[key] += value
        fresh = directory / f"{kind}_retired.new"
        fresh.unlink(missing_ok=True)
        _write(fresh, sums)
        fresh.replace(kept)
        for path in paths:
            path.unlink()


def _write(path: Path, values: dict[str, float]) -> None:
    file = MmapedDict(str(path))
    for key, value in values.items():
        file.write_value(key, value, 0.0)
    file.close()


@contextmanager
def _locked(directory: Path, mode: int) -> Iterator[None]:
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, mode)
        yield
