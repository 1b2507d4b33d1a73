"""Whatever people can write freely is redacted by an erasure: a byte search of the database finds nothing."""

import json
from uuid import uuid4

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import connection

from cdp import audit, erased_words, identity_rules, privacy, unmerging
from cdp.models import (
    AuditEntry,
    Erasure,
    EventImport,
    Identifier,
    IdentityDecision,
    IdentityRules,
    Processor,
    Profile,
    TaskRun,
    TraitDefinition,
)
from cdp.processing import clusters
from cdp.processing.identity import Identifier as Key
from martech.lib import clock
from tests.factories import NOON, make_profile, make_source, make_user
from tests.platform import message
from tests.test_erasure import erase, finish, platform  # noqa: F401 - a fixture

VALUE = "nightjar-of-hollow-9"
SAID = f"asked by {VALUE}, who is 7"
BLOCKING = {"*": {"blocked": []}, "user_id": {"limit": 1, "blocked": [VALUE, "7", "somebody-else"]}}


def write_everywhere(author="admin:x"):
    """Name a person wherever somebody can write of another."""
    bob = make_profile(("user_id", "bob"), ("email", "bob@example.com"))
    IdentityDecision.objects.create(kind="merge", reason="identify", detail={"note": SAID, "identifiers": [["a", "b"]]},
                                    profile=bob, occurred_at=NOON, decided_at=NOON, author=author)  # fmt: skip
    rules = identity_rules.draft(BLOCKING, author=author, note=SAID)
    rules.progress = {"dry_run": {"examples": [{"parts": [["user_id:7", f"email:{VALUE}"], ["user_id:77"]]}]}, "of": 7}
    rules.save()
    Erasure.objects.create(profile=bob, requested_by=author, reason=SAID, requested_at=NOON, status="done")
    audit.record(actor=author, action="x.y", object_type="x", object_id=1, detail={"said": SAID, "source": "7"})
    TaskRun.objects.create(id=uuid4(), task="t", status="failed", error=SAID, started_at=NOON)
    EventImport.objects.create(
        name=f"{VALUE} orders.csv", sha256="0" * 64, source=make_source(), file_format="csv", size=1, trouble=SAID,
        mapping={"constants": {"userId": VALUE}}, errors_path=f"/x/{VALUE}/a.csv", created_at=NOON, updated_at=NOON,
    )  # fmt: skip
    TraitDefinition.objects.create(name="t", kind="count", description=SAID)
    Processor.objects.create(log="l", host="h", pid=1, backend_pid=1, backend_started_at=NOON, started_at=NOON,
                             expires_at=NOON, halted=SAID)  # fmt: skip
    LogEntry.objects.create(user=make_user(), content_type=ContentType.objects.get_for_model(TraitDefinition),
                            object_id="1", object_repr=VALUE, action_flag=CHANGE,
                            change_message=json.dumps([{"changed": {"fields": [SAID]}}]))  # fmt: skip


@pytest.mark.django_db
def test_every_free_text_is_redacted_and_all_else_stays():
    write_everywhere()
    person = privacy.Person([Key("user_id", VALUE), Key("user_id", "7"), Key("email", "nobody@example.com")])
    assert erased_words.erase(person) == {"own_log": 0, **dict.fromkeys(erased_words.PLACES, 1), "blocked_values": 2}
    said = "asked by [erased], who is 7"
    rules = IdentityRules.objects.latest("version")
    assert (rules.note, rules.namespaces["user_id"]["blocked"]) == (said, ["somebody-else"])
    assert rules.namespaces["user_id"]["limit"] == 1
    assert rules.progress == {
        "dry_run": {"examples": [{"parts": [["[erased]", "email:[erased]"], ["user_id:77"]]}]}, "of": 7
    }  # fmt: skip
    decision = IdentityDecision.objects.get()
    assert (decision.detail, decision.author) == ({"note": said, "identifiers": [["a", "b"]]}, "admin:x")
    assert Erasure.objects.get().reason == said
    assert AuditEntry.objects.get(action="x.y").detail == {"said": said, "source": "7"}
    assert (TaskRun.objects.get().error, Processor.objects.get().halted) == (said, said)
    assert TraitDefinition.objects.get(name="t").description == said
    found = EventImport.objects.get()
    assert (found.name, found.trouble, found.errors_path) == ("[erased] orders.csv", said, "/x/[erased]/a.csv")
    assert found.mapping == {"constants": {"userId": "[erased]"}}
    log = LogEntry.objects.get()
    assert (log.object_repr, json.loads(log.change_message)) == ("[erased]", [{"changed": {"fields": [said]}}])
    assert erased_words.erase(person) == dict.fromkeys(["own_log", *erased_words.PLACES, "blocked_values"], 0)


@pytest.mark.django_db
def test_there_is_no_column_of_texts_that_nobody_thought_of():
    """Whoever adds one says here whether an erasure has to look at it."""
    looked_at = {(place.table, column) for place in erased_words.PLACES.values() for column in place[1] + place[2]}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
            " AND table_name LIKE 'cdp\\_%%' AND (data_type IN ('text', 'jsonb') OR character_maximum_length >= 255)"
        )
        there = set(cursor.fetchall())
    ours = {(table, column) for table, column in there if table in {one.table for one in erased_words.PLACES.values()}}
    assert ours - looked_at == {
        # Who did it, which is kept.
        ("cdp_auditentry", "actor"), ("cdp_erasure", "requested_by"), ("cdp_eventimport", "author"),
        ("cdp_identitydecision", "author"), ("cdp_identitydecision", "lifted_by"),
        ("cdp_identitydecision", "reviewed_by"), ("cdp_identityrules", "author"),
        # Of ours: ids, numbers, and what ends with the erasure.
        ("cdp_auditentry", "object_id"), ("cdp_erasure", "receipts"), ("cdp_erasure", "work"),
        ("cdp_eventimport", "stored_path"), ("cdp_taskrun", "task"), ("cdp_taskrun", "slot"), ("cdp_processor", "log"),
        ("cdp_processor", "host"), ("cdp_traitdefinition", "options"), ("cdp_traitdefinition", "event_name"),
        # What is blocked, by its identifiers.
        ("cdp_identityrules", "namespaces"),
    }  # fmt: skip


