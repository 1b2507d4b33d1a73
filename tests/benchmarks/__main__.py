"""Run the measurements and print the table: `python -m tests.benchmarks --help`."""

import argparse
import json
import platform
import subprocess
import sys

import psutil
from rich.console import Console

from tests.benchmarks import stages, table
from tests.benchmarks.bed import Bed
from tests.benchmarks.stages import Flags


def main() -> None:
    """Measure what the command line asks for."""
    options = _parser().parse_args()
    flags = Flags(
        rate=options.rate, batch=options.batch, people=options.people, seconds=options.seconds, kind=options.kind,
        events=options.events, window=options.window,
    )  # fmt: skip
    progress = Console(stderr=True, highlight=False)
    with progress.status("starting the servers"), Bed() as bed:
        figures = [_row(name, options.runs, bed, flags, progress) for name in options.only or stages.ROWS]
    if options.json:
        json.dump({"machine": machine(), "figures": table.as_document(figures)}, sys.stdout, indent=1)
        print()
    else:
        console = Console(highlight=False)
        console.width = max(console.width, 130)
        console.print(f"{machine()}; median of {options.runs} runs of {options.seconds:g} s")
        table.render(figures, console)


def _row(name: str, runs: int, bed: Bed, flags: Flags, progress: Console) -> table.Figure:
    measured = []
    for number in range(runs):
        progress.print(f"{name}, run {number + 1} of {runs}")
        measured.append(stages.ROWS[name](bed, flags))
    return table.middle(measured)


def machine() -> str:
    """Say on what, and of which commit, the figures are."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], check=False, capture_output=True, text=True
    ).stdout.strip()  # fmt: skip
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, commit {commit or 'unknown'}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(stages.ROWS), metavar="ROW",
                        help="measure this row only (again for more): " + ", ".join(stages.ROWS))  # fmt: skip
    parser.add_argument("--rate", type=float, default=0, help="events or reads a second for latencies (0: the row's)")
    parser.add_argument("--batch", type=int, default=0, help="events a request (0: the row's)")
    parser.add_argument("--people", type=int, default=20_000, help="how many people the events are of")
    parser.add_argument("--events", type=int, default=100_000, help="events that the processor drains in one run")
    parser.add_argument("--window", type=int, default=5_000_000, help="message ids that the window already holds")
    parser.add_argument("--seconds", type=float, default=5, help="how long each load lasts")
    parser.add_argument("--runs", type=int, default=3, help="runs of each row; the median counts")
    parser.add_argument("--kind", choices=["server", "browser"], default="server", help="events of 500 bytes or 1 KB")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


if __name__ == "__main__":
    main()
