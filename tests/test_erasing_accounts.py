"""What accounts hold of an erased person is taken out; those that only the person told of go with them."""

import pytest
from django.db import connection

from cdp import account_edits, archive, edits, replay
from cdp.models import Account, AccountIdentifier, AccountMember, Erasure, Event, MergePolicy
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
    # Whoever names the group by the person again makes no account of it.
    platform.send(message("group", userId="bob-the-builder", groupId=HOME, traits={"rooms": 5}),
                  message("group", userId="bob-the-builder", groupId="acme", traits={"city": "Kiel"}))  # fmt: skip
    platform.process()
    assert Account.objects.get(identifiers__value="acme").traits["city"] == "Kiel"
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
    assert sorted(row["extra"] for row in rows) == ['{"groupId":"acme"}', f'{{"groupId":"{home.value}"}}']


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