def test_the_note_of_an_unmerge_and_the_facts_of_it_are_nowhere_after_an_erasure(platform):  # noqa: F811
    """The note is on others' unmerge and names the person; lifting it leaves the note where it was."""
    platform.send(message("identify", userId=VALUE, traits={"email": "aunt@example.com"}),
                  message(userId="hub-user-1", anonymousId="device-alpha"),
                  message(userId="hub-user-1", anonymousId="device-beta"))  # fmt: skip
    platform.process()
    for device in ("device-alpha", "device-beta"):
        hub = Profile.objects.get(identifiers__value="hub-user-1")
        done = unmerging.unmerge(profile_id=hub.pk, identifiers=[Key("anonymous_id", device)], author="admin:x",
                                 note=f"{VALUE} (aunt@example.com) says it is theirs")  # fmt: skip
    unmerging.lift(done.decision_id, author="admin:x")
    draft = identity_rules.draft(identity_rules.plain(clusters.DEFAULT), author="admin:x", note=f"{VALUE} complained")
    identity_rules.publish(draft.pk, author="admin:x")
    identity_rules.apply()
    earlier = erase("user_id:hub-user-2", reason=f"asked by {VALUE}")
    finish(platform, earlier)
    assert platform.stores()["postgresql"].count(VALUE.encode()) > 4
    done = finish(platform, erase(f"user_id:{VALUE}", reason=f"asked by {VALUE}"))
    assert done.receipts["elsewhere"]["decisions"] == 2
    dump = platform.stores()["postgresql"]
    assert VALUE.encode() not in dump
    assert b"aunt@example.com" not in dump
    notes = IdentityDecision.objects.filter(kind="unmerge").values_list("detail__note", flat=True)
    assert list(notes) == ["[erased] ([erased]) says it is theirs"] * 2
    assert Identifier.objects.filter(value="device-beta").exists()
    assert clock.now() > done.requested_at


def decided(*pairs, **fields):
    profile = make_profile()
    detail = {"identifiers": [list(one) for one in pairs], **fields}
    return IdentityDecision.objects.create(kind="merge", reason="identify", detail=detail, profile=profile,
                                           occurred_at=NOON, decided_at=NOON, author="x")  # fmt: skip


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("name", "left"),
    [
        (Key("user_id", "1"), [["email", "b@example.com"], ["anonymous_id", "1"], ["user_id", "[erased]"]]),
        (Key("user_id", "email"), [["email", "b@example.com"], ["anonymous_id", "1"], ["user_id", "1"]]),
        (Key("user_id", "anonymous_id"), [["email", "b@example.com"], ["anonymous_id", "1"], ["user_id", "1"]]),
        (Key("crm", "b@example.com"), [["email", "[erased]"], ["anonymous_id", "1"], ["user_id", "1"]]),
    ],
)
def test_a_short_value_in_a_decision_is_the_persons_only_beside_their_namespace(name, left):
    row = decided(("email", "b@example.com"), ("anonymous_id", "1"), ("user_id", "1"), note="1")
    changed = erased_words.erase(privacy.Person([name]))["decisions"]
    row.refresh_from_db()
    assert row.detail == {"identifiers": left, "note": "1"}
    assert changed == ("[erased]" in str(left))


@pytest.mark.django_db
def test_only_the_rows_that_change_are_locked():
    """A row that a transaction has locked has that transaction's number."""
    for number in range(30):
        decided(("anonymous_id", f"c{number}1"), ("email", f"{VALUE}0{number}"), note="11")
    theirs = decided(("user_id", "1"))
    person = privacy.Person([Key("user_id", "1"), Key("email", VALUE)])
    with connection.cursor() as cursor:
        assert erased_words.erase(person)["decisions"] == 1
        cursor.execute("SELECT id FROM cdp_identitydecision WHERE xmax <> 0")
        assert cursor.fetchall() == [(theirs.pk,)]
    theirs.refresh_from_db()
    assert theirs.detail == {"identifiers": [["user_id", "[erased]"]]}


@pytest.mark.django_db
def test_what_is_blocked_everywhere_stays_so_for_everybody_else():
    """Of the list for all namespaces an erasure may take only what stands for nobody else, nor can by chance."""
    make_profile(("loyalty", "Unknown-Visitor"))
    identity_rules.draft({"*": {"blocked": ["0012", "unknown-visitor", VALUE]}, "user_id": {"limit": 1}}, author="x")
    person = privacy.Person([Key("crm", "0012"), Key("user_id", "unknown-visitor"), Key("crm", VALUE)])
    assert erased_words.erase(person)["blocked_values"] == 1
    rules = IdentityRules.objects.latest("version")
    assert rules.namespaces["*"]["blocked"] == ["0012", "unknown-visitor"]
