"""Given traits by merge policy, through the core: unions, counters, priorities, questions and consent."""

import pytest

from cdp.processing import registers
from cdp.processing.consent import granted
from tests.platform import message
from tests.states import shown


def give(core, trait, policy, sources=()):
    """Give a trait a merge policy, or another one."""
    core.connection.execute(
        "INSERT INTO cdp_mergepolicy (trait, policy, sources, version) VALUES (%s, %s, %s, 1) ON CONFLICT (trait)"
        " DO UPDATE SET policy = excluded.policy, sources = excluded.sources, version = cdp_mergepolicy.version + 1",
        [trait, policy, list(sources)],
    )
    core.connection.execute("UPDATE cdp_definitionversion SET version = version + 1")


def identify(core, traits, *, source=1, minute=0, **ids):
    """Send an identify call of some minute; return the flags of its event."""
    ids = ids or {"userId": "u1"}
    core.apply(message("identify", traits=traits, timestamp=f"2026-01-01T00:{minute:02}:00Z", **ids), source=source)
    return core.events()[-1]["flags"]


def traits(core, identifier="user_id:u1"):
    return core.profile(identifier)["traits"]


def of_anchors(core, *identifiers):
    """Return what the states of these identifiers alone come to, as a split would leave them."""
    state = {}
    for one in identifiers:
        namespace, _, value = one.partition(":")
        [row] = core.rows(
            "SELECT registers::text AS held FROM cdp_identifier WHERE namespace = %s AND value = %s", namespace, value
        )
        state = registers.combine(state, registers.load(row["held"]))
    return shown(state)


def test_a_union_holds_what_two_sources_added_until_it_is_removed(core):
    give(core, "tags", "union")
    other = core.source("server")
    assert identify(core, {"tags": ["vip", "new"]}, minute=1) == []
    identify(core, {"tags": {"$union": ["gold"]}}, source=other, minute=2)
    assert traits(core)["tags"] == ["gold", "new", "vip"]
    identify(core, {"tags": {"$remove": ["new", "gold"], "$union": ["old"]}}, minute=3)
    assert traits(core)["tags"] == ["old", "vip"]
    # Late, but said before it was removed; and said after.
    identify(core, {"tags": ["new"]}, source=other, minute=2)
    identify(core, {"tags": ["gold"]}, source=other, minute=4)
    assert traits(core)["tags"] == ["gold", "old", "vip"]
    identify(core, {"tags": None}, minute=5)
    assert "tags" not in traits(core)


def test_a_union_of_two_profiles_that_merge_is_of_both_and_a_split_gives_each_its_own(core):
    give(core, "tags", "union")
    identify(core, {"tags": ["cookie"]}, anonymousId="a1", minute=1)
    identify(core, {"tags": ["account"]}, userId="u1", minute=2)
    assert traits(core, "anonymous_id:a1")["tags"] == ["cookie"]
    identify(core, {}, userId="u1", anonymousId="a1", minute=3)
    assert traits(core)["tags"] == traits(core, "anonymous_id:a1")["tags"] == ["account", "cookie"]
    assert of_anchors(core, "anonymous_id:a1") == {"tags": ["cookie"]}
    assert of_anchors(core, "user_id:u1") == {"tags": ["account"]}
    # A removal on one identifier counts for what the other added.
    identify(core, {"tags": {"$remove": ["cookie"]}}, minute=4)
    assert traits(core)["tags"] == ["account"]


def test_a_counter_adds_up_over_anchors_batches_and_a_merge(core):
    give(core, "points", "counter")
    other = core.source("server")
    add = [message("identify", anonymousId="a1", traits={"points": {"$add": 0.1}}) for _ in range(3)]
    core.apply(*add)
    core.apply(*add)
    assert traits(core, "anonymous_id:a1")["points"] == 0.3
    identify(core, {"points": {"$add": -2}}, userId="u1")
    identify(core, {"points": {"$add": 5}}, userId="u1", source=other)
    identify(core, {}, userId="u1", anonymousId="a1")
    assert core.profile("user_id:u1")["id"] == core.profile("anonymous_id:a1")["id"]
    assert traits(core)["points"] == 3.3
    # Adding goes on after the merge, and each identifier still has its own.
    core.apply(*(message("identify", userId="u1", anonymousId="a1", traits={"points": {"$add": 1}}) for _ in range(2)))
    identify(core, {"points": {"$add": 10}}, anonymousId="a1")
    assert traits(core)["points"] == 15.3
    assert of_anchors(core, "anonymous_id:a1") == {"points": 10.3}
    assert of_anchors(core, "user_id:u1") == {"points": 5}
    assert of_anchors(core, "user_id:u1", "anonymous_id:a1") == {"points": 15.3}


