"""What users of other platforms complain of in their profiles: each a test of ours, named for it."""

from contextlib import closing

import pytest

from cdp import lookup, timeline, unmerging
from cdp.processing.identity import Identifier
from cdp.processing.pipeline import Pipeline, again
from cdp.processing.store import Raced
from tests.conftest import pointed_at
from tests.platform import Core, message


@pytest.fixture
def django(core, django_db_setup, django_db_blocker):
    """Point Django at the database of the core."""
    with pointed_at(core.url, django_db_blocker):
        yield


def same(core, *identifiers):
    return len({core.profile(one)["id"] for one in identifiers}) == 1


def count(core, identifier):
    return core.profile(identifier)["computed_traits"].get("event_count", 0)


CONSTANTS = [
    "null",
    "undefined",
    "anonymous",
    "0",
    "'guest'",
    "NaN",
    "[object Object]",
    "00000000-0000-0000-0000-000000000000",
]


def test_constants_sent_at_log_out_make_no_giant_person(core):
    for number, constant in enumerate(CONSTANTS):
        core.apply(
            message(userId=constant, anonymousId=f"a{number}"), message(userId=f"u{number}", anonymousId=constant)
        )
    assert len({core.profile(f"anonymous_id:a{number}")["id"] for number in range(len(CONSTANTS))}) == len(CONSTANTS)
    assert len({core.profile(f"user_id:u{number}")["id"] for number in range(len(CONSTANTS))}) == len(CONSTANTS)


def test_a_split_takes_what_was_asked_for_and_blanks_nobody(core, django):
    core.apply(message("identify", userId="u1", traits={"plan": "gold"}), message(userId="u1", anonymousId="mine"))
    core.apply(message("identify", anonymousId="other", traits={"city": "Ulm"}), message(anonymousId="other"))
    core.apply(message(userId="u1", anonymousId="other"))
    joined = core.profile("user_id:u1")
    assert (joined["traits"], count(core, "user_id:u1")) == ({"plan": "gold", "city": "Ulm"}, 5)
    planned = unmerging.plan(profile_id=joined["id"], identifiers=[Identifier("anonymous_id", "other")])
    assert core.profile("user_id:u1") == joined
    done = unmerging.unmerge(
        profile_id=joined["id"], identifiers=[Identifier("anonymous_id", "other")], author="admin:ann"
    )
    assert [(one.traits, one.events) for one in planned.parts] == [(one.traits, one.events) for one in done.parts]
    stays, gone = core.profile("user_id:u1"), core.profile("anonymous_id:other")
    assert (stays["id"], stays["traits"], count(core, "user_id:u1")) == (joined["id"], {"plan": "gold"}, 3)
    assert (gone["traits"], count(core, "anonymous_id:other")) == ({"city": "Ulm"}, 2)
    assert same(core, "user_id:u1", "anonymous_id:mine")
    # The next call with both does not undo it, until a person lifts it.
    core.pipeline.forget()
    core.apply(message(userId="u1", anonymousId="other"))
    assert not same(core, "user_id:u1", "anonymous_id:other")
    unmerging.lift(done.decision_id, author="admin:ann")
    again_one = core.profile("user_id:u1")
    assert (again_one["traits"], count(core, "anonymous_id:other")) == ({"plan": "gold", "city": "Ulm"}, 6)


def test_history_and_traits_follow_the_identifiers_of_a_split(core, django):
    core.apply(
        message(userId="u1", event="A"), message(anonymousId="a1", event="B"), message(userId="u1", anonymousId="a1")
    )
    person = core.profile("user_id:u1")["id"]
    assert len(timeline.of_profile(person, limit=10)) == 3
    done = unmerging.unmerge(profile_id=person, identifiers=[Identifier("anonymous_id", "a1")], author="x")
    names = [[row["name"] for row in timeline.of_profile(one.profile_id, limit=10)] for one in done.parts]
    assert [sorted(filter(None, one)) for one in names] == [["A", "Clicked"], ["B"]]
    assert [row["event_type"] for row in timeline.of_profile(done.parts[-1].profile_id, limit=1)] == ["unmerge"]


def test_a_merge_that_races_an_update_loses_no_property(core):
    core.apply(
        message("identify", userId="u1", traits={"a": 1}), message("identify", anonymousId="a1", traits={"b": 2})
    )
    late = core.arrivals(message("identify", anonymousId="a1", traits={"c": 3}))
    other = Pipeline()
    with core.writer.transaction():
        other.apply(core.writer, core.arrivals(message(userId="u1", anonymousId="a1")))
    # What the first processor remembers of a1 is from before the merge.
    with pytest.raises(Raced):
        core.take(late)
    core.pipeline.forget()
    core.take(again(late))
    assert core.profile("user_id:u1")["traits"] == {"a": 1, "b": 2, "c": 3}


def test_a_merge_keeps_every_trait_and_event_of_both_sides(core):
    core.apply(message("identify", userId="u1", traits={"plan": "gold"}), message(userId="u1"), message(userId="u1"))
    core.apply(message("identify", anonymousId="a1", traits={"city": "Ulm"}), message(anonymousId="a1"))
    core.apply(message(userId="u1", anonymousId="a1"))
    assert core.profile("anonymous_id:a1")["traits"] == {"plan": "gold", "city": "Ulm"}
    assert count(core, "user_id:u1") == 6
    assert len(core.events()) == 6


