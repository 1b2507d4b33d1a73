"""Event rows as Parquet files: their columns, and how they come from PostgreSQL's CSV.

A file stands alone: it names anchors and sources, JSON is the exact text, times are UTC microseconds. Rows are
in the order of (anchor_id, occurred_at, event_id). pyarrow is loaded when it is needed only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import msgspec

from cdp import redaction
from cdp.processing.accounts import GROUP_ID
from cdp.processing.identity import Identifier, clean
from martech.lib.errors import ConfigurationError

if TYPE_CHECKING:
    import pyarrow as pa

COMPRESSION = "zstd"
# Bytes of CSV that become one row group: so much, times a small factor, is in memory.
BLOCK_BYTES = 8 * 2**20
_NULL = r"\N"
_US = "(extract(epoch FROM {}) * 1000000)::bigint"
# Column → what PostgreSQL is asked for, and its type in the file; `event` is the row, `anchor` and `source` its own.
COLUMNS: dict[str, tuple[str, str]] = {
    "event_id": ("event.event_id", "int64"),
    "ingested_at": (_US.format("event.ingested_at"), "time"),
    "profile_id": ("event.profile_id", "string"),
    "anchor_id": ("event.anchor_id", "int64"),
    "anchor_namespace": ("anchor.namespace", "string"),
    "anchor_value": ("anchor.value", "string"),
    "identifiers": ("event.identifiers", "identifiers"),
    "event_type": ("event.event_type", "string"),
    "name": ("event.name", "string"),
    "properties": ("event.properties", "string"),
    "context": ("event.context", "string"),
    "extra": ("event.extra", "string"),
    "source_id": ("event.source_id", "int32"),
    "source": ("source.name", "string"),
    "message_id": ("event.message_id", "string"),
    "occurred_at": (_US.format("event.occurred_at"), "time"),
    "original_timestamp": ("event.original_timestamp", "string"),
    "received_at": (_US.format("event.received_at"), "time"),
    "flags": ("to_json(event.flags)", "texts"),
    "log_partition": ("event.log_partition", "int16"),
    "log_position": ("event.log_position", "string"),
    "plan_version": ("event.plan_version", "int32"),
    "transformation_version": ("event.transformation_version", "int32"),
    "trace_parent": ("event.trace_parent", "string"),
}
TIMES = frozenset(name for name, (_, kind) in COLUMNS.items() if kind == "time")
ORDER = ("anchor_id", "occurred_at", "event_id")
# Where an event may name a person.
SAID = ("name", "message_id", "original_timestamp")
SAID_AS_JSON = ("properties", "context", "extra")
# The anchor of what concerns no person.
NOBODY = 0
_pairs = msgspec.json.Decoder(list[list[tuple[str, str]]])
_texts = msgspec.json.Decoder(list[list[str]])


def arrow() -> Any:
    """Return pyarrow with what is used of it; ConfigurationError names the package to install."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigurationError(
            "The archive needs pyarrow: pip install 'martech[archive]', or pip install pyarrow."
        ) from error
    return pyarrow


def schema() -> pa.Schema:
    """Return the columns of a file."""
    pa = arrow()
    types = {
        "time": pa.timestamp("us", tz="UTC"),
        "identifiers": pa.list_(pa.struct([("namespace", pa.string()), ("value", pa.string())])),
        "texts": pa.list_(pa.string()),
    }
    return pa.schema(
        [(name, types[kind] if kind in types else getattr(pa, kind)()) for name, (_, kind) in COLUMNS.items()]
    )


