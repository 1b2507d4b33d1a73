"""The SQL forms of conditions and of traits' kinds: what a backfill and a preview say at once of many events.

Each says of the same events what `conditions.predicate` and `kinds.Kind` say of one after the other. Texts are built
of our own words alone: whatever a definition holds is a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cdp.processing.conditions import Condition, exact, instant_of
from cdp.processing.kinds import DAY_US, MAX_EXPONENT, MAX_TEXT, MOST_COUNTED, MOST_VALUES
from cdp.processing.traits import Definition


class Form(NamedTuple):
    """A piece of SQL with its parameters, in the order of its text."""

    text: str
    parameters: tuple[Any, ...] = ()


def form(text: str, *pieces: Form) -> Form:
    """Put pieces in place of the text's `{}`."""
    return Form(text.format(*(one.text for one in pieces)), tuple(p for one in pieces for p in one.parameters))


def parameter(given: Any, cast: str = "text") -> Form:
    """Return something given as a parameter of a type of PostgreSQL's."""
    return Form(f"%s::{cast}", (given,))


def joined(word: str, pieces: Iterable[Form], *, none: str) -> Form:
    """Join pieces by a word; `none` stands where there are none."""
    pieces = list(pieces)
    return form("(" + f" {word} ".join(["{}"] * len(pieces)) + ")", *pieces) if pieces else Form(none)


# The time of a row of `event_stream` in microseconds since 1970.
AT_US = Form("(extract(epoch FROM occurred_at) * 1000000)::bigint")


def member(column: Form, path: Sequence[str]) -> Form:
    """Return the JSON value that a path leads to, NULL where there is none."""
    return form("nullif({}" + " -> {}" * len(path) + ", 'null'::jsonb)", column, *map(parameter, path))


def number(of: Form) -> Form:
    """Return a JSON value as a number that is taken in, else NULL: `kinds.number_of`."""
    return form(
        "CASE WHEN jsonb_typeof({}) = 'number' THEN CASE WHEN scale(({})::numeric) <= " + str(MAX_EXPONENT)
        + " AND abs(({})::numeric) < 1e" + str(MAX_EXPONENT + 1) + " THEN ({})::numeric END END",
        of, of, of, of,
    )  # fmt: skip


def string(of: Form) -> Form:
    """Return a JSON text as a text, else NULL."""
    return form("CASE WHEN jsonb_typeof({}) = 'string' THEN {} #>> ARRAY[]::text[] END", of, of)


def kept(of: Form) -> Form:
    """Return a JSON text, number or boolean as states keep it, else NULL: `kinds.text_of`."""
    return form(
        "CASE jsonb_typeof({}) WHEN 'string' THEN 's' || left({}, " + str(MAX_TEXT) + ") WHEN 'boolean' THEN"
        " 'b' || ({})::text WHEN 'number' THEN 'n' || trim_scale({})::text END",
        of, string(of), of, number(of),
    )  # fmt: skip


def condition(one: Condition, column: Form, at_us: Form) -> Form:
    """Return the condition on a JSON column; `at_us` is the instant as of which it is asked. Never NULL."""
    negated = _NEGATED.get(one.operator)
    of, wanted = member(column, one.path), exact(one.value)
    held = form("coalesce({}, false)", _CONDITIONS[negated or one.operator](of, wanted, at_us))
    return form("NOT {}", held) if negated else held


def _same(of: Form, wanted: Any) -> Form:
    if isinstance(wanted, bool):
        return form("({} = {})", of, parameter("true" if wanted else "false", "jsonb"))
    if isinstance(wanted, str):
        return form("({} = {})", string(of), parameter(wanted))
    return form("({} = {})", number(of), parameter(wanted, "numeric"))


def _in(of: Form, wanted: Sequence[Any]) -> Form:
    return joined("OR", (form("coalesce({}, false)", _same(of, one)) for one in wanted), none="false")


def _compared(operator: str) -> Callable[[Form, Any, Form], Form]:
    return lambda of, wanted, at: form("({} " + operator + " {})", number(of), parameter(wanted, "numeric"))


def _timed(operator: str) -> Callable[[Form, Any, Form], Form]:
    return lambda of, wanted, at: form(
        "(cdp_instant({}) " + operator + " {})", string(of), parameter(instant_of(wanted), "bigint")
    )


def _within(of: Form, wanted: int, at: Form) -> Form:
    found = form("cdp_instant({})", string(of))
    return form("({} > {} - {} AND {} <= {})", found, at, parameter(wanted * DAY_US, "bigint"), found, at)


