"""The records of a CSV or NDJSON file, each with its line and the byte after its end. No Django, nothing mapped.

An offset is always a record's end, so that reading can go on there; a quoted cell may hold line ends.
"""

from __future__ import annotations

import csv
import gzip
import itertools
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from martech.lib.errors import PermanentError

BLOCK = 2**18
# What is beyond in one line is not kept in memory; an event of more than a hundredth of this is refused.
MOST_LINE = 4 * 2**20
SAMPLE = 64 * 2**10
SAMPLE_ROWS = 50
DELIMITERS = ",;\t|"
BOM = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
FORMATS = ("csv", "ndjson")
_ENDINGS = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson"}


class UnusableFile(PermanentError):
    """The file as a whole cannot be read."""

    code = "unusable_file"


class Record(NamedTuple):
    """A record: the lines on which it begins and ends, the byte after its end, its cells (CSV) or bytes (NDJSON).

    `wrong` says what keeps it from being read, "" for nothing; `raw` is the text it was read from. Reading goes on
    at `end`, with `last` lines before it.
    """

    line: int
    last: int
    end: int
    cells: list[str] | bytes
    raw: bytes
    wrong: str = ""


class Layout(NamedTuple):
    """How a file is to be read. `delimiter` and `columns` are of CSV alone."""

    file_format: str
    encoding: str = "utf-8"
    delimiter: str = ","
    columns: tuple[str, ...] = ()


class Overlong(bytes):
    """The beginning of a line that is longer than `MOST_LINE`; `left_out` is how many bytes are missing."""

    left_out = 0


def format_of(name: str) -> str:
    """Return the format that a file's name tells, with or without `.gz`; UnusableFile where it tells none."""
    bare = name.lower().removesuffix(".gz")
    for ending, found in _ENDINGS.items():
        if bare.endswith(ending):
            return found
    raise UnusableFile(f"What {name} holds cannot be told from its name: say --format csv or --format ndjson.")


def opened(stream: BinaryIO, name: str) -> BinaryIO:
    """Return the stream of a file's content: decompressed where its name ends in `.gz`."""
    return gzip.GzipFile(fileobj=stream) if name.lower().endswith(".gz") else stream  # type: ignore[return-value]


def check_encoding(encoding: str) -> str:
    """Return an encoding in which a line's end is one byte; UnusableFile for others and for unknown ones."""
    # A byte order mark is passed over in any case.
    encoding = "utf-8" if encoding.lower().replace("_", "-") == "utf-8-sig" else encoding
    try:
        plain = '\r\n,;\t|"{}'.encode(encoding) == b'\r\n,;\t|"{}'
    except LookupError as error:
        raise UnusableFile(f"There is no encoding {encoding}. Try utf-8, latin-1 or cp1252.") from error
    if not plain:
        raise UnusableFile(f"Files in {encoding} cannot be read line by line. Convert the file to UTF-8.")
    return encoding


def layout_of(stream: BinaryIO, file_format: str, *, encoding: str = "utf-8", delimiter: str = "") -> Layout:
    """Return how to read a file from its beginning; UnusableFile where it has no usable header.

    Without a delimiter the one is taken that parts the first rows into the most columns, as many in each.
    """
    encoding = check_encoding(encoding)
    start = _start(stream)
    if file_format != "csv":
        return Layout(file_format, encoding)
    delimiter = delimiter or sniff(start.decode(encoding, "replace"))
    header = next(records(stream, Layout("csv", encoding, delimiter)), None)
    if header is None or header.wrong:
        raise UnusableFile("The file has no header row. Name the columns in its first line.")
    return Layout("csv", encoding, delimiter, _columns([str(cell) for cell in header.cells]))


def _start(stream: BinaryIO) -> bytes:
    stream.seek(0)
    sample = stream.read(SAMPLE)
    if sample.startswith(UTF_16):
        raise UnusableFile("The file is in UTF-16. Convert it to UTF-8.")
    # A row that was cut has fewer columns than the others.
    whole = sample[: sample.rfind(b"\n") + 1] if len(sample) == SAMPLE else sample
    return (whole or sample).removeprefix(BOM)


def sniff(text: str) -> str:
    """Return the delimiter of a CSV file by its first rows; a comma where none parts them."""
    best = max(DELIMITERS, key=lambda one: (_regular(text, one), -DELIMITERS.index(one)))
    return best if _regular(text, best) > 0 else ","