def batches(rows: Iterable[bytes | bytearray | memoryview], extra: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Return rows of CSV (without a header, NULL as \\N) as tables, a block at a time.

    `extra` names whole numbers that come before the columns; they stay in front.
    """
    block: list[bytes] = []
    size = 0
    for row in rows:
        block.append(bytes(row))
        size += len(row)
        if size >= BLOCK_BYTES:
            yield _table(b"".join(block), extra)
            block, size = [], 0
    if block:
        yield _table(b"".join(block), extra)


def _table(data: bytes, extra: Sequence[str]) -> pa.Table:
    pa = arrow()
    raw = {"time": pa.int64(), "identifiers": pa.string(), "texts": pa.string()}
    kinds = {name: kind for name, (_, kind) in COLUMNS.items()}
    types = {name: raw[kind] if kind in raw else getattr(pa, kind)() for name, kind in kinds.items()}
    types = dict.fromkeys(extra, pa.int32()) | types
    read = pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(column_names=list(types), block_size=len(data) + 1, use_threads=False),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        # Quoted, the two letters are a text; PostgreSQL quotes it so.
        convert_options=pa.csv.ConvertOptions(
            column_types=types, null_values=[_NULL], strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )
    fields = {**dict.fromkeys(extra), **{field.name: field.type for field in schema()}}
    return pa.table({name: _converted(read.column(name), kinds.get(name, ""), type_) for name, type_ in fields.items()})


def _converted(column: Any, kind: str, wanted: Any) -> Any:
    if kind == "time":
        return column.cast(wanted)
    if kind in {"identifiers", "texts"}:
        return _lists(column, kind)
    return column


def _lists(column: Any, kind: str) -> Any:
    """Return a column of JSON arrays as lists."""
    pa = arrow()
    decoder: Any = _pairs if kind == "identifiers" else _texts
    rows = decoder.decode("[" + ",".join(column.to_pylist()) + "]")
    offsets, total = [0], 0
    for row in rows:
        total += len(row)
        offsets.append(total)
    if kind == "texts":
        values = pa.array([one for row in rows for one in row], pa.string())
    else:
        columns = [pa.array([pair[side] for row in rows for pair in row], pa.string()) for side in (0, 1)]
        values = pa.StructArray.from_arrays(columns, ["namespace", "value"])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def writer(target: IO[bytes]) -> Any:
    """Return a writer of a file's tables; `close` finishes the file."""
    return arrow().parquet.ParquetWriter(target, schema(), compression=COMPRESSION, write_statistics=True)


def count(file: IO[bytes]) -> int:
    """Return the rows that a file's footer says; ConfigurationError where it is no whole Parquet file."""
    pa = arrow()
    try:
        return int(pa.parquet.read_metadata(file).num_rows)
    except pa.ArrowInvalid as error:
        raise ConfigurationError(f"The archive's file is damaged: {error}. Restore it from a backup.") from error


def tables(
    file: IO[bytes], *, anchors: Collection[int] | None = None, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Return a file's rows, a row group at a time: those of some anchors (a set, or a range of them), or all."""
    pa = arrow()
    with pa.parquet.ParquetFile(file, pre_buffer=False) as parquet:
        position = parquet.schema_arrow.get_field_index("anchor_id")
        asked = None if columns is None else list(dict.fromkeys([*columns, "anchor_id"]))
        for number in range(parquet.num_row_groups):
            if anchors is not None and not _may_hold(parquet.metadata.row_group(number).column(position), anchors):
                continue
            table = parquet.read_row_group(number, columns=asked, use_threads=False)
            if anchors is not None:
                table = table.filter(_is_in(table["anchor_id"], anchors))
            if table.num_rows:
                yield table if columns is None else table.select(list(columns))


def _may_hold(chunk: Any, anchors: Collection[int]) -> bool:
    statistics = chunk.statistics
    if statistics is None or not statistics.has_min_max:
        return True
    if isinstance(anchors, range):
        return bool(anchors.start <= statistics.max and statistics.min < anchors.stop)
    return any(statistics.min <= anchor <= statistics.max for anchor in anchors)


def _is_in(column: Any, anchors: Collection[int]) -> Any:
    pa = arrow()
    if isinstance(anchors, range):
        first, last = (pa.scalar(one, pa.int64()) for one in (anchors.start, anchors.stop - 1))
        return pa.compute.and_(pa.compute.greater_equal(column, first), pa.compute.less_equal(column, last))
    return pa.compute.is_in(column, value_set=pa.array(sorted(anchors), pa.int64()))


def plain(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Return a table's rows as dicts, with times as microseconds since 1970."""
    pa = arrow()
    for name in TIMES & set(table.column_names):
        index = table.column_names.index(name)
        table = table.set_column(index, name, table[name].cast(pa.int64()))
    columns = [table[name].to_pylist() for name in table.column_names]
    return (dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True))


def groups(table: pa.Table) -> Iterator[tuple[int, str]]:
    """Return the anchor and the group id of each group call."""
    pa = arrow()
    calls = table.filter(pa.compute.equal(table["event_type"], "group"))
    for anchor, extra in zip(calls["anchor_id"].to_pylist(), calls["extra"].to_pylist(), strict=True):
        yield anchor, _group_of(extra)


def _group_of(extra: str | None) -> str:
    return clean(GROUP_ID, msgspec.json.decode(extra).get("groupId")) if extra else ""


def redacted(table: pa.Table, named: Sequence[Identifier], groups: Mapping[str, str]) -> tuple[pa.Table, list[int]]:
    """Return a table in which no event that has one of the identifiers says the value of any (`redaction`).

    Nor do group calls of `groups`, by group id, which get the one that is given, say such as is somebody's wherever it
    stands. With it come the anchors of the events that were changed, NOBODY for those that were not of the identifiers.
    """
    pa = arrow()
    identified = _identified(table, named)
    mask = pa.compute.or_(identified, _of_groups(table, groups)) if groups else identified
    values = [one.value for one in named]
    found, distinct = redaction.pattern(values), redaction.pattern(redaction.distinct(values))
    before, theirs = table.filter(mask).to_pylist(), identified.filter(mask).to_pylist()
    after = [
        _of_group(_redacted(row, found, frozenset(named)) if names else row, distinct, groups)
        for row, names in zip(before, theirs, strict=True)
    ]
    pairs = zip(after, before, theirs, strict=True)
    changed = [old["anchor_id"] if names else NOBODY for new, old, names in pairs if new != old]
    if not changed:
        return table, []
    others = table.filter(pa.compute.invert(mask))
    both = pa.concat_tables([others, pa.Table.from_pylist(after, schema=table.schema)])
    return both.sort_by([(name, "ascending") for name in ORDER]), changed


def _identified(table: pa.Table, named: Sequence[Identifier]) -> Any:
    """Return for each row whether it has one of the identifiers."""
    pa = arrow()
    lists = table["identifiers"].combine_chunks()
    pairs = pa.compute.list_flatten(lists)
    # Neither holds the character between them.
    joined = pa.compute.binary_join_element_wise(
        pa.compute.struct_field(pairs, "namespace"), pa.compute.struct_field(pairs, "value"), "\0"
    )
    hits = pa.compute.is_in(joined, value_set=pa.array(["\0".join(one) for one in named], pa.string()))
    parents = pa.compute.list_parent_indices(lists).filter(hits)
    return pa.compute.is_in(pa.array(range(len(lists)), parents.type), value_set=parents)


def _of_groups(table: pa.Table, groups: Mapping[str, str]) -> Any:
    """Return for each row whether it is a call of one of the groups."""
    pa = arrow()
    calls = pa.compute.equal(table["event_type"], "group")
    numbers = pa.compute.indices_nonzero(calls).to_pylist()
    extras = table["extra"].filter(calls).to_pylist()
    hits = [number for number, extra in zip(numbers, extras, strict=True) if _group_of(extra) in groups]
    return pa.compute.is_in(pa.array(range(table.num_rows), pa.int64()), value_set=pa.array(hits, pa.int64()))


def _redacted(row: dict[str, Any], found: re.Pattern[str], named: frozenset[Identifier]) -> dict[str, Any]:
    plain = {name: redaction.redact(row[name], found) for name in SAID if row[name]}
    coded = {name: redaction.redact_json(row[name], found, numbers=True) for name in SAID_AS_JSON if row[name]}
    kept = [one for one in row["identifiers"] if (one["namespace"], one["value"]) not in named]
    return row | plain | coded | {"identifiers": kept}


def _of_group(row: dict[str, Any], found: re.Pattern[str], groups: Mapping[str, str]) -> dict[str, Any]:
    """Return a row without what `found` finds, and with the account's other name, where it is a call of the groups."""
    group = _group_of(row["extra"]) if row["event_type"] == "group" else ""
    if group not in groups:
        return row
    plain = {name: redaction.redact(row[name], found) for name in SAID if row[name]}
    coded = {name: redaction.redact_json(row[name], found, numbers=True) for name in SAID_AS_JSON if row[name]}
    if groups[group] != group:
        coded["extra"] = redaction.with_member(coded["extra"], "groupId", groups[group])
    return row | plain | coded
