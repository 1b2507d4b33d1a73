"""What the rules make of evidence, case by case."""

from cdp.processing import clusters
from cdp.processing.clusters import DEFAULT, Evidence, Link, Namespace, Ruleset, derive, paired
from cdp.processing.identity import Identifier


def link(one, other, at=0, source_class=0):
    ends = (Identifier(*end.split(":")) for end in (one, other))
    return Link(*paired(*ends), Evidence(source_class, at, f"m{at}"), 1)


def named(found):
    return sorted(sorted(map(str, one)) for one in found.clusters)


def test_the_earlier_of_two_claims_to_a_cookie_counts():
    links = [link("user_id:late", "anonymous_id:c", at=2), link("user_id:early", "anonymous_id:c", at=1)]
    assert named(derive((), links, DEFAULT)) == [["anonymous_id:c", "user_id:early"], ["user_id:late"]]


def test_a_server_goes_before_a_browser_that_was_there_first():
    links = [link("user_id:b", "anonymous_id:c", at=1, source_class=1), link("user_id:s", "anonymous_id:c", at=9)]
    assert named(derive((), links, DEFAULT)) == [["anonymous_id:c", "user_id:s"], ["user_id:b"]]


def test_of_one_event_the_identifier_of_higher_priority_joins_first():
    rules = Ruleset(1, DEFAULT.namespaces | {"*": Namespace(limit=1, priority=50), "email": Namespace(1, 10)})
    links = [link("email:x", "anonymous_id:c", at=1), link("user_id:u", "anonymous_id:c", at=1)]
    assert sorted(map(len, derive((), links, rules).clusters)) == [3]


def test_values_of_two_namespaces_that_one_person_has_share_nothing():
    rules = Ruleset(1, DEFAULT.namespaces | {"crm": Namespace(1, 5), "email": Namespace(5, 10, frozenset(), 1)})
    links = [link("user_id:u", "email:e", at=1), link("crm:7", "email:e", at=2)]
    assert clusters.shared(links, rules) == set()
    assert len(derive((), links, rules).clusters) == 1
    assert clusters.shared([*links, link("user_id:other", "email:e", at=3)], rules) == {Identifier("email", "e")}