def test_a_batch_that_merges_counts_once_for_each_anchor(core):
    give(core, "points", "counter")
    identify(core, {"points": {"$add": 1}}, anonymousId="a1")
    identify(core, {"points": {"$add": 1}}, userId="u1")
    core.apply(
        message("identify", anonymousId="a1", traits={"points": {"$add": 10}}),
        message("identify", userId="u1", anonymousId="a1", traits={"points": {"$add": 100}}),
        message("identify", anonymousId="a1", traits={"points": {"$add": 1000}}),
    )
    assert traits(core)["points"] == 1112


def test_browsers_count_nothing_unless_their_rules_say_so(core):
    give(core, "points", "counter")
    browser = core.source("browser")
    trusted = core.source("browser", {"refused_policies": []})
    assert identify(core, {"points": {"$add": 5}, "city": "Bonn"}, source=browser) == ["policy_mismatch"]
    assert traits(core) == {"city": "Bonn"}
    assert identify(core, {"points": {"$add": 5}}, source=trusted) == []
    assert traits(core) == {"city": "Bonn", "points": 5}


def test_the_most_trusted_source_counts_then_the_newest(core):
    crm, shop = core.source("server"), core.source("server")
    give(core, "city", "source_priority", [crm, shop])
    for minute, (source, city) in enumerate([(1, "Rome"), (shop, "Bonn"), (crm, "Kiel"), (shop, "Ulm"), (1, "Oslo")]):
        identify(core, {"city": city}, source=source, minute=minute)
    assert traits(core) == {"city": "Kiel"}
    identify(core, {"city": "Kassel"}, source=crm, minute=10)
    assert traits(core) == {"city": "Kassel"}
    identify(core, {"city": "Jena"}, source=crm, minute=9)
    assert traits(core) == {"city": "Kassel"}


def test_sources_that_disagree_are_kept_beside_each_other(core):
    give(core, "plan", "ask")
    other = core.source("server")
    identify(core, {"plan": "pro"}, minute=1)
    identify(core, {"plan": "pro"}, source=other, minute=2)
    held = registers.load(core.rows("SELECT registers::text AS held FROM customer_profiles")[0]["held"])
    assert registers.conflicts(held) == {}
    identify(core, {"plan": "basic"}, minute=3)
    held = registers.load(core.rows("SELECT registers::text AS held FROM customer_profiles")[0]["held"])
    [(trait, values)] = registers.conflicts(held).items()
    assert (trait, [(bytes(one.value), one.source) for one in values]) == (
        "plan", [(b'"basic"', "1"), (b'"pro"', str(other))],
    )  # fmt: skip
    assert traits(core) == {"plan": "basic"}
    identify(core, {"plan": None}, minute=4)
    assert traits(core) == {"plan": "pro"}


MISFITS = {
    "counter": [5, "5", None, {"$add": "5"}, {"$add": True}, {"$add": 1, "x": 2}, {"$add": 1e99}, []],
    "union": ["vip", 5, [5], [""], {"$add": 1}, {}, {"$union": "a"}, {"$remove": {"a": {"1": [9e18, "m"]}}},
              {"$remove": {"a": 5}}],
    "ask": [{"$value": 1, "$observed": 5}, {"$value": 1, "$observed": {"1": [9e18, "m"]}}],
    "consent": [True, ["email"], {"email": "yes"}, {"email": {}}, {"email": {"topics": []}},
                {"email": {"topics": {"": False}}}],
}  # fmt: skip


