"""What an import would do: its first messages, what is wrong with its first rows, and what may be missing."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import msgspec

from cdp.imports.mapping import LEFT_OUT, TIMES, Mapping
from cdp.imports.portions import Bad, Judge, Target, mapped, time_of
from cdp.imports.records import Layout, Record, records
from cdp.imports.values import NUMBER, UnusableValue
from martech.lib import clock

CHECKED = 1000
SHOWN = 5


@dataclass(slots=True)
class Preview:
    """The first messages, how many rows were looked at and would go in, and the others' reasons, with one of each."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    checked: int = 0
    good: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Bad] = field(default_factory=dict)
    hints: list[str] = field(default_factory=list)


def preview(
    stream: BinaryIO, layout: Layout, mapping: Mapping, target: Target, *, shown: int = SHOWN, checked: int = CHECKED
) -> Preview:
    """Look at the first rows of a file by a complete mapping; nothing is written."""
    rows = records(stream, layout)
    if layout.file_format == "csv":
        next(rows)
    judge, found = Judge(target, mapped(mapping, layout)), Preview()
    judge.begin(clock.now_us())
    seen = list(itertools.islice(rows, max(checked, shown)))
    times = 0
    for record in seen:
        times += _look(judge, record, found, shown)
    if found.good and not times:
        found.hints.append(
            "No row says when it happened: each would count as of now. Map a column to timestamp, if there is one."
        )
    found.hints += _untyped(seen, layout, mapping)
    return found


def _look(judge: Judge, record: Record, found: Preview, shown: int) -> bool:
    """Count a record; return whether it says when it happened."""
    found.checked += 1
    try:
        event, item = judge.judged(record)
    except UnusableValue as error:
        found.reasons[error.code] += 1
        found.examples.setdefault(error.code, Bad(record.line, error.code, error.message, record.raw))
        return False
    found.good += 1
    if len(found.messages) < shown:
        found.messages.append({"messageId": event.message_id} | msgspec.json.decode(event.body))
    return item.head is not None and time_of(item.head) is not None


def _untyped(seen: list[Record], layout: Layout, mapping: Mapping) -> list[str]:
    """Name the columns that are taken as text and hold numbers alone."""
    hints = []
    for number, column in enumerate(layout.columns):
        to = mapping.columns.get(column, "")
        if column in mapping.types or to in TIMES or to == LEFT_OUT or to.endswith(("Id", "type", "event")):
            continue
        cells = [str(one.cells[number]) for one in seen if not one.wrong and one.cells[number]]
        if cells and all(NUMBER.fullmatch(cell) for cell in cells):
            hints.append(
                f"{column} holds numbers alone and is taken as text: give --types {column}=number to count it."
            )
    return hints
