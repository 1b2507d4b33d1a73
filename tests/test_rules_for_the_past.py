"""Rules of who is who count for the past as well: what a job makes of it is what the rules make from scratch."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp import identity_rules, unmerging
from cdp.models import IdentityRules
from cdp.processing import clusters
from cdp.processing.identity import Identifier
from tests.conftest import pointed_at
from tests.histories import calls, consistent, from_scratch, identifiers_of, messages, prefix, stored
from tests.platform import message
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


def changed(**blocked):
    """Return the default rules with values blocked by namespace."""
    rules = identity_rules.plain(clusters.DEFAULT)
    for namespace, values in blocked.items():
        rules[namespace]["blocked"] = values
    return rules


def begin(core):
    core.connection.execute(f"TRUNCATE {TABLES} CASCADE")
    publish(changed())
    return prefix()


def test_who_is_unblocked_joins_again_whatever_processors_remember(own_core, sources, django):
    mark = begin(own_core)
    publish(changed(email=[f"{mark}e0"]))
    bring(own_core, sources, messages([(0, 0, "u0", "e0", "")], mark), [1])
    row = identity_rules.draft(changed(), author="test")
    identity_rules.publish(row.version, author="test")
    # The rules count already, and the job has not come to it yet.
    again = messages([(0, 0, "u0", "e0", "a1")], mark + "s")[0]
    again[2]["userId"], again[2]["traits"]["email"] = f"{mark}u0", f"{mark}e0"
    bring(own_core, sources, [again], [1])
    assert identity_rules.apply().status == IdentityRules.Status.APPLIED
    late = messages([(0, 1, "", "e0", "a2")], mark + "t")[0]
    late[2]["traits"]["email"] = f"{mark}e0"
    bring(own_core, sources, [late], [1])
    ids = {Identifier("email", f"{mark}e0"), Identifier("user_id", f"{mark}u0")}
    [person] = [one for one in stored(own_core, mark) if ids <= one]
    assert Identifier("anonymous_id", f"{mark}ta2") in person


def test_the_reason_for_which_somebody_is_blocked_follows_the_rules(own_core, sources, django):
    mark = begin(own_core)
    people = [message(userId=f"{mark}u{number}", anonymousId=f"{mark}kiosk") for number in range(12)]
    own_core.apply(*people, source=sources[0])
    reasons = "SELECT DISTINCT refused FROM cdp_edge"
    assert own_core.rows(reasons) == [{"refused": "shared_identifier"}]
    publish(changed(anonymous_id=[f"{mark}kiosk"]))
    assert own_core.rows(reasons) == [{"refused": "blocked_value"}]
    publish(changed())
    assert own_core.rows(reasons) == [{"refused": "shared_identifier"}]
    assert len(stored(own_core, mark)) == 13


def test_an_unmerge_of_people_who_are_being_processed_says_so(own_core, sources, django, monkeypatch):
    mark = begin(own_core)
    own_core.apply(message(userId=f"{mark}u", anonymousId=f"{mark}a"), source=sources[0])
    person = own_core.profile(f"user_id:{mark}u")["id"]
    monkeypatch.setattr(unmerging, "LOCK_SECONDS", 0.2)
    with own_core.connection.transaction():
        own_core.connection.execute("SELECT 1 FROM customer_profiles WHERE id = %s FOR UPDATE", [person])
        with pytest.raises(unmerging.Busy):
            unmerging.unmerge(profile_id=person, identifiers=[Identifier("user_id", f"{mark}u")], author="test")
