"""`replay --repair` brings what PostgreSQL holds to what events say, whatever was broken, and whoever is at work."""

import json
import multiprocessing
import os
import signal
import threading
from contextlib import closing
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from cdp import merge_policies, partitions, repair, replay
from cdp.models import MergePolicy
from tests import at_work
from tests.platform import Core, message
from tests.playing import define, play
from tests.running import wait_until

DAMAGES = {
    "registers of anchors": ["UPDATE cdp_identifier SET registers = '{}' WHERE id % 2 = 0"],
    "trait states of anchors": ["UPDATE cdp_identifier SET trait_states = '{\"1.1\": 7}' WHERE id % 3 = 0"],
    "registers of profiles": ["UPDATE customer_profiles SET registers = '{}', trait_states = '{}'"],
    "columns of profiles": [
        "UPDATE customer_profiles SET traits = '{\"name\": \"Nobody\"}', computed_traits = '{}',"
        " consent = '{}', identity_graph = '{}' WHERE merged_into_id IS NULL"
    ],
    "lost links": ["DELETE FROM cdp_edge WHERE id % 2 = 0"],
    "evidence": ["UPDATE cdp_edge SET message_id = 'other', occurred_at = '2020-01-01' WHERE id % 2 = 0"],
    "verdicts": ["UPDATE cdp_edge SET refused = CASE refused WHEN '' THEN 'limit_user_id' ELSE '' END"],
    "a link too many": [
        "INSERT INTO cdp_edge (left_id, right_id, source_id, source_class, occurred_at, message_id, rule_version,"
        " refused) SELECT min(id), max(id), 1, 0, '2020-01-01', 'none', 1, '' FROM cdp_identifier"
        " WHERE namespace = 'anonymous_id' ON CONFLICT DO NOTHING"
    ],
    "lost identifiers": [
        "DELETE FROM cdp_edge e USING cdp_identifier i WHERE i.id IN (e.left_id, e.right_id)"
        " AND NOT EXISTS (SELECT FROM event_stream WHERE anchor_id = i.id)",
        "DELETE FROM cdp_identifier i WHERE NOT EXISTS (SELECT FROM event_stream WHERE anchor_id = i.id)"
        " AND NOT EXISTS (SELECT FROM cdp_edge e WHERE i.id IN (e.left_id, e.right_id))",
    ],
    "moved identifiers": [
        "UPDATE cdp_identifier SET profile_id = (SELECT profile_id FROM cdp_identifier ORDER BY id LIMIT 1)"
        " WHERE id % 4 = 0"
    ],
    "accounts": [
        "UPDATE cdp_account SET traits = '{}', registers = '{}'",
        "DELETE FROM cdp_accountmember WHERE id % 2 = 0",
        "UPDATE cdp_accountmember SET register = '{\"joined_us\": null, \"left\": [true, 1, 1, \"\"], \"role\": null}'",
        "DELETE FROM cdp_accountidentifier WHERE namespace <> 'group_id' AND value = 'x'",
        "UPDATE cdp_accountidentifier SET account_id = (SELECT id FROM cdp_account ORDER BY id LIMIT 1),"
        " evidence = '[0, 1, \"\", 1]' WHERE namespace <> 'group_id'",
    ],
    "a lost account": [
        "DELETE FROM cdp_accountmember", "DELETE FROM cdp_accountidentifier", "DELETE FROM cdp_account",
    ],
}  # fmt: skip


@pytest.fixture
def core(own_database):
    """Return the core over the database that Django looks at."""
    with closing(Core(own_database)) as core:
        define(core)
        yield core


def damage(core, *statements):
    """Break something by SQL; return how many rows that concerned."""
    core.pipeline.forget()
    return sum(core.connection.execute(one).rowcount for one in statements)


def equal():
    """Fail unless PostgreSQL holds what events say."""
    report = replay.verify()
    assert report.examples == []
    assert report.outdated == 0


def versions(core):
    return core.rows("SELECT id, version FROM customer_profiles ORDER BY id")


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_damaged_is_as_events_say_again(core, what, seed):
    play(core, seed=seed, events=200)
    assert damage(core, *DAMAGES[what]) > 0
    assert replay.verify().differences
    done = repair.repair(per_pass=17)
    assert (done.left, done.rounds) == ({}, 0)
    assert sum(done.written.values()) > 0
    equal()
    before = versions(core)
    again = repair.repair()
    assert (again.written, again.report.differences, versions(core)) == ({}, {}, before)


def test_all_of_it_at_once(core):
    play(core, seed=3, events=200)
    damage(core, *(one for name, those in DAMAGES.items() if name != "a lost account" for one in those))
    assert repair.repair(per_pass=17).left == {}
    equal()
    play(core, seed=4, events=100)
    equal()


def test_what_is_right_is_not_touched(core):
    play(core, seed=5, events=100)
    before = versions(core)
    done = repair.repair()
    assert (done.written, done.left, versions(core)) == ({}, {}, before)


