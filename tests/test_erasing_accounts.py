"""What accounts hold of an erased person is taken out; those that only the person told of go with them."""

import pytest
from django.db import connection
from django.utils import timezone

from cdp import account_edits, archive, edits, erased_accounts, privacy, repair, replay
from cdp.definitions import raise_version
from cdp.models import (
    Account,
    AccountIdentifier,
    AccountMember,
    DeadLetter,
    Erasure,
    Event,
    MergePolicy,
    Source,
)  # fmt: skip
from cdp.processing.store import RULES_LOCK
from tests.platform import message
from tests.test_erasing_aliases import archived
from tests.test_erasure import erase, finish, platform  # noqa: F401 - a fixture

ANN, MAIL = "quillfeather-7781", "wilhelmina@postbox.example"
HOME = f"home-of/{MAIL}"
CRM = [{"collection": "accounts", "type": "crm", "id": f"crm/{ANN}"}]


def lived(platform):  # noqa: F811
    """Let Ann and Bob tell of an account together, and Ann of two of her own."""
    for trait, policy in (("owners", "union"), ("contact", "ask"), ("points", "counter")):
        MergePolicy.objects.create(trait=trait, policy=policy, version=1)
    platform.send(
        message("identify", userId=ANN, traits={"email": MAIL}),
        message("group", userId=ANN, groupId="acme", messageId=f"m/{ANN}", traits={
            "name": "Acme", "owner_email": MAIL, "note": f"ask {MAIL} first", "owners": [MAIL, "zoe"],
            "contact": ANN, "points": {"$add": 2}, "deep": [{MAIL: 1}]}, context={"externalIds": CRM}),
        message("group", userId="bob-the-builder", groupId="acme", traits={"city": "Bonn", "assistant": f"of {MAIL}"},
                context={"membership": {"role": f"aide to {MAIL}"}}),
        message("group", userId="bob-the-builder", groupId=HOME, traits={"rooms": 4}),
        message("group", userId=ANN, groupId=HOME, traits={"rooms": 3}),
        message("group", userId=ANN, groupId="ann-only", traits={"owner_email": MAIL}),
        message("group", userId=ANN, groupId=ANN, context={"membership": False}),
    )  # fmt: skip
    platform.process()
    assert Account.objects.count() == 4


def check(platform, done):  # noqa: F811
    """Fail where anything is left of Ann, or anything of the others is lost."""
    assert done.status == Erasure.Status.DONE
    stores = platform.stores()
    assert [(name, value) for name, data in stores.items() for value in (ANN, MAIL) if value.encode() in data] == []
    assert replay.verify().examples == []
    acme = Account.objects.get(identifiers__value="acme")
    assert acme.traits == {
        "name": "Acme", "owner_email": "[erased]", "note": "ask [erased] first", "owners": ["[erased]", "zoe"],
        "contact": "[erased]", "points": 2, "deep": [{"[erased]": 1}], "city": "Bonn", "assistant": "of [erased]",
    }  # fmt: skip
    assert AccountMember.objects.get(account=acme).role == "aide to [erased]"
    assert list(acme.identifiers.values_list("namespace", "value")) == [("group_id", "acme")]
    home = AccountIdentifier.objects.exclude(value="acme").get()
    assert (home.value[:7], len(home.value)) == ("erased-", 23)
    assert (home.account.traits, AccountMember.objects.get(account=home.account).identifier.value) == (
        {"rooms": 3}, "bob-the-builder"
    )  # fmt: skip
    assert Account.objects.count() == 2
    return home


def test_accounts_say_nothing_of_an_erased_person_and_keep_what_others_said(platform):  # noqa: F811
    lived(platform)
    done = finish(platform, erase(f"email:{MAIL}"))
    assert {name: done.receipts["accounts"][name] for name in ("deleted_accounts", "redacted_accounts")} == {
        "deleted_accounts": 2, "redacted_accounts": 2,
    }  # fmt: skip
    home = check(platform, done)
    calls = Event.objects.filter(event_type="group").order_by("event_id")
    assert [one.extra["groupId"] for one in calls] == ["acme", home.value]
    # Whoever names the group by the person again tells of the account that it has become.
    platform.send(message("group", userId="bob-the-builder", groupId=HOME, traits={"rooms": 5}),
                  message("group", userId="bob-the-builder", groupId="acme", traits={"city": "Kiel"}))  # fmt: skip
    platform.process()
    assert Account.objects.get(identifiers__value="acme").traits["city"] == "Kiel"
    assert Account.objects.get(identifiers__value=home.value).traits == {"rooms": 5}
    assert Account.objects.count() == 2
    assert replay.verify().examples == []


