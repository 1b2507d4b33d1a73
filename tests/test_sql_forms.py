"""What SQL says of many events at once is what the stream makes of them one by one."""

import msgspec
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp.processing import sql_forms
from cdp.processing.conditions import OPERANDS, conditions, instant_of, predicate
from cdp.processing.kinds import DAY_US, KINDS
from cdp.processing.sql_forms import Form, form, parameter
from cdp.processing.traits import Definition, Folder
from martech.lib import clock
from tests.test_trait_kinds import NOW, event, raw

TABLE = """
CREATE TEMP TABLE events (anchor_id bigint, occurred_at timestamptz, message_id text, event_type text, name text,
    properties jsonb)
"""
texts = st.one_of(st.sampled_from(["a", "b", "gold", "2026-11-01", "2026-02-30", "2026-11-01T10:00:00.25+01:00", ""]),
                  st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4))  # fmt: skip
numbers = st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1), st.decimals(-100, 100, places=2),
                    st.sampled_from(["1E2", "1e-61", "1e61", "0e5", "-0.0", "2.50"]).map(msgspec.Raw))  # fmt: skip
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
anything = st.one_of(
    scalars, st.lists(scalars, max_size=2), st.dictionaries(st.sampled_from("ab"), scalars, max_size=2)
)
plain_numbers = st.one_of(st.integers(-5, 5), st.floats(-100, 100).map(lambda one: round(one, 2)))
instants = texts.filter(lambda one: instant_of(one) is not None)
OPERAND = {
    "a text, a number or a boolean": st.one_of(texts, st.booleans(), plain_numbers),
    "a text": texts.filter(bool),
    "a number": plain_numbers,
    "two numbers": st.lists(plain_numbers, min_size=2, max_size=2),
    "nothing": st.none(),
    "a whole number of days": st.integers(1, 40),
}


def operand(operator):
    wanted = OPERANDS[operator][0]
    if wanted.startswith("a list"):
        return st.lists(st.one_of(texts, st.booleans(), plain_numbers), min_size=1, max_size=3)
    return instants if wanted.startswith("a day") else OPERAND[wanted]


@pytest.fixture(scope="module")
def connection(own_core):
    with psycopg.connect(own_core.url) as connection:
        connection.execute(TABLE)
        connection.commit()
        yield connection


@pytest.mark.parametrize("operator", OPERANDS)
@given(data=st.data())
def test_a_conditions_sql_says_what_its_predicate_says(operator, connection, data):
    [one] = conditions([{"property": "value", "operator": operator, "value": data.draw(operand(operator))}])
    values = data.draw(st.lists(anything, min_size=1, max_size=8))
    holds = predicate(one)
    said = sql_forms.condition(one, Form("v"), parameter(NOW, "bigint"))
    bodies = [raw({"value": value}).decode() for value in values]
    query = form(
        "SELECT {} FROM unnest({}) WITH ORDINALITY AS given (v, place) ORDER BY place",
        said,
        parameter(bodies, "jsonb[]"),
    )
    found = [row[0] for row in connection.execute(query.text, query.parameters)]
    assert found == [holds(decoded(body), NOW) for body in bodies]


def decoded(body):
    folder = Folder([Definition(1, "it", "first", "", "", {"property": "value"}, 1)])
    return folder._properties.decode(body).p_76616c7565


histories = st.lists(
    st.tuples(st.integers(1, 2), anything, st.integers(NOW - 5 * DAY_US, NOW), st.sampled_from(["Ordered", "Seen"])),
    max_size=10,
)
filters = st.sampled_from([[], [{"property": "value", "operator": "exists"}],
                           [{"property": "value", "operator": "greater", "value": 1}]])  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@given(
    history=histories,
    window=st.sampled_from([None, "2d", "5h", "90m"]),
    wheres=filters,
    name=st.sampled_from(["", "Seen"]),
)
def test_a_kinds_sql_makes_the_states_that_the_stream_makes(kind, connection, history, window, wheres, name):
    options = {"conditions": wheres} | ({"window": window} if window else {})
    options |= {"property": "value"} if KINDS[kind].needs_property else {}
    definition = Definition(1, "it", kind, "track", name, options, 1)
    folder, expected, rows = Folder([definition]), {}, []
    for anchor, value, at, event_name in history:
        one = event(value, at, event_name)
        folder.fold(expected.setdefault(anchor, {}), one)
        rows.append((anchor, clock.from_us(at), one.message_id, one.type, one.name, one.properties.decode()))
    query = sql_forms.states(definition, Form("SELECT * FROM events"))
    with connection.transaction(force_rollback=True):
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO events VALUES (%s, %s, %s, %s, %s, %s::jsonb)", rows)
        found = dict(connection.execute(query.text, query.parameters).fetchall())
    assert found == {anchor: plain(states["1.1"]) for anchor, states in expected.items() if states}


def plain(state):
    return msgspec.json.decode(msgspec.json.encode(state))


@given(
    st.one_of(
        texts,
        st.from_regex(
            r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2}))?",
            fullmatch=True,
        ),
    )
)
def test_texts_are_read_as_instants_alike(connection, text):
    assert connection.execute("SELECT cdp_instant(%s)", [text]).fetchone()[0] == instant_of(text)
