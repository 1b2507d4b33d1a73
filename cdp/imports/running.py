"""Running an import: from where the ledger says it is, until its end or until it is asked to stop."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from cdp.config import Config
from cdp.imports import ledger
from cdp.imports.appending import Appender, Stopped, appending
from cdp.imports.errors import Errors
from cdp.imports.portions import Portion, Target, mapped, portions
from cdp.imports.records import Layout, UnusableFile, layout_of, records
from cdp.models import EventImport
from martech.lib.errors import RetryableError


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an import is: bytes of its content, rows in the log, bad lines; and why it waits, if it does."""

    offset: int
    events: int
    errors: int
    waiting: str = ""


def target_of(found: EventImport, config: Config) -> Target:
    """Return where an import's rows go; PermanentError where its source may not import."""
    allowed = ledger.check_source(found.source)
    # By the same id a row that a crash let in twice is dropped by the core.
    return Target(
        found.source_id, f"imp-{found.sha256[:16]}-", config.log_partitions, config.collector_event_bytes,
        allowed.refused_calls,
    )  # fmt: skip


def layout_for(found: EventImport, stream: BinaryIO) -> Layout:
    """Return how to read an import's content."""
    mapping = ledger.mapping_of(found)
    return layout_of(stream, found.file_format, encoding=mapping.encoding, delimiter=mapping.delimiter)


def run(
    found: EventImport,
    stream: BinaryIO,
    errors: Errors,
    *,
    config: Config,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[Progress], None] = lambda _: None,
) -> bool:
    """Give an import's rows to the log from the ledger's offset on; True at the file's end, False when stopped.

    `stream` is the content, decompressed. ImportBusy while another process is at it, UnusableFile where the stream
    breaks off. Whatever ends it: run again, it goes on where it was.
    """
    with ledger.held(found):
        if found.status != ledger.Status.RUNNING:
            return found.status == ledger.Status.DONE
        work = _Run(found, errors, tell)
        with appending(config, stop=stop, tell=work.tell_waiting) as appender:
            errors.resume(found.lines)
            try:
                return work.go(appender, _portions(found, stream, config), stop)
            except Stopped:
                return False
            except RetryableError:
                raise
            except (OSError, EOFError, zlib.error) as error:
                raise UnusableFile(f"{found.name} cannot be read after byte {found.offset}: {error}.") from error
            finally:
                found.refresh_from_db()


def _portions(found: EventImport, stream: BinaryIO, config: Config) -> Iterator[Portion]:
    layout = layout_for(found, stream)
    rows = records(stream, layout, offset=found.offset, line=found.lines)
    if not found.offset and layout.file_format == "csv":
        next(rows)
    made = portions(rows, mapped(ledger.mapping_of(found), layout), target_of(found, config), start=found.offset)
    return _checked(found, made) if ledger.is_late(found) else made


def _checked(found: EventImport, made: Iterator[Portion]) -> Iterator[Portion]:
    """Leave out of the first portion what a crash let in before the ledger moved: the core may have forgotten it."""
    for first in itertools.islice(made, 1):
        first.leave_out(ledger.stored_of(found, first.message_ids()))
        yield first
    yield from made


class _Run:
    """One portion is on its way into the log while the next is made ready."""

    def __init__(self, found: EventImport, errors: Errors, tell: Callable[[Progress], None]) -> None:
        self._found, self._errors, self._tell = found, errors, tell
        self._progress = Progress(found.offset, found.events, found.errors)

    def tell_waiting(self, why: str) -> None:
        """Say why it waits, "" when it goes on."""
        if why != self._progress.waiting:
            self._progress = replace(self._progress, waiting=why)
            self._tell(self._progress)

    def go(self, appender: Appender, made: Iterator[Portion], stop: Callable[[], bool]) -> bool:
        """Carry the portions to the log, one after the other."""
        under_way: tuple[Portion, list[tuple[int, bytes]], Future[Any]] | None = None
        for portion in made:
            if under_way and not self._settle(appender, *under_way):
                return False
            under_way = None
            if stop():
                return False
            appender.await_room()
            entries = portion.entries(self._found.source_id)
            under_way = portion, entries, appender.append(entries)
        # An import that is asked to stop with its last portion is done all the same.
        if under_way:
            self._settle(appender, *under_way)
        return True

    def _settle(
        self, appender: Appender, portion: Portion, entries: list[tuple[int, bytes]], begun: Future[Any]
    ) -> bool:
        """Move the ledger once a portion is durable; False where the import was asked to stop."""
        appender.settle(begun, entries)
        self._errors.add(portion)
        before = self._progress
        self._progress = Progress(portion.end, before.events + portion.rows, before.errors + len(portion.bad))
        goes_on = ledger.advance(self._found, portion, errors_path=self._errors.path if self._progress.errors else "")
        self._tell(self._progress)
        return goes_on