def _regular(text: str, delimiter: str) -> float:
    """Return how many columns a delimiter makes, weighted by the share of rows that have as many as the first."""
    lines = text.splitlines(keepends=True)
    try:
        rows = [row for row in itertools.islice(csv.reader(lines, delimiter=delimiter), SAMPLE_ROWS) if row]
    except csv.Error:
        return 0.0
    if not rows or len(rows[0]) < 2:
        return 0.0
    alike = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
    return alike * alike * len(rows[0])


def _columns(header: list[str]) -> tuple[str, ...]:
    names = [name.strip() or f"column_{number}" for number, name in enumerate(header, 1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UnusableFile(f"Two columns are named {twice}. Give each a name of its own.")
    return tuple(names)


def records(stream: BinaryIO, layout: Layout, *, offset: int = 0, line: int = 0) -> Iterator[Record]:
    """Give the records from `offset` on, before which there are `line` lines. Empty lines are passed over.

    A CSV file's first record is its header. OSError where the stream breaks off.
    """
    stream.seek(offset)
    lines = Lines(stream, layout.encoding, offset, line)
    return _csv_records(lines, layout) if layout.file_format == "csv" else _json_records(lines, layout.encoding)


class Lines:
    """A stream's lines as text. `line` and `offset` are how far it got, `taken` the lines since it was last cleared."""

    def __init__(self, stream: BinaryIO, encoding: str, offset: int, line: int) -> None:
        self.offset, self.line = offset, line
        self.taken: list[bytes] = []
        self._encoding = encoding
        self._lines = itertools.chain.from_iterable(_blocks(stream))

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        raw = self.next_bytes()
        if self.offset == len(raw):
            raw = raw.removeprefix(BOM)
        # What cannot be decoded is found where the message is encoded, and costs this record alone.
        return raw.decode(self._encoding, "surrogateescape")

    def next_bytes(self) -> bytes:
        """Return the next line as it stands in the file; csv.Error for one that is too long."""
        raw = next(self._lines)
        self.line += 1
        self.offset += len(raw)
        self.taken.append(raw)
        if type(raw) is Overlong:
            self.offset += raw.left_out
            raise csv.Error(f"the line has more than {MOST_LINE} bytes")
        return raw


def _blocks(stream: BinaryIO) -> Iterator[list[bytes]]:
    """Give a stream's lines with their ends, many at once."""
    rest = b""
    while block := stream.read(BLOCK):
        lines = (rest + block).splitlines(keepends=True)
        # A `\r` at the end may be half of a line's end.
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        yield lines
        if len(rest) > MOST_LINE:
            overlong, rest = _cut(stream, rest)
            yield [overlong]
    if rest:
        yield rest.splitlines(keepends=True)


def _cut(stream: BinaryIO, start: bytes) -> tuple[Overlong, bytes]:
    """Read to the end of a line without keeping it; return its beginning, and what was read after it."""
    size, after = len(start), b""
    while block := stream.read(BLOCK):
        end = block.find(b"\n") + 1
        size += end or len(block)
        if end:
            after = block[end:]
            break
    cut = Overlong(start[:SAMPLE])
    cut.left_out = size - len(cut)
    return cut, after


def _csv_records(lines: Lines, layout: Layout) -> Iterator[Record]:
    # Strict: a row whose quotation marks are wrong is an error of its own, instead of silently another row.
    reader, taken, width = csv.reader(lines, delimiter=layout.delimiter, strict=True), lines.taken, len(layout.columns)
    while True:
        line = lines.line + 1
        taken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, UnicodeDecodeError) as error:
            yield Record(line, lines.line, lines.offset, [], b"".join(taken), f"The row cannot be read: {error}.")
            continue
        if not cells:
            continue
        raw = taken[0] if len(taken) == 1 else b"".join(taken)
        if width and len(cells) != width:
            yield Record(
                line, lines.line, lines.offset, cells, raw, f"The row has {len(cells)} cells, the header {width}."
            )
        else:
            yield Record(line, lines.line, lines.offset, cells, raw)


def _json_records(lines: Lines, encoding: str) -> Iterator[Record]:
    recode = encoding.lower().replace("_", "-") not in {"utf-8", "utf8", "ascii"}
    while True:
        lines.taken.clear()
        try:
            raw = lines.next_bytes()
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(
                lines.line, lines.line, lines.offset, b"", lines.taken[0], f"The message cannot be read: {error}."
            )
            continue
        body = raw.removeprefix(BOM).strip() if lines.offset == len(raw) else raw.strip()
        if not body:
            continue
        message = body.decode(encoding, "replace").encode() if recode else body
        yield Record(lines.line, lines.line, lines.offset, message, raw)