@pytest.mark.parametrize(
    ("trait", "kind"), [("tags", "newest"), ("points", "ask"), ("city", "union"), ("plan", "ask"), ("points", "newest")]
)
def test_a_changed_merge_policy_is_brought_upon_older_values(core, trait, kind):
    play(core, seed=6, events=200)
    merge_policies.change(MergePolicy.objects.get(trait=trait), kind=kind, sources=[])
    found = replay.verify()
    assert found.outdated + found.differences.total() > 0
    assert repair.repair(per_pass=17).left == {}
    equal()


def test_a_policy_that_is_changed_meanwhile_has_all_read_anew(core, monkeypatch):
    play(core, seed=6, events=100)
    damage(core, *DAMAGES["registers of anchors"])
    meanwhile(monkeypatch, lambda: merge_policies.change(MergePolicy.objects.get(trait="tags"), kind="ask", sources=[]))
    done = repair.repair()
    assert (done.left, done.rounds) == ({}, 1)
    assert repair.repair().left == {}
    equal()


def test_a_new_version_of_a_computed_trait_gets_its_past(core):
    play(core, seed=7, events=100)
    core.connection.execute("UPDATE cdp_traitdefinition SET version = version + 1")
    core.connection.execute("UPDATE cdp_definitionversion SET version = version + 1")
    assert replay.verify().differences
    assert repair.repair().left == {}
    equal()


def test_older_values_show_under_the_new_policy(core):
    core.apply(message("identify", userId="ann", traits={"tag": ["a"]}))
    core.apply(message("identify", userId="ann", traits={"tag": ["b"]}))
    merge_policies.create(trait="tag", policy="union")
    assert core.profile("user_id:ann")["traits"] == {"tag": ["b"]}
    version = core.profile("user_id:ann")["version"]
    assert repair.repair().written == {"identifiers": 1, "profiles": 1}
    assert core.profile("user_id:ann")["traits"] == {"tag": ["a", "b"]}
    assert core.profile("user_id:ann")["version"] == version + 1


def test_a_person_of_whom_nothing_was_kept_is_joined_by_what_events_say(core):
    core.apply(message("identify", userId="ann", anonymousId="a", traits={"email": "ann@example.com"}))
    profile = core.profile("user_id:ann")["id"]
    damage(core, "DELETE FROM cdp_edge", "DELETE FROM cdp_identifier WHERE namespace <> 'user_id'",
           "UPDATE customer_profiles SET identity_graph = '{\"user_id\": [\"ann\"]}'")  # fmt: skip
    done = repair.repair()
    assert done.written == {"identifiers": 2, "links": 2, "people": 3}
    graph = core.profile("user_id:ann")["identity_graph"]
    assert (core.profile("anonymous_id:a")["id"], {key: sorted(values) for key, values in graph.items()}) == (
        profile, {"user_id": ["ann"], "anonymous_id": ["a"], "email": ["ann@example.com"]}
    )  # fmt: skip
    merges = core.rows("SELECT kind, reason FROM cdp_identitydecision ORDER BY id")
    assert merges == [{"kind": "merge", "reason": "replay"}] * 2
    equal()


def test_a_shared_identifier_from_before_refusals_were_kept_is_blocked(core):
    for person in range(15):
        core.apply(message("identify", userId=f"u{person}", anonymousId="kiosk"))
    damage(core, "DELETE FROM cdp_edge", "DELETE FROM cdp_identifier WHERE value = 'kiosk'")
    assert repair.repair().left == {}
    assert core.profile("anonymous_id:kiosk")["standing"] == 2
    equal()


def meanwhile(monkeypatch, change, times=1):
    """Have something happen between what a repair reads and what it writes, so many times."""
    write, left = repair._Mender._write_anchors, list(range(times))

    def written(self, *args, **kwargs):
        if left:
            left.pop()
            elsewhere(change)
        return write(self, *args, **kwargs)

    monkeypatch.setattr(repair._Mender, "_write_anchors", written)


def elsewhere(change):
    """Do something in a thread, whose connections are its own, to its end."""
    failed = []

    def run():
        try:
            change()
        except BaseException as error:
            failed.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert (thread.is_alive(), failed) == (False, [])


@pytest.mark.parametrize(("times", "rounds"), [(1, 1), (2, 2), (4, 3)])
def test_who_changed_meanwhile_is_read_again(core, monkeypatch, times, rounds):
    play(core, seed=8, events=60, people=2)
    damage(core, *DAMAGES["trait states of anchors"], *DAMAGES["registers of anchors"])
    everybody = [row["value"] for row in core.rows("SELECT value FROM cdp_identifier WHERE namespace = 'user_id'")]
    meanwhile(monkeypatch, lambda: core.apply(*(message(userId=one) for one in everybody)), times)
    monkeypatch.setattr(repair, "LOCKED", 1000)
    done = repair.repair()
    assert (done.left, done.rounds) == ({}, rounds)
    equal()


