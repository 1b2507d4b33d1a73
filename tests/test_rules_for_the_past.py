"""Rules of who is who count for the past as well: what a job makes of it is what the rules make from scratch."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdp import identity_rules
from cdp.models import IdentityRules
from cdp.processing import clusters
from tests.conftest import pointed_at
from tests.histories import calls, consistent, from_scratch, identifiers_of, messages, prefix, stored
from tests.test_who_is_who import bring

TABLES = "cdp_unmergeside, cdp_identitydecision, cdp_edge, event_stream, cdp_identifier, customer_profiles"


@pytest.fixture(scope="module")
def sources(own_core):
    """Return the ids of a server's and a browser's source."""
    return (own_core.source("server"), own_core.source("browser", {"refused_namespaces": [], "refused_traits": []}))


@pytest.fixture(scope="module")
def django(own_core, django_db_setup, django_db_blocker):
    """Point Django at the database of the core."""
    with pointed_at(own_core.url, django_db_blocker):
        yield


@st.composite
def rulesets(draw):
    """Return rules as JSON data; values of one letter and number are blocked here and there."""
    found = {}
    for name, single in (("user_id", True), ("email", False), ("anonymous_id", False), ("*", False)):
        found[name] = {
            "limit": 1 if single else draw(st.integers(1, 3)),
            "priority": draw(st.integers(0, 3)),
            "blocked": draw(
                st.lists(st.integers(0, 3).map(lambda number, name=name: f"{name[0]}{number}"), max_size=1)
            ),
            "shared_after": draw(st.integers(0, 2)),
        }
    return found


def publish(rules):
    row = identity_rules.draft(rules, author="test")
    row = identity_rules.publish(row.version, author="test")
    done = identity_rules.apply()
    assert (done.version, done.status) == (row.version, IdentityRules.Status.APPLIED)
    return clusters.Ruleset.of(row.version, rules)


def marked(rules, mark):
    """Return rules that block an example's own values."""
    return {name: one | {"blocked": [mark + value for value in one["blocked"]]} for name, one in rules.items()}


@settings(max_examples=max(10, settings().max_examples // 4))
@given(history=calls(most=12), wanted=st.lists(rulesets(), min_size=1, max_size=3), late=st.booleans())
def test_published_rules_make_of_the_past_what_they_make_from_scratch(own_core, sources, django, history, wanted, late):
    own_core.connection.execute(f"TRUNCATE {TABLES} CASCADE")
    mark = prefix()
    # Some values come while they are blocked, and nothing else: those wait in the dead letters.
    sent = messages(history, mark)
    half = len(sent) // 2 if late else len(sent)
    publish({name: one | {"blocked": []} for name, one in wanted[0].items()})
    bring(own_core, sources, sent[:half], [2])
    for rules in (marked(one, mark) for one in wanted):
        tried = identity_rules.dry_run(rules)
        before = stored(own_core, mark)
        found = publish(rules)
        after = stored(own_core, mark)
        assert after == {frozenset(one) for one in from_scratch(sent[:half], found).clusters}
        assert tried.split == sum(not any(one <= other for other in after) for one in before)
        assert tried.merged == sum(not any(one <= other for other in before) for one in after)
        assert tried.largest_after == max(map(len, after), default=0)
        consistent(own_core, mark)
    bring(own_core, sources, [one for one in sent[half:] if anybody(one, found)], [3])
    consistent(own_core, mark)


def anybody(one, rules):
    """Tell whether a message is of somebody under the rules."""
    return not all(rules.blocks(identifier) for identifier in identifiers_of(one[2]))


def test_a_dry_run_says_in_words_what_a_rule_would_do(own_core, sources, django):
    own_core.connection.execute(f"TRUNCATE {TABLES} CASCADE")
    publish(identity_rules.plain(clusters.DEFAULT))
    mark = prefix()
    sent = messages([(0, number, "u0", f"e{number}", "") for number in range(4)], mark)
    bring(own_core, sources, sent, [4])
    rules = identity_rules.plain(clusters.DEFAULT)
    rules["email"]["limit"] = 2
    said = str(identity_rules.dry_run(rules))
    assert said == "would split 1, merge 0; largest cluster 5 → 3"
    assert len(stored(own_core, mark)) == 1
    publish(rules)
    assert sorted(map(len, stored(own_core, mark))) == [1, 1, 3]
    reasons = own_core.rows("SELECT kind, reason, author FROM cdp_identitydecision WHERE kind = 'split'")
    assert {(row["reason"], row["author"]) for row in reasons} == {("rules", "test")}
    assert json.loads(json.dumps(identity_rules.current().progress))["of"] >= 1
