"""A replay of the events alone makes what PostgreSQL holds, and finds what is not so."""

import json
from contextlib import closing
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.utils import timezone

from cdp import archive, erasing, identity_rules, partitions, replay
from cdp.erasing import Person
from cdp.models import Erasure, Identifier
from cdp.replay import Filter
from tests.histories import random_histories
from tests.platform import Core, message
from tests.playing import decide, define, play


@pytest.fixture
def core(own_database):
    """Return the core over the database that Django looks at."""
    with closing(Core(own_database)) as core:
        yield core


def found(report):
    return {kind: number for kind, number in report.differences.items() if number}


@random_histories(1, 2, 3, 4)
@pytest.mark.parametrize("per_pass", [7, 200_000])
def test_a_random_history_comes_out_as_it_is_held(core, seed, per_pass):
    define(core)
    play(core, seed=seed)
    report = replay.verify(per_pass=per_pass)
    assert report.examples == []
    assert found(report) == {}
    assert report.events == len(core.events())
    assert (
        report.profiles == core.rows("SELECT count(*) FROM customer_profiles WHERE merged_into_id IS NULL")[0]["count"]
    )
    assert report.identifiers == core.rows("SELECT count(*) FROM cdp_identifier")[0]["count"]
    assert report.not_comparable == 0


@random_histories(31, 32, 33, 34)
def test_a_history_with_edits_and_unmerges_comes_out_as_it_is_held(core, seed):
    define(core)
    play(core, seed=seed, events=120, people=6)
    decide(core, seed=seed)
    play(core, seed=seed + 100, events=120, people=6)
    decide(core, seed=seed + 100)
    assert core.rows("SELECT count(*) FROM cdp_unmergeside")[0]["count"] > 0
    report = replay.verify()
    assert report.examples == []
    assert report.outdated == 0


RULES = (
    {"user_id": {"limit": 1, "priority": 0}, "anonymous_id": {"limit": 1, "priority": 90}, "*": {"limit": 2}},
    {"user_id": {"limit": 2, "priority": 0}, "email": {"limit": 1, "priority": 5, "blocked": ["p1@example.com"]},
     "anonymous_id": {"limit": 3, "priority": 90, "shared_after": 2}, "*": {"limit": 5}},
)  # fmt: skip


@pytest.mark.parametrize("rules", RULES)
@random_histories(41, 42, 43)
def test_a_history_with_changed_rules_comes_out_as_it_is_held(core, seed, rules, monkeypatch):
    monkeypatch.setattr(identity_rules, "_send", lambda: None)
    play(core, seed=seed, events=120, people=5)
    decide(core, seed=seed)
    identity_rules.publish(identity_rules.draft(rules, author="key:test").pk, author="key:test")
    identity_rules.apply()
    core.pipeline.forget()
    play(core, seed=seed + 100, events=120, people=5)
    assert replay.verify().examples == []


def test_traits_that_another_policy_kept_are_told_apart(couple):
    couple.connection.execute(
        "INSERT INTO cdp_mergepolicy (trait, policy, sources, version) VALUES ('name', 'ask', '{}', 1)"
    )
    report = replay.verify()
    assert (report.examples, report.outdated) == ([], 2)


@random_histories(11, 12, 13)
def test_a_few_people_who_share_everything_come_out_as_they_are_held(core, seed):
    play(core, seed=seed, events=150, people=2)
    assert replay.verify().examples == []


def test_a_kiosk_comes_out_as_it_is_held(core):
    for person in range(30):
        core.apply(message("identify", userId=f"u{person}", anonymousId="kiosk", traits={"seat": person}))
    core.apply(message(anonymousId="kiosk"))
    report = replay.verify()
    assert report.examples == []
    assert (report.links, report.profiles) == (30, 31)


def damage(core, text, *values):
    core.connection.execute(text, values)


def kinds(core):
    """Return the kinds of differences with the places they are told of."""
    return sorted({(one.kind, one.where) for one in replay.verify().examples})


@pytest.fixture
def couple(core):
    """Return the core with a history of two people; the first profile's id stands in `ann`."""
    core.apply(
        message("identify", userId="ann", anonymousId="a", traits={"name": "Ann"}),
        message("identify", userId="bob", anonymousId="b", traits={"name": "Bob"}),
        message(anonymousId="a"),
        message(userId="ann"),
    )
    core.ann, core.bob = core.profile("user_id:ann")["id"], core.profile("user_id:bob")["id"]
    return core


def test_a_lost_event_is_found(couple):
    damage(couple, "DELETE FROM event_stream WHERE event_type = 'track' AND identifiers @> '[[\"user_id\", \"ann\"]]'")
    assert kinds(couple) == [("trait states", "user_id:ann")]


