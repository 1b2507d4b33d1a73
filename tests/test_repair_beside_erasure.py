"""A repair writes nothing of whom an erasure takes out meanwhile, and counts nothing that it did not write."""

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from cdp import erasing, privacy, redaction, repair, replay
from cdp.models import Identifier, Profile
from cdp.processing import store
from cdp.processing.identity import Identifier as Key
from tests.platform import message
from tests.test_erasure import erase, finish, platform  # noqa: F401 - a fixture
from tests.test_repair import core, damage  # noqa: F401 - a fixture

ANN = "quillfeather-7781"
LOST = (
    "UPDATE cdp_identifier SET registers = '{}' WHERE value = 'bob'",
    "UPDATE customer_profiles SET registers = '{}', traits = '{}' WHERE identity_graph::text LIKE '%bob%'",
)


@pytest.fixture
def lost(platform):  # noqa: F811
    """Have Bob say of Ann what is lost of his row, so that no erasure finds it there."""
    also = {"externalIds": [{"type": "user_id", "id": ANN, "collection": "users"}]}
    platform.send(
        message("identify", userId=ANN, traits={"name": "Ann"}),
        message("identify", userId="bob", traits={"note": f"friend of {ANN}"}, context=also),
    )
    platform.process()
    with connection.cursor() as cursor:
        for statement in LOST:
            cursor.execute(statement.replace("%", "%%"), [])
    return platform


def once(change):
    """Return what hears of read events, and does something at the first."""
    left = [change]

    def heard(events):
        while left:
            left.pop()()

    return heard


def killed(turn):
    raise KeyboardInterrupt


def test_an_unfinished_erasure_is_waited_for(lost):
    asked = erase(f"user_id:{ANN}")
    with pytest.raises(CommandError, match=r"1 erasures are unfinished, .* Let a worker end them, then repair"):
        call_command("replay", "--repair")
    finish(lost, asked)
    assert repair.repair().left == {}
    assert replay.verify().examples == []


def test_what_an_erasure_took_out_meanwhile_is_not_written_back(lost, monkeypatch):
    asked = erase(f"user_id:{ANN}")
    with monkeypatch.context() as patched:
        patched.setitem(privacy.STEPS, "mentions", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(lost, asked)
    # As though it had been asked for a moment later.
    monkeypatch.setattr(repair, "_refuse_beside_erasures", lambda: None)
    done = repair.repair(advance=once(lambda: privacy.run(asked.pk, patience=5)))
    assert (done.left, done.rounds) == ({}, 1)
    assert [name for name, held in lost.stores().items() if ANN.encode() in held] == []
    assert Profile.objects.get(identifiers__value="bob").traits == {"note": "friend of [erased]"}
    assert replay.verify().examples == []


def test_of_an_erasure_that_is_asked_for_meanwhile_all_is_left(lost):
    done = repair.repair(advance=once(lambda: erase(f"user_id:{ANN}")))
    assert done.written == {}
    assert done.left["unfinished erasures"] == 1
    assert done.left["identifiers"] == 1
    assert Profile.objects.get(identifiers__value="bob").traits == {}


def test_the_version_of_whoever_may_name_the_erased_rises_even_where_nothing_is_found(lost):
    bob = Profile.objects.get(identifiers__value="bob")
    anchor = Identifier.objects.get(value="bob").pk
    with transaction.atomic():
        assert erasing._scrub_states([anchor], redaction.pattern([ANN])) == [bob.pk]
    assert Profile.objects.get(pk=bob.pk).version == bob.version + 1


def test_a_link_to_the_erased_is_not_counted(core):  # noqa: F811
    core.apply(message("identify", userId="ann", anonymousId="a"), message(userId="bob"))
    damage(core, "DELETE FROM cdp_edge", "DELETE FROM cdp_identifier WHERE namespace = 'anonymous_id'")
    privacy.request(reference="anonymous_id:a", actor="command:test", enqueue=False)
    core.connection.execute("UPDATE cdp_erasure SET status = 'done'")
    assert "links" not in repair.repair().written


def test_what_is_rolled_back_under_the_lock_is_not_counted(core, monkeypatch):  # noqa: F811
    core.apply(message("identify", userId="ann", traits={"name": "Ann"}))
    damage(core, "UPDATE cdp_identifier SET registers = '{}'", "UPDATE customer_profiles SET registers = '{}'")
    again, left = repair._again, [1, 2]

    def raced(*args):
        again(*args)
        if left:
            left.pop()
            raise store.Raced("Somebody was quicker.")

    def given_up(mender, comparison, per_pass, advance):
        mender.begin(comparison)
        mender.raced.identifiers = {core.rows("SELECT id FROM cdp_identifier")[0]["id"]}

    monkeypatch.setattr(repair, "_everything", given_up)
    monkeypatch.setattr(repair, "_again", raced)
    monkeypatch.setattr(repair, "ROUNDS", 0)
    done = repair.repair()
    assert (left, done.left, done.written) == ([], {}, {"identifiers": 1, "profiles": 1})
    assert core.profile("user_id:ann")["traits"] == {"name": "Ann"}


def test_only_the_ends_are_locked_of_all_who_hang_together(core):  # noqa: F811
    for person in range(15):
        core.apply(message("identify", userId=f"u{person}", anonymousId="kiosk"))
    everybody = {row["id"] for row in core.rows("SELECT id FROM customer_profiles WHERE merged_into_id IS NULL")}
    connection.ensure_connection()
    with transaction.atomic():
        driver = connection.connection
        ends = repair._profiles(driver, (), {Key("user_id", "u0"), Key("user_id", "u1")})
        assert set(repair._hold(driver, ends)) == set(ends)
        free = core.rows("SELECT id FROM customer_profiles WHERE merged_into_id IS NULL FOR UPDATE SKIP LOCKED")
        assert {row["id"] for row in free} == everybody.difference(ends)


def test_nobody_is_kept_off_an_account_while_its_calls_are_read(core, monkeypatch):  # noqa: F811
    core.apply(message("group", userId="ann", groupId="acme", traits={"plan": "pro"}))
    damage(core, "UPDATE cdp_account SET traits = '{}', registers = '{}'")
    heard = []

    def advance(events):
        core.connection.execute("SELECT FROM cdp_account FOR UPDATE NOWAIT")
        heard.append(events)

    def given_up(mender, comparison, per_pass, advance):
        mender.begin(comparison)
        mender.raced.accounts = {"acme"}

    monkeypatch.setattr(repair, "_everything", given_up)
    monkeypatch.setattr(repair, "ROUNDS", 0)
    done = repair.repair(advance=advance)
    assert (heard, done.left, done.written) == ([1], {}, {"accounts": 1})
    assert replay.verify().examples == []
