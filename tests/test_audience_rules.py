"""An audience's rule says of everybody at once, in SQL, what it says of each person as they change."""

import decimal

import msgspec
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp.processing import audience_sql, audiences
from cdp.processing.audience_sql import Counted, Names
from cdp.processing.audiences import Cycle, Did, Member, Subject, UnfitRule, clauses, ordered, rule
from cdp.processing.conditions import OPERANDS, UnfitCondition
from cdp.processing.kinds import DAY_US
from cdp.processing.traits import window_of
from tests.test_sql_forms import operand, scalars
from tests.test_trait_kinds import NOW, raw

EVERYBODY = """
CREATE TEMP TABLE people (id int, traits jsonb, computed_traits jsonb, trait_states jsonb, audiences int[])
"""
SLUGS = {"one": 1, "two": 2}
WINDOWS = ("", "2d", "30h")
names = st.sampled_from(["plan", "age", "seen.last"])


@st.composite
def conditions(draw, kind):
    operator = draw(st.sampled_from(list(OPERANDS)))
    value = draw(operand(operator))
    return {kind: draw(names), "operator": operator} | ({} if value is None else {"value": value})


events = st.builds(
    lambda name, window, operator, times: {
        "event": {"name": name} | ({"window": window} if window else {}), "operator": operator, "value": times
    },
    st.sampled_from(["Ordered", "Seen"]), st.sampled_from(WINDOWS), st.sampled_from(sorted(audiences.TIMES)),
    st.integers(0, 3),
)  # fmt: skip
leaves = st.one_of(
    conditions("trait"), conditions("computed"), events, st.sampled_from([{"audience": slug} for slug in SLUGS])
)
rules = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"all": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"any": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"not": inner}),
    ),
    max_leaves=6,
)
values = st.fixed_dictionaries(
    {}, optional={"plan": scalars, "age": scalars, "seen": st.fixed_dictionaries({"last": scalars})}
)
buckets = st.dictionaries(st.integers(0, 4), st.integers(1, 3), max_size=3)
people = st.lists(
    st.tuples(values, values, st.lists(st.tuples(buckets, st.integers(0, 3)), min_size=8, max_size=8),
              st.sets(st.sampled_from(list(SLUGS)))), min_size=1, max_size=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def connection(own_core):
    with psycopg.connect(own_core.url) as connection:
        connection.execute(EVERYBODY)
        connection.commit()
        yield connection


def exact(data):
    return msgspec.json.Decoder(float_hook=decimal.Decimal).decode(raw(data))


@given(said=rules, given_people=people)
def test_a_rules_sql_means_whom_its_predicate_means(connection, said, given_people):
    one = rule(said)
    asked = {clause.key: clause for clause in clauses(one) if isinstance(clause, Did)}
    counts = {key: Counted(f"{number}.1", window_of(its.options["window"]) if "window" in its.options else None)
              for number, (key, its) in enumerate(sorted(asked.items()))}  # fmt: skip
    holds, rows, expected = audiences.test(one), [], []
    for number, (traits, computed, tallies, slugs) in enumerate(given_people):
        states, counted = {}, {}
        for (key, its), (ago, times) in zip(counts.items(), tallies, strict=False):
            if its.window is None:
                states[its.key] = counted[key] = times
                continue
            latest = its.window.bucket(NOW)
            states[its.key] = {str(latest - back): many for back, many in ago.items()}
            counted[key] = sum(many for back, many in ago.items() if latest - back >= its.window.oldest(NOW))
        rows.append((number, raw(traits).decode(), raw(computed).decode(), raw(states).decode(),
                     [SLUGS[slug] for slug in slugs]))  # fmt: skip
        expected.append(holds(Subject(exact(traits), exact(computed), counted, slugs), NOW))
    query = audience_sql.everyone(one, Names(counts, SLUGS), NOW)
    with connection.transaction(force_rollback=True):
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO people VALUES (%s, %s, %s, %s, %s)", rows)
        found = connection.execute(f"SELECT {query.text} FROM people AS p ORDER BY id", query.parameters).fetchall()
    assert [row[0] for row in found] == expected


@given(said=rules, person=people, later=st.integers(0, 50 * DAY_US))
def test_time_alone_changes_nothing_before_it_is_due(said, person, later):
    one, (traits, computed, _, slugs) = rule(said), person[0]
    subject = Subject(exact(traits), exact(computed), {}, slugs)
    due = audiences.due(one, subject, NOW)
    assert due is None or due > NOW
    if due is None or NOW + later < due:
        assert audiences.test(one)(subject, NOW + later) == audiences.test(one)(subject, NOW)


def test_audiences_come_after_those_they_are_made_of():
    rules = {"a": {"all": [{"audience": "b"}, {"not": {"audience": "c"}}]}, "b": {"audience": "c"}, "c": {"all": []}}
    assert ordered({slug: rule(said) for slug, said in rules.items()}) == ["c", "b", "a"]


def test_a_cycle_is_refused_and_named():
    rules = {"a": Member("b"), "b": rule({"not": {"audience": "c"}}), "c": rule({"any": [{"audience": "a"}]})}
    with pytest.raises(Cycle, match=r"a → b → c → a|b → c → a → b|c → a → b → c"):
        ordered(rules)
    with pytest.raises(UnfitRule, match="made of d, which there is not"):
        ordered({"a": Member("d")})


def test_two_audiences_that_ask_the_same_of_events_share_its_count():
    one, other = ({"event": {"name": "Ordered", "window": "30d"}, "value": times} for times in (1, 5))
    assert rule(one).key == rule(other).key


BAD = [
    ([], "A rule is an object"),
    ({}, "exactly one of"),
    ({"all": [], "any": []}, "exactly one of"),
    ({"all": {}}, "all is a list"),
    ({"trait": "plan", "operator": "equals", "value": "x", "window": "3d"}, "A rule of trait has no window"),
    ({"trait": "plan", "operator": "like", "value": "x"}, "no operator"),
    ({"trait": 3, "operator": "exists"}, "Expected `str`"),
    ({"event": {"window": "3w"}}, "A window is"),
    ({"event": {"names": "x"}}, "no names"),
    ({"event": {"name": 3}}, "are texts"),
    ({"event": {}, "operator": "contains"}, "How often is asked"),
    ({"event": {}, "value": -1}, "How often is a whole number"),
    ({"event": {"conditions": [{"property": "x", "operator": "less", "value": "a"}]}}, "needs a number"),
    ({"audience": 3}, "named by its slug"),
]


@pytest.mark.parametrize(("data", "said"), BAD)
def test_what_a_rule_lacks_is_said(data, said):
    with pytest.raises((UnfitRule, UnfitCondition), match=said):
        rule(data)


def test_a_rule_is_neither_too_deep_nor_too_long():
    deep = {"audience": "x"}
    for _ in range(11):
        deep = {"not": deep}
    with pytest.raises(UnfitRule, match="nested 10 deep"):
        rule(deep)
    with pytest.raises(UnfitRule, match="at most 100 clauses"):
        rule({"all": [{"audience": "x"}] * 101})