_NEGATED = {"not_equals": "equals", "not_contains": "contains", "not_in": "in", "absent": "exists"}
_CONDITIONS: Mapping[str, Callable[[Form, Any, Form], Form]] = {
    "equals": lambda of, wanted, at: _same(of, wanted),
    "contains": lambda of, wanted, at: form("(position({} IN {}) > 0)", parameter(wanted), string(of)),
    "starts": lambda of, wanted, at: form("starts_with({}, {})", string(of), parameter(wanted)),
    "ends": lambda of, wanted, at: form("(right({}, {}) = {})", string(of), parameter(len(wanted), "int"),
                                        parameter(wanted)),
    "in": lambda of, wanted, at: _in(of, wanted),
    "exists": lambda of, wanted, at: form("({} IS NOT NULL)", of),
    "less": _compared("<"), "at_most": _compared("<="), "greater": _compared(">"), "at_least": _compared(">="),
    "between": lambda of, wanted, at: form("({} BETWEEN {} AND {})", number(of), parameter(wanted[0], "numeric"),
                                           parameter(wanted[1], "numeric")),
    "before": _timed("<"), "after": _timed(">"), "within": _within,
}  # fmt: skip

# The events that count: bucket is 0 without a window; `n` is the property as a number, `t` as states keep it.
_COUNTED = """
SELECT anchor_id, bucket, at_us, message_id, made AS {} FROM (
    SELECT anchor_id, {} AS bucket, at_us, message_id, {} AS made FROM (
        SELECT anchor_id, {} AS at_us, message_id, event_type, name, properties FROM ({}) AS chosen
    ) AS timed WHERE {}
) AS valued WHERE {}
"""
_GROUPED = "SELECT anchor_id, bucket, {} AS state FROM counted GROUP BY anchor_id, bucket"
_SIMPLE = {
    "count": "to_jsonb(count(*))",
    "first_time": "to_jsonb(min(at_us))",
    "last_time": "to_jsonb(max(at_us))",
    "days_since": "to_jsonb(max(at_us))",
    "sum": "to_jsonb(sum(n)::text)",
    "average": "jsonb_build_array(sum(n)::text, count(n))",
    "minimum": "to_jsonb(trim_scale(min(n))::text)",
    "maximum": "to_jsonb(trim_scale(max(n))::text)",
    "first": "(array_agg(jsonb_build_array(at_us, message_id, t)"
    ' ORDER BY at_us, message_id COLLATE "C", t COLLATE "C"))[1]',
    "last": "(array_agg(jsonb_build_array(at_us, message_id, t)"
    ' ORDER BY at_us DESC, message_id COLLATE "C" DESC, t COLLATE "C" DESC))[1]',
}
_CAPPED = """
WITH counted AS ({2}), hashed AS (
    SELECT anchor_id, bucket, t, count(*) AS times, left(md5(t), 16) AS hash, row_number() OVER (
        PARTITION BY anchor_id, bucket ORDER BY left(md5(t), 16) COLLATE "C", t COLLATE "C"
    ) AS place FROM counted GROUP BY anchor_id, bucket, t
)
SELECT anchor_id, bucket, {0} AS state FROM hashed WHERE place <= {1} GROUP BY anchor_id, bucket
"""
_OF_VALUES = {
    "most_frequent": ("jsonb_object_agg(t, times)", MOST_VALUES),
    "unique_list": ('jsonb_agg(t ORDER BY t COLLATE "C")', MOST_VALUES),
    "unique_count": ('jsonb_agg(DISTINCT hash COLLATE "C")', MOST_COUNTED),
}
_NUMERIC = frozenset({"sum", "average", "minimum", "maximum"})


def states(definition: Definition, events: Form) -> Form:
    """Return the query of (anchor_id, state): a definition's states of the events that a query selects.

    `events` selects columns of `event_stream`, such as `SELECT * FROM event_stream WHERE anchor_id <> 0`.
    """
    counted = _counted(definition, events)
    if definition.kind in _SIMPLE:
        grouped = form("WITH counted AS ({}) " + _GROUPED.format(_SIMPLE[definition.kind]), counted)
    else:
        made, most = _OF_VALUES[definition.kind]
        grouped = form(_CAPPED.format(made, most, "{}"), counted)
    if definition.window is None:
        return form("SELECT anchor_id, state FROM ({}) AS grouped", grouped)
    return form(
        "SELECT anchor_id, jsonb_object_agg(bucket, state) AS state FROM ({}) AS grouped GROUP BY anchor_id", grouped
    )


def _counted(definition: Definition, events: Form) -> Form:
    """Return the query of the events that count, with what is made of their property."""
    wheres = [condition(one, Form("properties"), Form("at_us")) for one in definition.conditions]
    if definition.event_type:
        wheres.append(form("event_type = {}", parameter(definition.event_type)))
    if definition.event_name:
        wheres.append(form("name = {}", parameter(definition.event_name)))
    made = Form("NULL::text")
    if definition.path:
        of = member(Form("properties"), definition.path)
        made = number(of) if definition.kind in _NUMERIC else kept(of)
    window = definition.window
    bucket = Form("0") if window is None else Form(f"floor(at_us::numeric / {window.grain_us})::bigint")
    valued = Form("made IS NOT NULL") if definition.path else Form("true")
    column = Form("n" if definition.kind in _NUMERIC else "t")
    return form(_COUNTED, column, bucket, made, AT_US, events, joined("AND", wheres, none="true"), valued)
