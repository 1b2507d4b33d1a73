"""Who becomes one person with whom, and who does not."""

from tests.platform import message


def same(core, left, right):
    return core.profile(left)["id"] == core.profile(right)["id"]


def decisions(core):
    return [(row["kind"], row["reason"]) for row in core.rows("SELECT * FROM cdp_identitydecision ORDER BY id")]


def test_an_anonymous_profile_is_joined_to_the_user_it_turns_out_to_be(core):
    core.apply(message("page", anonymousId="a1"))
    old = core.profile("anonymous_id:a1")["id"]
    core.apply(message(userId="u1"))
    core.apply(message("identify", userId="u1", anonymousId="a1", traits={"name": "Ann"}))
    profile = core.profile("user_id:u1")
    assert same(core, "user_id:u1", "anonymous_id:a1")
    assert profile["computed_traits"]["event_count"] == 3
    assert profile["identity_graph"] == {"user_id": ["u1"], "anonymous_id": ["a1"]}
    assert decisions(core) == [("merge", "identify")]
    pointer = core.rows("SELECT merged_into_id FROM customer_profiles WHERE id = %s", old)
    assert pointer[0]["merged_into_id"] == profile["id"]


def test_alias_joins_a_previous_id(core):
    core.apply(message("page", anonymousId="old"), message(userId="u1"))
    core.apply(message("alias", userId="u1", previousId="old"))
    assert same(core, "user_id:u1", "anonymous_id:old")
    assert core.profile("user_id:u1")["computed_traits"]["event_count"] == 3


def test_two_identified_people_never_merge_by_identify(core):
    core.apply(message(userId="u1", anonymousId="a1"))
    core.apply(message("identify", userId="u2", anonymousId="a1"))
    assert not same(core, "user_id:u1", "user_id:u2")
    assert same(core, "user_id:u1", "anonymous_id:a1")
    assert decisions(core) == [("refusal", "limit_user_id")]


def test_two_identified_people_never_merge_by_alias(core):
    core.apply(message(userId="u1"), message(userId="u2"))
    core.apply(message("alias", userId="u1", previousId="u2"))
    assert not same(core, "user_id:u1", "user_id:u2")
    assert decisions(core) == [("refusal", "two_identified_people")]
    # Whatever came first, an alias joins the anonymous id of that name alone.
    assert same(core, "user_id:u1", "anonymous_id:u2")


def test_a_refusal_is_recorded_once_however_often_it_comes(core):
    core.apply(message(userId="u1", anonymousId="kiosk"))
    for _ in range(3):
        core.apply(message(userId="u2", anonymousId="kiosk"), message(userId="u2", anonymousId="kiosk"))
    assert decisions(core) == [("refusal", "limit_user_id")]
    assert core.profile("user_id:u2")["computed_traits"]["event_count"] == 6


def test_one_email_joins_what_has_no_user_id_and_keeps_users_apart(core):
    core.apply(message("identify", anonymousId="a1", traits={"email": "x@example.com"}))
    core.apply(message("identify", userId="u1", traits={"email": "X@example.com"}))
    assert same(core, "user_id:u1", "anonymous_id:a1")
    core.apply(message("identify", userId="u2", traits={"email": "x@example.com"}))
    assert not same(core, "user_id:u1", "user_id:u2")
    assert core.profile("user_id:u2")["identity_graph"] == {"user_id": ["u2"]}


def test_a_sixth_anonymous_id_is_left_out(core):
    for number in range(6):
        core.apply(message("identify", userId="u1", anonymousId=f"a{number}"))
    assert core.profile("user_id:u1")["identity_graph"]["anonymous_id"] == ["a0", "a1", "a2", "a3", "a4"]
    # It is somebody all the same: which one is left out does not hang on who came first.
    assert core.profile("anonymous_id:a5")["identity_graph"] == {"anonymous_id": ["a5"]}
    assert core.profile("user_id:u1")["computed_traits"]["event_count"] == 6


def test_external_ids_identify(core):
    core.apply(message("page", context={"externalIds": [{"id": "c-7", "type": "crm_id"}]}))
    core.apply(message("page", userId="u1", context={"externalIds": [{"id": "c-7", "type": "crm_id"}]}))
    assert same(core, "crm_id:c-7", "user_id:u1")


def test_a_constant_that_means_nobody_makes_no_giant_person(core):
    for number in range(5):
        core.apply(message("identify", userId="anonymous", anonymousId=f"a{number}"))
        core.apply(message("identify", userId='"NULL"', anonymousId=f"b{number}"))
    assert core.profile("user_id:anonymous") is None
    assert len(core.rows("SELECT id FROM customer_profiles")) == 10


def test_joins_inside_one_batch_count_everything_once(core):
    core.apply(
        message("page", anonymousId="a1"),
        message("page", anonymousId="a2"),
        message(userId="u1"),
        message("identify", userId="u1", anonymousId="a1"),
        message("identify", userId="u1", anonymousId="a2"),
        message("page", anonymousId="a2"),
    )
    assert core.profile("user_id:u1")["computed_traits"]["event_count"] == 6
    assert len(core.rows("SELECT id FROM customer_profiles")) == 1
    assert {row["profile_id"] for row in core.events()} == {core.profile("user_id:u1")["id"]}


def test_a_merge_keeps_the_traits_of_both_sides(core):
    core.apply(
        message("identify", anonymousId="a1", traits={"city": "Bonn", "plan": "free"}, timestamp="2026-01-01T00:00:00Z")
    )
    core.apply(message("identify", userId="u1", traits={"plan": "pro"}, timestamp="2026-01-02T00:00:00Z"))
    core.apply(message("identify", userId="u1", anonymousId="a1", timestamp="2026-01-03T00:00:00Z"))
    assert core.profile("user_id:u1")["traits"] == {"city": "Bonn", "plan": "pro"}


def test_edges_keep_the_strongest_evidence(core):
    browser = core.source("browser")
    core.apply(
        message(userId="u1", anonymousId="a1", timestamp="2026-01-01T00:00:00Z", messageId="weak"), source=browser
    )
    core.apply(message("identify", userId="u1", anonymousId="a9", timestamp="2026-01-02T00:00:00Z", messageId="other"))
    edges = core.rows("SELECT message_id, source_class, refused FROM cdp_edge ORDER BY id")
    assert [tuple(edge.values()) for edge in edges] == [("weak", 1, ""), ("other", 0, "")]


def test_a_merge_brings_along_identifiers_that_the_batch_does_not_name(core):
    core.apply(message("page", anonymousId="a1"), message("alias", userId="u1", previousId="a1"))
    core.apply(message("identify", anonymousId="b1", traits={"email": "x@example.com"}))
    core.apply(message("page", anonymousId="b2", context={"traits": {"email": "x@example.com"}}))
    applied = core.apply(message("identify", userId="u1", traits={"email": "x@example.com"}))
    assert same(core, "user_id:u1", "anonymous_id:b2")
    assert sorted(str(one) for one, _ in applied.moved) == ["anonymous_id:b1", "anonymous_id:b2"]
    assert core.letters() == []
    core.apply(message("page", anonymousId="b1"))
    assert core.profile("user_id:u1")["computed_traits"]["event_count"] == 6


def test_events_of_a_source_that_is_gone_stop_nothing(core):
    core.apply(message(userId="u1", anonymousId="a1"), message("trakc", userId="u1"), source=4711)
    assert core.letters() == ["unknown_type"]
    assert core.profile("user_id:u1")["computed_traits"]["event_count"] == 1