def test_old_profile_ids_resolve_for_ever(core, django):
    core.apply(message(anonymousId="a1"), message(userId="u1"), message(userId="u2"))
    old = core.profile("anonymous_id:a1")["id"]
    core.apply(message(userId="u1", anonymousId="a1"))
    now = core.profile("user_id:u1")["id"]
    assert lookup.survivor(old) == now != old
    done = unmerging.unmerge(profile_id=now, identifiers=[Identifier("anonymous_id", "a1")], author="x")
    # Whoever was taken out gets the profile back that they had first.
    assert lookup.survivor(old) == old == done.parts[-1].profile_id
    unmerging.lift(done.decision_id, author="x")
    assert lookup.survivor(old) == now


def test_one_hot_identifier_neither_merges_its_people_nor_stalls_the_rest(core):
    """A kiosk's cookie with 10,000 people."""
    for start in range(0, 10_000, 1000):
        core.apply(*(message(userId=f"u{start + number}", anonymousId="kiosk") for number in range(1000)))
    people = core.rows("SELECT count(*) AS n FROM customer_profiles WHERE merged_into_id IS NULL")[0]["n"]
    assert people == 10_001
    assert core.profile("anonymous_id:kiosk")["standing"] == 2
    assert core.profile("user_id:u9999")["identity_graph"] == {"user_id": ["u9999"]}
    # While somebody holds the kiosk's profile, people go on.
    other = Core(core.url, has_source=True)
    with core.writer.transaction():
        core.writer.execute("SELECT 1 FROM customer_profiles WHERE standing = 2 FOR UPDATE")
        other.writer.execute("SET lock_timeout = '2s'")
        other.apply(message(userId="u1", anonymousId="kiosk"), message(userId="new", anonymousId="kiosk"), source=1)
    other.close()
    assert not same(core, "user_id:u1", "user_id:new")
    # One decision says so, and not ten thousand.
    refusals = core.rows("SELECT reason, profile_id FROM cdp_identitydecision WHERE kind = 'refusal'")
    assert [row["reason"] for row in refusals] == ["shared_identifier"]
    assert refusals[0]["profile_id"] == core.profile("anonymous_id:kiosk")["id"]


def test_people_who_hang_together_by_shared_devices_stall_only_their_neighbours(core):
    """A thousand people, each of whom shares a device with the next one."""
    shop = core.source("browser", {"refused_namespaces": []})
    for start in range(0, 1000, 100):
        numbers = range(start, start + 100)
        core.apply(*(message(userId=f"u{one:04}", anonymousId=f"d{one:04}") for one in numbers), source=shop)
        core.apply(*(message(userId=f"u{one + 1:04}", anonymousId=f"d{one:04}") for one in numbers), source=shop)
    assert core.rows("SELECT count(*) AS n FROM customer_profiles WHERE standing = 1") == [{"n": 1001}]
    own = [core.profile(f"user_id:u{one:04}")["id"] for one in range(498, 504)]
    # While somebody holds all the others, a server says whose one device is: nobody waits.
    with closing(Core(core.url, has_source=True)) as other, core.writer.transaction():
        core.writer.execute("SELECT FROM customer_profiles WHERE id <> ALL(%s) FOR UPDATE", [own])
        other.writer.execute("SET lock_timeout = '2s'")
        other.apply(message(userId="u0501", anonymousId="d0500"))
    assert same(core, "user_id:u0501", "anonymous_id:d0500", "anonymous_id:d0501")
    assert core.profile("user_id:u0500")["identity_graph"] == {"user_id": ["u0500"]}


def test_a_browser_key_that_backdates_an_edge_wins_nothing(core):
    shop = core.source("browser", {"refused_namespaces": []})
    core.apply(message(userId="victim", anonymousId="cookie"), source=shop)
    core.apply(message("identify", userId="victim", anonymousId="cookie", traits={"plan": "gold"}), source=shop)
    # A second account claims the cookie, long before: its call is no older for that.
    core.apply(message(userId="thief", anonymousId="cookie", timestamp="2001-01-01T00:00:00Z"), source=shop)
    assert same(core, "user_id:victim", "anonymous_id:cookie")
    assert core.profile("user_id:thief")["identity_graph"] == {"user_id": ["thief"]}
    assert core.profile("user_id:thief")["traits"] == {}


def test_a_servers_word_goes_before_a_browsers_whenever_it_comes(core):
    shop = core.source("browser", {"refused_namespaces": []})
    core.apply(message(userId="guess", anonymousId="cookie"), source=shop)
    assert same(core, "user_id:guess", "anonymous_id:cookie")
    core.apply(message(userId="owner", anonymousId="cookie"))
    assert same(core, "user_id:owner", "anonymous_id:cookie")
    assert not same(core, "user_id:guess", "anonymous_id:cookie")
    kinds = core.rows("SELECT kind, reason FROM cdp_identitydecision ORDER BY id")
    assert ("refusal", "limit_user_id") in {(row["kind"], row["reason"]) for row in kinds}
