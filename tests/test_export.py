"""An export holds everything on a person, and nothing of anybody else's."""

import json
import tracemalloc
from datetime import UTC, datetime

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from django.urls import reverse

from cdp import audit, export, holders
from cdp.models import Edge
from cdp.processing.identity import Identifier as Key
from tests.factories import (
    join,
    make_account,
    make_api_key,
    make_dead_letter,
    make_decision,
    make_event,
    make_profile,
    make_source,
    make_user,
)

pytestmark = pytest.mark.django_db
CONSENT = {"marketing": {"granted": True, "at": "2026-11-01T10:00:00Z", "topics": {}}}
EARLIER = datetime(2026, 3, 2, 12, tzinfo=UTC)


@pytest.fixture
def memory():
    held = holders.holder("memory")
    held.rows.clear()
    yield held
    held.rows.clear()


@pytest.fixture
def ann(memory):
    """Make Ann, whose older profile was merged, and Bob, who knows her."""
    shop = make_source("shop")
    ann = make_profile(("user_id", "ann-1"), ("email", "ann@example.com"), traits={"name": "Ann"},
                       registers={"name": ["Ann", 1, 1, "m-1"]}, consent=CONSENT)  # fmt: skip
    make_profile(merged_into=ann)
    bob = make_profile(("user_id", "bob-1"), traits={"name": "Bob"})
    for minute in range(3):
        make_event(ann, shop, minute=minute, properties={"total": 1.50, "note": 'say "hi"'}, message_id=f"a-{minute}")
    make_event(ann, shop, anchor=ann.identifiers.get(namespace="email"), message_id="by-mail")
    make_event(bob, shop, message_id="bobs")
    make_decision(ann, bob, source=shop)
    user, mail = ann.identifiers.order_by("id")
    Edge.objects.create(left=user, right=mail, source=shop, source_class=0, occurred_at=EARLIER, message_id="m-1")
    join(make_account(("group_id", "acme"), traits={"name": "Acme"}), user, role="owner")
    make_dead_letter(shop, body=b'{"type": "track", "userId": "ann-1", "event": ""}', message_id="broken")
    make_dead_letter(shop, body=b'{"type": "track", "userId": "ann-10", "event": ""}')
    memory.hold(Key("email", "ann@example.com"), {"subject": "Welcome"})
    audit.record(actor="admin:x", action="profile.edit", object_type="profile", object_id=ann.pk)
    return ann


def exported(reference):
    return json.loads(b"".join(export.written(reference, actor="command:test")))


@pytest.mark.parametrize("by", ["user_id:ann-1", "email:Ann@Example.com", "id"])
def test_it_holds_every_store_under_every_reference(ann, by):
    found = exported(str(ann.pk) if by == "id" else by)
    assert found["asked_for"] == ["user_id:ann-1", "email:ann@example.com"]
    assert [row["traits"] for row in found["profiles"]] == [{"name": "Ann"}, {}]
    assert found["profiles"][0]["consent"] == CONSENT
    assert found["profiles"][0]["registers"] == {"name": ["Ann", 1, 1, "m-1"]}
    assert [(row["namespace"], row["value"]) for row in found["identifiers"]] == [
        ("user_id", "ann-1"), ("email", "ann@example.com"),
    ]  # fmt: skip
    assert [(row["role"], row["account_traits"]) for row in found["accounts"]] == [("owner", {"name": "Acme"})]
    assert [(row["left"], row["right"], row["source"]) for row in found["edges"]] == [
        ("user_id:ann-1", "email:ann@example.com", "shop")
    ]
    assert [row["kind"] for row in found["decisions"]] == ["merge"]
    assert [row["message_id"] for row in found["events"]] == ["a-0", "a-1", "a-2", "by-mail"]
    assert found["events"][0]["properties"] == {"note": 'say "hi"', "total": 1.5}
    assert [(row["message_id"], row["payload"]["userId"]) for row in found["dead_letters"]] == [("broken", "ann-1")]
    assert [row["action"] for row in found["audit"]] == ["profile.edit", "profile.export"]
    assert found["holders"]["memory"] == {"email:ann@example.com": [{"subject": "Welcome"}]}
    assert {name: number for name, number in found["counts"].items() if number or not name.startswith("holder")} == {
        "profiles": 2, "identifiers": 2, "accounts": 1, "edges": 1, "decisions": 1, "events": 4, "archived_events": 0,
        "dead_letters": 1, "audit": 2, "holder:memory": 1,
    }  # fmt: skip
    assert "bob-1" not in json.dumps({name: rows for name, rows in found.items() if name != "decisions"})