def test_nobody_changes_a_busy_person_while_their_events_are_read(core, monkeypatch):
    play(core, seed=8, events=100, people=3)
    damage(core, *(one for name in ("lost links", "registers of anchors", "accounts") for one in DAMAGES[name]))
    monkeypatch.setattr(repair, "_everything", given_up)
    monkeypatch.setattr(repair, "ROUNDS", 0)
    assert repair.repair().left == {}
    equal()


def given_up(mender, comparison, per_pass, advance):
    """Find what differs, and leave all of it for later."""
    mender.begin(comparison)
    for low, high in replay.history.ranges(comparison.reading.session, per_pass):
        comparison.one_pass(low, high, advance)
        mender.raced.identifiers |= comparison.suspects.anchors
    comparison.people()
    comparison.profiles()
    comparison.accounts()
    found = comparison.suspects
    mender.raced.profiles, mender.raced.people = found.states, found.clusters
    mender.raced.links, mender.raced.accounts = set(found.links), found.accounts


def test_beside_processors_at_work_it_ends_equal(core, monkeypatch):
    browser = core.source("browser")
    play(core, seed=9, events=200, browser=browser)
    damage(core, *(one for name, those in DAMAGES.items() if "lost account" not in name for one in those))
    monkeypatch.setenv("DATABASE_URL", core.url)
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    workers = [
        spawn.Process(target=at_work.process, args=(core.url, seed, browser, stop), daemon=True) for seed in (1, 2)
    ]
    for worker in workers:
        worker.start()
    events = len(core.events())
    wait_until(lambda: len(core.events()) > events, 60)
    try:
        done = [repair.repair(per_pass=17) for _ in range(3)]
    finally:
        stop.set()
        for worker in workers:
            worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert sum(done[0].written.values()) > 0
    assert done[-1].left == {}
    equal()


@pytest.mark.parametrize("after", [1, 5, 12])
def test_after_a_kill_the_next_run_ends_equal(core, after, monkeypatch):
    play(core, seed=10, events=200)
    damage(core, *(one for name, those in DAMAGES.items() if "lost account" not in name for one in those))
    before = sum(row["version"] for row in versions(core))
    monkeypatch.setenv("DATABASE_URL", core.url)
    killed = multiprocessing.get_context("spawn").Process(target=at_work.repair_slowly, daemon=True)
    killed.start()
    wait_until(lambda: sum(row["version"] for row in versions(core)) >= before + after, 60)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join(30)
    # PostgreSQL notices, and lets go of its locks.
    wait_until(lambda: not core.rows("SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND database ="
                                     " (SELECT oid FROM pg_database WHERE datname = current_database())"))  # fmt: skip
    assert repair.repair().left == {}
    equal()


def test_what_is_older_than_the_history_is_never_touched(core):
    play(core, seed=11, events=100)
    connection.ensure_connection()
    partitions.drop_before(connection.connection, partitions.EVENTS, timezone.now().date() + timedelta(days=1))
    before = core.rows("SELECT * FROM cdp_identifier ORDER BY id"), core.rows("SELECT * FROM cdp_edge ORDER BY id")
    done = repair.repair()
    assert (done.written, done.left) == ({}, {})
    assert before == (
        core.rows("SELECT * FROM cdp_identifier ORDER BY id"), core.rows("SELECT * FROM cdp_edge ORDER BY id")
    )  # fmt: skip


def test_one_at_a_time(core):
    play(core, seed=1, events=5)
    core.connection.execute("SELECT pg_advisory_lock(%s)", [repair.LOCK])
    with pytest.raises(CommandError, match="Another process repairs"):
        call_command("replay", "--repair")


def test_the_command_says_what_it_wrote_and_fails_where_something_is_left(core, capsys):
    core.apply(message("identify", userId="ann", traits={"name": "Ann"}))
    call_command("replay", "--repair")
    assert capsys.readouterr().out.endswith("no differences\nnothing to repair\n")
    damage(core, "UPDATE customer_profiles SET traits = '{}'")
    call_command("replay", "--repair")
    assert capsys.readouterr().out.endswith("written: 1 profiles\n")
    damage(core, "DELETE FROM event_stream")
    with pytest.raises(SystemExit) as stopped:
        call_command("replay", "--repair", "--json")
    assert stopped.value.code == 1
    told = json.loads(capsys.readouterr().out)
    assert told["left"] == {"superfluous identifiers": 1}
    assert told["written"] == dict.fromkeys(repair.WRITTEN, 0) | {"identifiers": 1, "profiles": 1}


@pytest.mark.parametrize("others", [["--verify"], ["--event", "x"]])
def test_a_repair_is_of_everything_and_no_dry_run(others):
    with pytest.raises(CommandError, match="out"):
        call_command("replay", "--repair", *others)