def test_the_archives_group_calls_are_redacted_alike(platform):  # noqa: F811
    lived(platform)
    archived()
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE event_stream_20260302")
    done = finish(platform, erase(f"email:{MAIL}"))
    home = check(platform, done)
    rows = [row for file in archive.files() for table in archive.read(file) for row in table.to_pylist()]
    assert sorted(row["extra"] for row in rows) == ['{"groupId": "acme"}', f'{{"groupId":"{home.value}"}}']


@pytest.mark.parametrize("where", ["table", "archive"])
def test_an_account_that_a_call_without_a_member_told_of_stays(platform, where):  # noqa: F811
    platform.send(message("group", userId=ANN, groupId="acme", traits={"owner": ANN, "size": 3}),
                  message("group", groupId="acme", traits={"city": "Bonn"}, context={"membership": False}))  # fmt: skip
    platform.process()
    if where == "archive":
        archived()
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE event_stream_20260302")
    finish(platform, erase(f"user_id:{ANN}"))
    assert Account.objects.get().traits == {"owner": "[erased]", "size": 3, "city": "Bonn"}
    assert ANN.encode() not in platform.stores()["postgresql"] + platform.stores()["archive"]
    assert replay.verify().examples == []


def test_what_people_edited_of_an_account_keeps_it(platform):  # noqa: F811
    platform.send(message("identify", userId=ANN, traits={"email": MAIL}),
                  message("group", userId=ANN, groupId="acme", traits={"size": 3}))  # fmt: skip
    platform.process()
    account = Account.objects.get()
    edits.people_source()
    account_edits.edit(account_id=account.pk, versions=[account.version], traits={"head": MAIL}, actor="admin:x")
    finish(platform, erase(f"user_id:{ANN}"))
    assert Account.objects.get().traits == {"size": 3, "head": "[erased]"}
    assert MAIL.encode() not in platform.stores()["postgresql"]
    assert replay.verify().examples == []


def test_an_account_that_others_said_the_person_is_in_is_redacted_though_they_told_nothing(platform):  # noqa: F811
    platform.send(message("identify", userId=ANN, traits={"email": MAIL}),
                  message("group", userId="bob-the-builder", groupId="acme", traits={"owner": MAIL}),
                  message("group", userId="bob-the-builder", groupId="other", traits={"size": "7"}))  # fmt: skip
    platform.process()
    finish(platform, erase(f"user_id:{ANN}"))
    assert Account.objects.get(identifiers__value="acme").traits == {"owner": "[erased]"}
    assert Account.objects.get(identifiers__value="other").version == 1
    assert MAIL.encode() not in platform.stores()["postgresql"]
    assert replay.verify().examples == []


@pytest.mark.parametrize("word", ["policy", "role", "Union"])
def test_a_value_that_states_are_written_with_leaves_them_readable(platform, word):  # noqa: F811
    MergePolicy.objects.create(trait="tags", policy="union", version=1)
    platform.send(message("group", userId=word, groupId="acme", traits={"tags": ["a"], "size": 3}),
                  message("identify", userId="bob", anonymousId=word, traits={"tags": ["b"]}),
                  message("group", userId="bob", groupId="acme", traits={"city": "Bonn"},
                          context={"membership": {"role": "owner"}}),
                  message("identify", userId=word, anonymousId=word, traits={"tags": ["c"]}))  # fmt: skip
    platform.process()
    finish(platform, erase(f"user_id:{word}"))
    platform.send(message("identify", userId="bob", traits={"city": "Kiel"}),
                  message("group", userId="bob", groupId="acme", traits={"city": "Kiel"}))  # fmt: skip
    platform.process()
    assert Account.objects.get().traits == {"tags": ["a"], "size": 3, "city": "Kiel"}
    assert AccountMember.objects.get().role == "owner"
    assert replay.verify().examples == []


def in_archive():
    """Leave events in the archive alone."""
    archived()
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE event_stream_20260302")