@pytest.mark.parametrize(("trait", "value"), [(trait, one) for trait, values in MISFITS.items() for one in values])
def test_what_does_not_fit_is_left_out_and_flagged_and_the_rest_is_kept(core, trait, value):
    for policy in ("counter", "union", "ask"):
        give(core, policy, policy)
    assert identify(core, {trait: value, "city": "Bonn"}) == ["policy_mismatch"]
    profile = core.profile("user_id:u1")
    assert (profile["traits"], profile["consent"], core.letters()) == ({"city": "Bonn"}, {}, [])
    assert trait in core.events()[0]["properties"]


def test_a_changed_policy_stands_above_what_the_one_before_kept(core):
    identify(core, {"tags": ["old"]}, minute=9)
    give(core, "tags", "union")
    assert traits(core) == {"tags": ["old"]}
    identify(core, {"tags": ["vip"]}, minute=1)
    assert traits(core) == {"tags": ["vip"]}
    give(core, "tags", "newest")
    identify(core, {"tags": "plain"}, minute=0)
    assert traits(core) == {"tags": "plain"}


PROOF = {"form": "newsletter", "ip": "10.1.2.3"}


def consent(core, said, **fields):
    flags = identify(core, {"consent": said}, **fields)
    return flags, core.profile("user_id:u1")["consent"]


def test_consent_is_by_purpose_and_topic_with_its_evidence(core):
    flags, held = consent(
        core,
        {"email": {"granted": True, "evidence": PROOF, "topics": {"offers": {"granted": False}}}, "sms": False},
        minute=1,
    )
    assert flags == []
    assert held == {
        "email": {
            "granted": True, "at": "2026-01-01T00:01:00Z", "evidence": PROOF,
            "topics": {"offers": {"granted": False, "at": "2026-01-01T00:01:00Z"}},
        },
        "sms": {"granted": False, "at": "2026-01-01T00:01:00Z", "topics": {}},
    }  # fmt: skip
    asked = [("email", ""), ("email", "news"), ("email", "offers"), ("sms", ""), ("phone", "")]
    assert [granted(held, *one) for one in asked] == [True, True, False, False, False]
    assert core.profile("user_id:u1")["traits"] == {}


def test_only_a_strictly_later_opt_in_with_evidence_grants(core):
    opt_in = {"email": {"granted": True, "evidence": PROOF}}
    assert granted(consent(core, opt_in, minute=5)[1], "email")
    assert not granted(consent(core, {"email": False}, minute=5)[1], "email")
    assert consent(core, {"email": True}, minute=6)[0] == ["consent_without_evidence"]
    assert consent(core, {"email": {"granted": True, "evidence": {}}}, minute=6)[0] == ["consent_without_evidence"]
    assert not granted(consent(core, opt_in, minute=4)[1], "email")
    assert granted(consent(core, opt_in, minute=7)[1], "email")
    # An opt-out on another identifier of the same person counts.
    identify(core, {"consent": {"email": False}}, anonymousId="a1", minute=8)
    identify(core, {}, anonymousId="a1", userId="u1", minute=9)
    assert not granted(core.profile("user_id:u1")["consent"], "email")


def test_an_opt_in_of_a_clock_that_is_ahead_does_not_outlast_an_opt_out(core):
    opt_in = {"consent": {"email": {"granted": True, "evidence": PROOF}}}
    core.apply(message("identify", userId="u1", traits=opt_in, timestamp="2099-01-01T00:00:00Z"))
    assert granted(core.profile("user_id:u1")["consent"], "email")
    core.apply(message("identify", userId="u1", traits={"consent": {"email": False}}))
    assert not granted(core.profile("user_id:u1")["consent"], "email")


def test_a_browser_sets_no_consent(core):
    assert consent(core, {"email": {"granted": True, "evidence": PROOF}}, source=core.source("browser"))[1] == {}


def test_the_document_shows_consent_beside_the_traits(core):
    applied = core.apply(message("identify", userId="u1", traits={"plan": "pro", "consent": {"sms": False}}))
    [(_, version, body)] = applied.documents
    assert (version, b'"traits":{"plan":"pro"}' in body, b'"consent":{"sms":{"granted":false' in body) == (
        1,
        True,
        True,
    )
