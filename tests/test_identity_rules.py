"""What a dry run of rules says is what applying them then does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp import identity_rules
from tests.conftest import pointed_at
from tests.histories import calls, messages, prefix
from tests.platform import message
from tests.test_who_is_who import STRICT, bring

TABLES = (
    "customer_profiles, cdp_identifier, cdp_edge, cdp_identitydecision, cdp_unmergeside, event_stream,"
    " cdp_identityrules, cdp_auditentry"
)
DEFAULT = identity_rules.plain(identity_rules.clusters.DEFAULT)


@pytest.fixture(scope="module")
def sources(own_core):
    """Return the ids of a server's and a browser's source."""
    return (own_core.source("server"), own_core.source("browser", {"refused_namespaces": [], "refused_traits": []}))


@pytest.fixture(scope="module")
def django(own_core, django_db_setup, django_db_blocker):
    """Point Django at the database of the core."""
    with pointed_at(own_core.url, django_db_blocker):
        yield


@pytest.fixture
def people(own_core, sources, django):
    """Return the core without anybody."""
    clean(own_core)
    return own_core


def clean(core):
    core.connection.execute(f"TRUNCATE {TABLES} RESTART IDENTITY CASCADE")
    core.connection.execute("UPDATE cdp_definitionversion SET version = version + 1")
    core.pipeline.forget()


def holders(core):
    """Return whose each identifier is."""
    rows = core.rows("SELECT namespace, value, profile_id FROM cdp_identifier")
    return {(row["namespace"], row["value"]): row["profile_id"] for row in rows}


def difference(before, after):
    """Return the profiles that split, those that got identifiers of several, and the sizes of the largest."""
    became, came, sizes = {}, {}, ({}, {})
    for one, profile in before.items():
        became.setdefault(profile, set()).add(after[one])
        came.setdefault(after[one], set()).add(profile)
        for size, whose in zip(sizes, (before, after), strict=True):
            size[whose[one]] = size.get(whose[one], 0) + 1
    counts = (sum(len(one) > 1 for one in found.values()) for found in (became, came))
    return (*counts, *(max(size.values(), default=0) for size in sizes))


def told(outcome):
    return (outcome.split, outcome.merged, outcome.largest_before, outcome.largest_after)


def publish(namespaces):
    row = identity_rules.draft(namespaces, author="test")
    identity_rules.publish(row.pk, author="test")
    return identity_rules.apply()


def compared(core, namespaces):
    """Try rules, apply them, and return what the trial said; fail where that is not what they did."""
    before = holders(core)
    outcome = identity_rules.dry_run(namespaces)
    assert holders(core) == before
    publish(namespaces)
    assert told(outcome) == difference(before, holders(core))
    return outcome


def with_(rules, namespace, **changes):
    return rules | {namespace: rules[namespace] | changes}


one_rules = st.fixed_dictionaries({
    "limit": st.integers(1, 4), "priority": st.integers(0, 3), "shared_after": st.integers(0, 3),
})  # fmt: skip
some_rules = st.fixed_dictionaries(
    dict.fromkeys(("user_id", "email", "anonymous_id", "*"), one_rules)
    | {"values": st.lists(st.sampled_from(["u0", "u1", "e0", "e1", "a0", "a1"]), max_size=2)}
)


def drawn(rules, mark):
    """Return random rules with their blocked values."""
    found = {name: one for name, one in rules.items() if name != "values"}
    names = {"u": "user_id", "e": "email", "a": "anonymous_id"}
    for value in rules["values"]:
        one = found[names[value[0]]]
        one = found[names[value[0]]] = one | {"blocked": [*one.get("blocked", []), mark + value]}
    return found


@given(history=calls(), first=some_rules, second=some_rules)
def test_a_dry_run_says_what_applying_then_does(own_core, sources, django, history, first, second):
    clean(own_core)
    mark = prefix()
    publish(drawn(first, mark))
    bring(own_core, sources, messages(history, mark), [3])
    compared(own_core, drawn(second, mark))
    compared(own_core, drawn(first, mark))


def test_a_value_that_is_no_longer_blocked_joins_again(people):
    publish(with_(DEFAULT, "email", blocked=["info@example.com"]))
    for number in range(3):
        people.apply(message("identify", anonymousId=f"a{number}", traits={"email": "info@example.com"}))
    outcome = compared(people, DEFAULT)
    assert str(outcome) == "would split 0, merge 1; largest cluster 1 → 4"


def test_a_kiosk_that_is_let_off_joins_whom_it_may(people):
    for number in range(4):
        people.apply(message("identify", anonymousId="kiosk", userId=f"u{number}"))
    kiosk = with_(DEFAULT, "anonymous_id", shared_after=2)
    assert told(compared(people, kiosk)) == (1, 0, 2, 1)
    assert told(compared(people, DEFAULT)) == (0, 1, 1, 2)


def test_people_who_hang_together_by_what_is_freed_are_counted_once(people):
    publish(with_(STRICT, "anonymous_id", blocked=["kiosk"], limit=5, shared_after=0))
    for number in range(3):
        people.apply(
            message("identify", anonymousId="kiosk", userId=f"u{number}", traits={"email": f"e{number}@x.com"})
        )
        people.apply(message("identify", anonymousId=f"a{number}", userId=f"u{number}"))
    tight = with_(with_(STRICT, "anonymous_id", limit=5, shared_after=0), "email", blocked=["e0@x.com", "e1@x.com"])
    outcome = compared(people, tight)
    assert (outcome.split, outcome.looked_at) == (2, 4)


def test_examples_say_who_would_become_what(people):
    people.apply(message("identify", anonymousId="a1", userId="u1", traits={"email": "a@x.com"}))
    [example] = identity_rules.dry_run(with_(DEFAULT, "email", blocked=["A@x.com "])).examples
    assert example["parts"] == [["anonymous_id:a1", "user_id:u1"], ["email:a@x.com"]]