def stop_at(monkeypatch, number, noted):
    """Have the step be killed when it goes on for the `number`th time; note how much is to do, and if all wait."""
    goes_on = erased_accounts.go_on

    def killed(person, progress, erasure_id):
        before = (len(progress.undecided), len(progress.calls), len(progress.states))
        more = goes_on(person, progress, erasure_id)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'"
                           " AND (classid::bigint << 32) + objid::bigint = %s", [RULES_LOCK])  # fmt: skip
            noted.append((*before, bool(cursor.fetchone()[0])))
        if len(noted) == number:
            raise KeyboardInterrupt
        return more

    monkeypatch.setattr(erased_accounts, "go_on", killed)


@pytest.mark.parametrize("number", range(1, 9))
def test_an_accounts_calls_are_redacted_some_at_a_time_while_others_work(platform, monkeypatch, number):  # noqa: F811
    calls = [message("group", userId="bob-the-builder", groupId=ANN, traits={"rooms": one}) for one in range(3)]
    platform.send(message("group", userId=ANN, groupId=ANN, traits={"owner": ANN}), *calls)
    platform.process()
    monkeypatch.setattr(erased_accounts, "CHUNK", 1)
    noted = []
    stop_at(monkeypatch, number, noted)
    erasure = erase(f"user_id:{ANN}")
    with pytest.raises(KeyboardInterrupt):
        finish(platform, erasure)
    done = privacy.run(erasure.pk)
    # To decide, calls, accounts: only who decides keeps others from work.
    turns = [(0, 0, 0, False), (1, 0, 0, True), *[(0, 1, 1, False)] * 4, (0, 0, 1, False), (0, 0, 0, False)]
    assert noted == turns[:number] + turns[number - 1 :]
    found = {name: done.receipts["accounts"][name] for name in ("deleted_accounts", "redacted_accounts", "group_calls")}
    assert found == {"deleted_accounts": 0, "redacted_accounts": 1, "group_calls": 3}
    assert Account.objects.get().traits == {"rooms": 2, "owner": "[erased]"}
    assert ANN.encode() not in platform.stores()["postgresql"]
    assert Event.objects.filter(extra__groupId=AccountIdentifier.objects.get().value).count() == 3
    assert replay.verify().examples == []


@pytest.mark.parametrize("where", ["table", "archive"])
def test_a_short_value_leaves_what_others_said(platform, where):  # noqa: F811
    platform.send(message("group", userId="pro", groupId="acme", traits={"name": "Acme"}),
                  message("group", userId="bob-the-builder", groupId="acme", messageId="pro",
                          traits={"plan": "Pro", "pro": True}, context={"membership": {"role": "pro"}}))  # fmt: skip
    platform.process()
    if where == "archive":
        in_archive()
    finish(platform, erase("user_id:pro"))
    assert Account.objects.get().traits == {"name": "Acme", "plan": "Pro", "pro": True}
    member = AccountMember.objects.get()
    assert (member.identifier.value, member.role) == ("bob-the-builder", "pro")
    assert replay.verify().examples == []


@pytest.mark.parametrize("where", ["table", "archive"])
def test_a_value_that_is_said_as_a_number_is_taken_out(platform, where):  # noqa: F811
    platform.send(message("group", userId=4477881234, groupId="acme", traits={"name": "Acme"}),
                  message("group", userId="bob-the-builder", groupId="acme",
                          traits={"owner": 4477881234, "deep": [{"of": 4477881234}], "size": 44778812345}),
                  message("group", userId="bob-the-builder", groupId=4477881234, traits={"size": 3}))  # fmt: skip
    platform.process()
    if where == "archive":
        in_archive()
    finish(platform, erase("user_id:4477881234"))
    acme = Account.objects.get(identifiers__value="acme")
    assert acme.traits == {"name": "Acme", "owner": "[erased]", "deep": [{"of": "[erased]"}], "size": 44778812345}
    stores = platform.stores()
    assert b"4477881234" not in (stores["postgresql"] + stores["archive"]).replace(b"44778812345", b"")
    assert replay.verify().examples == []


def test_a_number_that_orders_what_was_said_stays(platform):  # noqa: F811
    platform.send(message("group", userId="bob-the-builder", groupId="acme", traits={"size": 3}))
    platform.process()
    at = Account.objects.get().registers["size"][1]
    platform.send(message("group", userId=at, groupId="acme", context={"membership": {"role": f"of {at}"}}))
    platform.process()
    finish(platform, erase(f"user_id:{at}"))
    assert (Account.objects.get().traits, Account.objects.get().registers["size"][1]) == ({"size": 3}, at)
    assert replay.verify().examples == []


