"""What a measurement gives, the median of several, and the table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

PROCESSES = ("load", "web", "log", "processor", "postgres", "cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measurement: `figure` and `reference` in `unit` a second, latencies in milliseconds from the due time,
    `offered` a second while they were taken (0: not taken), CPU in microseconds for each event by process.
    """

    row: str
    unit: str
    figure: float
    reference_name: str
    reference: float
    offered: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    remark: str = ""

    @property
    def ratio(self) -> float:
        """How much of the reference is reached."""
        return self.figure / self.reference if self.reference else 0.0


def middle(figures: Sequence[Figure]) -> Figure:
    """Return the median of each number over runs; the remark is the last run's."""
    last = figures[-1]
    numbers = {name: median(getattr(one, name) for one in figures) for name in
               ("figure", "reference", "offered", "p50", "p99")}  # fmt: skip
    cpu = {name: median(one.cpu.get(name, 0.0) for one in figures) for name in last.cpu}
    return Figure(
        row=last.row, unit=last.unit, reference_name=last.reference_name, cpu=cpu, remark=last.remark, **numbers
    )  # fmt: skip


def render(figures: Sequence[Figure], console: Console) -> None:
    """Print the table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("row", no_wrap=True)
    for title in ("figure", "reference", "ratio", "offered", "p50 ms", "p99 ms"):
        table.add_column(title, justify="right", no_wrap=True)
    for name in PROCESSES:
        table.add_column(f"{name}\nµs", justify="right", no_wrap=True)
    for one in figures:
        table.add_row(one.row, *_cells(one), *(_micros(one.cpu.get(name)) for name in PROCESSES))
    console.print(table)
    for one in figures:
        console.print(f"{one.row}: {one.unit} a second, beside {one.reference_name}. {one.remark}", highlight=False)


def _cells(one: Figure) -> list[str]:
    timed = one.offered > 0
    return [
        f"{one.figure:,.0f}",
        f"{one.reference:,.0f}",
        f"{one.ratio:.2f}",
        f"{one.offered:,.0f}" if timed else "",
        f"{one.p50:.1f}" if timed else "",
        f"{one.p99:.1f}" if timed else "",
    ]


def _micros(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def as_document(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """Return the figures as JSON can hold them."""
    return [asdict(one) | {"ratio": one.ratio} for one in figures]