def test_a_lost_link_and_identifier_are_found(couple):
    damage(
        couple, "DELETE FROM event_stream WHERE event_type = 'identify' AND identifiers @> '[[\"user_id\", \"bob\"]]'"
    )
    assert kinds(couple) == [
        ("clusters", f"profile {couple.bob}"),
        ("links", "anonymous_id:b ~ user_id:bob"),
        ("registers", "user_id:bob"),
        ("superfluous identifiers", "anonymous_id:b"),
        ("superfluous identifiers", "user_id:bob"),
        ("trait states", "user_id:bob"),
    ]


def test_a_moved_identifier_is_found(couple):
    damage(couple, "UPDATE cdp_identifier SET profile_id = %s WHERE value = 'b'", couple.ann)
    both = ", ".join(sorted(f"profile {one}" for one in (couple.ann, couple.bob)))
    assert {where for kind, where in kinds(couple) if kind == "clusters"} == {f"profile {couple.ann}", both}


def test_a_lost_identifier_is_found(couple):
    damage(couple, "DELETE FROM cdp_edge WHERE source_class = 0")
    damage(couple, "DELETE FROM cdp_identifier WHERE value = 'b'")
    assert ("missing identifiers", "anonymous_id:b") in kinds(couple)


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("trait_states", '{"1.1": 7}', "trait states"),
        ("registers", "{}", "registers"),
        ("traits", '{"name": "Anne"}', "traits"),
        ("consent", '{"email": {"granted": true, "topics": {}}}', "consent"),
        ("computed_traits", "{}", "computed traits"),
        ("identity_graph", '{"user_id": ["ann"]}', "identity graphs"),
    ],
)
def test_a_changed_column_of_a_profile_is_found(couple, column, value, kind):
    damage(couple, f"UPDATE customer_profiles SET {column} = %s WHERE id = %s", value, couple.ann)
    assert kinds(couple) == [(kind, f"profile {couple.ann}")]


@pytest.mark.parametrize(("column", "kind"), [("trait_states", "trait states"), ("registers", "registers")])
def test_a_changed_state_of_an_identifier_is_found(couple, column, kind):
    damage(couple, f"UPDATE cdp_identifier SET {column} = '{{}}' WHERE value = 'ann'")
    assert (kind, "user_id:ann") in kinds(couple)


def test_a_changed_verdict_and_evidence_are_found(couple):
    damage(couple, "UPDATE cdp_edge SET refused = 'limit_user_id' WHERE message_id LIKE '%%' AND left_id IN"
                   " (SELECT id FROM cdp_identifier WHERE value IN ('a', 'ann'))")  # fmt: skip
    damage(couple, "UPDATE cdp_edge SET message_id = 'other' WHERE refused = ''")
    assert kinds(couple) == [("links", "anonymous_id:b ~ user_id:bob"), ("verdicts", "anonymous_id:a ~ user_id:ann")]


def test_damage_of_accounts_is_found(core):
    names = [{"collection": "accounts", "type": "crm", "id": "7"}]
    core.apply(
        message("group", userId="ann", groupId="acme", traits={"name": "Acme"}, context={"externalIds": names}),
        message("group", groupId="other", traits={"name": "Other"}, context={"membership": False}),
    )
    report = replay.verify()
    assert (report.examples, report.accounts, report.profiles) == ([], 2, 1)
    damage(core, "UPDATE cdp_account SET traits = '{}', registers = '{}' WHERE traits->>'name' = 'Other'")
    damage(core, "DELETE FROM cdp_accountmember")
    damage(core, "DELETE FROM cdp_accountidentifier WHERE namespace = 'crm'")
    assert kinds(core) == [
        ("accounts", "account group_id:acme, members"),
        ("accounts", "account group_id:acme, names"),
        ("accounts", "account group_id:other, registers"),
        ("accounts", "account group_id:other, traits"),
    ]