def test_an_identifier_that_nobody_has_is_exported_from_where_it_stands_all_the_same(ann, memory):
    memory.hold(Key("email", "carla@example.com"), {"subject": "Hello"})
    make_dead_letter(make_source(), body=b'{"type": "x", "traits": {"email": "carla@example.com"}}', message_id="c")
    found = exported("email:carla@example.com")
    assert found["profiles"] == found["events"] == []
    assert [row["message_id"] for row in found["dead_letters"]] == ["c"]
    assert found["holders"]["memory"] == {"email:carla@example.com": [{"subject": "Hello"}]}


def test_it_is_never_in_memory_as_a_whole(ann):
    anchor = ann.identifiers.order_by("id").first()
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO event_stream (profile_id, anchor_id, identifiers, event_type, name, properties, source_id,"
            " message_id, occurred_at, received_at) SELECT profile_id, anchor_id, identifiers, event_type, name,"
            " jsonb_build_object('x', repeat('y', 5000)), source_id, 'more', occurred_at, received_at"
            " FROM event_stream, generate_series(1, 3000) WHERE anchor_id = %s LIMIT 6000",
            [anchor.pk],
        )
    tracemalloc.start()
    size = sum(len(piece) for piece in export.joined(export.written("user_id:ann-1", actor="command:test")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 30_000_000
    assert peak < size / 3


def test_the_api_streams_it_to_keys_with_the_scope(client, ann):
    headers = make_api_key("profiles:export")
    answered = client.get("/v1/profiles/user_id:ann-1/export", headers=headers)
    assert answered.status_code == 200
    assert answered["Cache-Control"] == "no-store"
    assert json.loads(b"".join(answered.streaming_content))["counts"]["events"] == 4
    assert client.get("/v1/profiles/user_id:ann-1/export", headers=make_api_key("profiles:read")).status_code == 403
    assert client.get(f"/v1/profiles/{make_source().pk}/export", headers=headers).json()["code"] == "not_found"


@pytest.mark.parametrize(("role", "status"), [("viewer", 403), ("operator", 200), ("admin", 200)])
def test_the_profiles_page_gives_it_to_those_who_see_personal_data(client, ann, role, status):
    client.force_login(make_user(role))
    page = client.get(reverse("admin:cdp_profile_change", args=[ann.pk])).text
    assert (reverse("admin:cdp_person_export") in page) is (status == 200)
    answered = client.post(reverse("admin:cdp_person_export"), {"reference": str(ann.pk)})
    assert answered.status_code == status
    if status == 200:
        assert json.loads(b"".join(answered.streaming_content))["counts"]["events"] == 4


def test_the_command_writes_it_to_a_file_of_its_own(ann, tmp_path, capsys):
    call_command("export_profile", "user_id:ann-1", out=tmp_path / "ann.json")
    assert json.loads((tmp_path / "ann.json").read_text())["counts"]["profiles"] == 2
    assert (tmp_path / "ann.json").stat().st_mode & 0o777 == 0o600
    call_command("export_profile", "user_id:ann-1")
    assert json.loads(capsys.readouterr().out)["counts"]["profiles"] == 2


@pytest.mark.parametrize("reference", ["nobody", "user_id:", "user_id:null", ":x", "user_id:a\0b"])
def test_what_can_name_nobody_is_refused(reference):
    with pytest.raises(CommandError):
        call_command("export_profile", reference)
