"""When to stop: our own exceptions are a bug of ours, which must not send everything to quarantine."""

from __future__ import annotations

from collections import deque

from martech.lib.errors import PermanentError

# Of the newest so many events, batches taken whole.
WINDOW = 1000
SHARE = 0.1
# So many may fail in any window: a quiet hour has few events.
LEAST = 10


class Halted(PermanentError):
    """Too many events failed by our own exceptions: nothing is put aside until the cause is mended."""

    code = "processor_halted"


class Failures:
    """Counts the events that failed by our own exceptions among the newest ones."""

    def __init__(self) -> None:
        self._batches: deque[tuple[int, int]] = deque()
        self._now: tuple[int, int] = (0, 0)

    def begin(self, events: int) -> None:
        """Begin a batch of so many events; what the one before found counts only if it was committed."""
        self._now = (events, 0)

    def note(self, error: Exception) -> None:
        """Count a failure; Halted where they are too many."""
        events, failed = self._now
        self._now = (events, failed + 1)
        events, failed = (sum(column) for column in zip(*self._batches, self._now, strict=True))
        if failed > max(LEAST, SHARE * events):
            raise Halted(
                f"{failed} of the last {events} events failed by an error of our own, the last with "
                f"{type(error).__name__}: {_first_line(error)}. Nothing was put aside. Mend the code or the "
                "definition; then processing goes on by itself."
            ) from error

    def commit(self) -> None:
        """Keep what the batch found."""
        self._batches.append(self._now)
        self._now = (0, 0)
        while sum(events for events, _ in self._batches) - self._batches[0][0] >= WINDOW:
            self._batches.popleft()


def _first_line(error: Exception) -> str:
    """Return what an error says without its details, in which PostgreSQL tells the rows of people."""
    return (str(error).strip().splitlines() or ["no message"])[0]