@pytest.fixture
def archiving(settings, tmp_path):
    """Archive into a directory of the test's."""
    settings.ARCHIVE_EVENTS, settings.ARCHIVE_BUCKETS = True, 3
    settings.STORAGES = settings.STORAGES | {
        "archive": {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": tmp_path}}
    }


def archive_today(*, drop):
    """Archive today's events as if the day were over for long; drop them where that is asked for."""
    connection.ensure_connection()
    later = timezone.now() + timedelta(days=3)
    archive.archive_closed(now=later)
    return partitions.drop_old(connection.connection, event_days=1, today=later.date()) if drop else []


@pytest.mark.parametrize("drop", [False, True])
def test_an_archived_history_comes_out_as_it_is_held_and_each_event_counts_once(core, archiving, drop):
    define(core)
    play(core, seed=5, events=200)
    events = len(core.events())
    dropped = archive_today(drop=drop)
    assert (len(core.events()) == 0) == drop == bool(dropped)
    for per_pass in (5, 200_000):
        report = replay.verify(per_pass=per_pass)
        assert report.examples == []
        assert (report.events, report.archived, report.not_comparable) == (events, events if drop else 0, 0)


@pytest.mark.parametrize("drop", [False, True])
@random_histories(21, 22, 23)
def test_a_history_comes_out_as_it_is_held_after_an_erasure(core, archiving, seed, drop):
    play(core, seed=seed)
    archive_today(drop=drop)
    largest = core.rows("SELECT profile_id FROM cdp_identifier GROUP BY 1 ORDER BY count(*) DESC LIMIT 1")
    person = Person(profiles=[largest[0]["profile_id"]])
    with transaction.atomic():
        erasing.hold(person)
        assert erasing.delete(person)["identifiers"] > 1
        erasing.mentions(person)
        Erasure.objects.create(requested_by="key:test", requested_at=timezone.now())
        archive.erase(
            anchors=person.anchors,
            identifiers=person.identifiers,
            mentioned=lambda anchors: erasing.mentioned(person, anchors),
        )
    assert replay.verify().examples == []


def test_an_archived_event_that_is_gone_is_found(couple, archiving):
    archive_today(drop=True)
    [anchor] = Identifier.objects.filter(value="ann").values_list("pk", flat=True)
    archive.erase(anchors=[anchor])
    assert ("registers", "user_id:ann") in kinds(couple)


def test_what_is_older_than_the_history_is_not_compared(couple):
    connection.ensure_connection()
    partitions.drop_before(connection.connection, partitions.EVENTS, timezone.now().date() + timedelta(days=1))
    report = replay.verify()
    assert report.examples == []
    assert (report.events, report.not_comparable, report.identifiers) == (0, 4, 4)
    tomorrow = timezone.now().date() + timedelta(days=1)
    assert report.history_starts.date() == tomorrow


def test_a_profile_alone_is_shown_beside_what_is_held(couple):
    found = replay.rebuild(Filter(), profile_id=couple.ann)
    assert (found.events, found.identifiers) == (3, 2)
    assert found.traits == found.held["traits"] == {"name": "Ann"}
    assert found.computed_traits == found.held["computed_traits"]
    assert found.computed_traits["event_count"] == 3


def test_some_events_alone_are_counted(couple):
    assert replay.rebuild(Filter(event="track")).computed_traits["event_count"] == 2
    assert replay.rebuild(Filter(event="Clicked"), per_pass=1).computed_traits["event_count"] == 2
    assert replay.rebuild(Filter(source_id=99)).events == 0
    soon = timezone.now() + timedelta(hours=1)
    assert replay.rebuild(Filter(since=soon)).events == 0
    assert replay.rebuild(Filter(until=soon)).identifiers == 3


def test_some_archived_events_alone_are_counted(couple, archiving):
    archive_today(drop=True)
    test_some_events_alone_are_counted(couple)
    test_a_profile_alone_is_shown_beside_what_is_held(couple)


def test_the_command_reports_and_fails_on_differences(couple, capsys):
    call_command("replay", "--verify")
    told = "4 events (0 of them archived) of 4 identifiers\n2 profiles, 0 accounts, 2 links between identifiers\n"
    assert capsys.readouterr().out == told + "no differences\n"
    damage(couple, "UPDATE customer_profiles SET traits = '{}' WHERE id = %s", couple.ann)
    call_command("replay")
    assert capsys.readouterr().out == told + (
        f'traits: 1 differ\n  traits of profile {couple.ann}\n    held:    {{}}\n    rebuilt: {{"name":"Ann"}}\n'
    )
    with pytest.raises(SystemExit) as stopped:
        call_command("replay", "--verify", "--json")
    assert stopped.value.code == 1
    report = json.loads(capsys.readouterr().out)
    assert report["differences"] == dict.fromkeys(replay.KINDS, 0) | {"traits": 1}
    assert report["examples"] == [
        {"kind": "traits", "where": f"profile {couple.ann}", "held": {}, "rebuilt": {"name": "Ann"}}
    ]


def test_the_command_shows_what_some_events_make(couple, capsys):
    call_command("replay", "--profile", "user_id:bob")
    out = capsys.readouterr().out
    assert out.startswith('1 events (0 of them archived) of 1 identifiers\ntraits\n    held:    {"name":"Bob"}\n')
    call_command("replay", "--event", "identify", "--json")
    assert json.loads(capsys.readouterr().out)["computed_traits"]["event_count"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--verify", "--event", "x"], "leave --verify and --repair or the filters out"),
        (["--source", "nobody"], "There is no source 'nobody'"),
        (["--profile", "user_id:nobody"], "There is no profile 'user_id:nobody'"),
        (["--identifiers-per-pass", "0"], "is 1 or more"),
    ],
)
def test_what_cannot_be_asked_is_said(core, arguments, said):
    with pytest.raises(CommandError, match=said):
        call_command("replay", *arguments)
