"""A progress bar at the foot of the terminal while the platform's lines scroll above it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

# Where there is no terminal, a line now and then.
LINE_SECONDS = 10.0

Update = Callable[[dict[str, int]], None]


class Screen:
    """A text output, to be put in the place of sys.stdout, that leaves room for a bar while there is one."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._console = Console(file=output)
        self._live = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output, name)

    def write(self, text: str) -> int:
        """Write lines, above the bar if there is one."""
        if not self._live:
            return self._output.write(text)
        if text.strip("\n"):
            self._console.print(Text.from_ansi(text.rstrip("\n")), soft_wrap=True)
        return len(text)

    @contextmanager
    def progress(self, counts: list[str], total: int, say: Callable[[str], None]) -> Iterator[Update]:
        """Show how far counts up to `total` have come, by the function that the block gets; lines go to `say`."""
        if self._console.is_terminal:
            with self._bars(counts, total) as update:
                yield update
        else:
            yield _lines(total, say)

    @contextmanager
    def _bars(self, counts: list[str], total: int) -> Iterator[Update]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn())
        bars = Progress(
            *columns, TimeElapsedColumn(), console=self._console, redirect_stdout=False, redirect_stderr=False
        )
        tasks = {name: bars.add_task(name, total=total) for name in counts}

        def update(now: dict[str, int]) -> None:
            for name, count in now.items():
                bars.update(tasks[name], completed=min(count, total))

        with bars:
            self._live = True
            try:
                yield update
            finally:
                self._live = False


def _lines(total: int, say: Callable[[str], None]) -> Update:
    told = time.monotonic()

    def update(now: dict[str, int]) -> None:
        nonlocal told
        if time.monotonic() - told >= LINE_SECONDS or min(now.values()) >= total:
            told = time.monotonic()
            say(f"of {total:,} events: " + ", ".join(f"{count:,} {name}" for name, count in now.items()))

    return update