def test_a_members_role_is_redacted_where_nothing_else_says_the_person(platform):  # noqa: F811
    platform.send(message("identify", userId=ANN, traits={"email": MAIL}),
                  message("group", userId="bob-the-builder", groupId="acme", traits={"city": "Bonn"},
                          context={"membership": {"role": f"aide to {MAIL}"}}))  # fmt: skip
    platform.process()
    finish(platform, erase(f"email:{MAIL}"))
    assert AccountMember.objects.get().role == "aide to [erased]"
    assert MAIL.encode() not in platform.stores()["postgresql"]
    assert replay.verify().examples == []


def test_an_erasure_that_is_asked_for_while_a_repair_reads_is_not_undone_by_it(platform):  # noqa: F811
    platform.send(message("identify", userId=ANN, traits={"email": MAIL}),
                  message("group", userId=ANN, groupId="acme", traits={"name": "Acme"}),
                  message("group", userId="bob-the-builder", groupId="acme", traits={"owner": MAIL}),
                  message("group", userId=ANN, groupId=HOME),
                  message("group", userId="bob-the-builder", groupId=HOME, traits={"rooms": 3}))  # fmt: skip
    platform.process()
    Account.objects.update(registers={}, traits={})
    asked = []

    def meanwhile(_):
        if not asked:
            asked.append(erase(f"email:{MAIL}"))
            # It waits for whoever reads what was true before.
            with pytest.raises(privacy.ErasureWaits):
                finish(platform, asked[0])

    assert repair.repair(advance=meanwhile).left["unfinished erasures"] == 1
    assert privacy.run(asked[0].pk, patience=5).status == Erasure.Status.DONE
    assert [name for name, data in platform.stores().items() if MAIL.encode() in data] == []
    # Of older ones an erasure may have taken calls.
    Account.objects.update(created_at=timezone.now())
    repair.repair()
    assert sorted(map(str, Account.objects.values_list("traits", flat=True))) == [
        "{'owner': '[erased]'}", "{'rooms': 3}"
    ]  # fmt: skip
    assert replay.verify().examples == []


@pytest.mark.parametrize("step", ["accounts", "archive"])
def test_a_repair_makes_no_account_of_calls_that_an_erasure_has_not_come_to(platform, monkeypatch, step):  # noqa: F811
    platform.send(message("group", userId=ANN, groupId="acme", traits={"owner": MAIL}))
    platform.process()
    in_archive()
    erasure = erase(f"user_id:{ANN}")
    monkeypatch.setitem(privacy.STEPS, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        finish(platform, erasure)
    monkeypatch.undo()
    with pytest.raises(repair.Erasing, match="unfinished"):
        repair.repair()
    assert privacy.run(erasure.pk, patience=5).status == Erasure.Status.DONE
    assert not any(repair.repair().left.values())
    assert Account.objects.count() == 0
    assert MAIL.encode() not in platform.stores()["postgresql"]
    assert replay.verify().examples == []


def interrupted(turn):
    raise KeyboardInterrupt


def test_others_go_on_to_tell_of_an_account_that_was_called_as_the_person(platform):  # noqa: F811
    first = message("group", userId="bob-the-builder", groupId=ANN, messageId="first", traits={"plan": "pro"})
    platform.send(message("group", userId=ANN, groupId=ANN, traits={"name": "Studio"}), first)
    platform.process()
    finish(platform, erase(f"user_id:{ANN}"))
    platform.send(first, message("group", userId="dora-new", groupId=f" {ANN} ", unknown=[1], traits={"plan": "max"}),
                  message("group", userId=ANN, groupId="acme"))  # fmt: skip
    Source.objects.filter(pk=platform.strict.pk).update(rules={"refused_calls": ["group"]})
    raise_version()
    platform.send(message("group", userId="bob-the-builder", groupId=ANN), source="strict")
    platform.process()
    named = AccountIdentifier.objects.get().value
    assert Account.objects.get().traits == {"name": "Studio", "plan": "max"}
    assert set(AccountMember.objects.values_list("identifier__value", flat=True)) == {"bob-the-builder", "dora-new"}
    calls = Event.objects.filter(event_type="group").order_by("event_id")
    assert [one.extra for one in calls] == [{"groupId": named}, {"groupId": named, "unknown": [1]}]
    assert ANN.encode() not in bytes(DeadLetter.objects.get().delivery)
    assert replay.verify().examples == []
