"""The audit trail tells who did what, in names and ids, whichever way it was done."""

import json

import pytest
from django.core.management import call_command
from django.urls import reverse

from cdp import audit
from cdp.models import AuditEntry, Source
from tests.factories import make_api_key, make_dead_letter, make_profile, make_source, make_user

pytestmark = pytest.mark.django_db
POST = {"content_type": "application/json"}


@pytest.fixture
def trail():
    """Return the entries so far, oldest first."""
    return lambda: list(AuditEntry.objects.order_by("id").values_list("actor", "action", "object_type", "object_id"))


@pytest.fixture
def key():
    """Return the header of a key of whom the audit trail says `key:…`, and that name."""
    headers = make_api_key("all")
    from cdp.models import ApiKey

    return headers, f"key:{ApiKey.objects.get().name}"


def test_an_entry_is_made_by_name_and_id():
    made = audit.record(actor="admin:ann", action="source.change", object_type="source", object_id=7, detail={"n": 1})
    assert (made.actor, made.action, made.object_type, made.object_id, made.detail) == (
        "admin:ann", "source.change", "source", "7", {"n": 1},
    )  # fmt: skip


def test_changes_by_the_api_are_written_down(client, trail, key):
    headers, name = key
    made = client.post("/v1/sources", {"name": "Shop"}, headers=headers, **POST).json()
    client.patch(f"/v1/sources/{made['id']}", {"quota": 5, "enabled": False}, headers=headers, **POST)
    client.post(f"/v1/sources/{made['id']}/rotate-key", headers=headers)
    new = client.post("/v1/api-keys", {"name": "K", "scopes": ["profiles:read"]}, headers=headers, **POST).json()
    client.post(f"/v1/api-keys/{new['id']}/revoke", headers=headers)
    source, made_key = str(made["id"]), str(new["id"])
    assert trail() == [
        (name, "source.create", "source", source),
        (name, "source.change", "source", source),
        (name, "source.rotate_key", "source", source),
        (name, "api_key.create", "apikey", made_key),
        (name, "api_key.revoke", "apikey", made_key),
    ]
    details = AuditEntry.objects.order_by("id").values_list("detail", flat=True)
    assert details[1] == {"name": "Shop", "fields": ["enabled", "quota"]}
    assert "write_key" not in json.dumps(list(details))
    assert new["key"] not in json.dumps(list(details))


def test_what_failed_or_only_looked_is_not(client, trail, key):
    headers, _ = key
    client.get("/v1/sources", headers=headers)
    client.patch("/v1/sources/999", {"quota": 5}, headers=headers, **POST)
    client.post("/v1/sources", {"name": ""}, headers=headers, **POST)
    shop = make_source()
    make_dead_letter(shop)
    client.post("/v1/dead-letters/replay", {"reason": "missing_id", "dry_run": True}, headers=headers, **POST)
    assert trail() == []


def test_changes_in_the_admin_are_written_down(client, trail):
    somebody = make_user("admin")
    client.force_login(somebody)
    source = make_source("Shop")
    form = {"name": "Store", "kind": "server", "enabled": "on", "rules": "{}"}
    assert client.post(reverse("admin:cdp_source_change", args=[source.pk]), form).status_code == 302
    client.post(reverse("admin:cdp_source_rotate_key", args=[source.pk]))
    client.post(reverse("admin:cdp_apikey_add"), {"name": "K", "scopes": ["profiles:read"]})
    by = f"admin:{somebody.username}"
    assert [row[:3] for row in trail()] == [
        (by, "source.change", "source"), (by, "source.change", "source"), (by, "apikey.create", "apikey"),
    ]  # fmt: skip
    details = list(AuditEntry.objects.order_by("id").values_list("detail", flat=True))
    assert details == [{"fields": ["Name", "Rules"]}, {"said": "Rotated the write key."}, {}]


def test_commands_are_written_down(trail, capsys):
    call_command("create_source", "Shop")
    call_command("create_api_key", "K", scopes="profiles:read")
    profile = make_profile(("user_id", "u1"))
    call_command("export_profile", "user_id:u1")
    by = audit.commander()
    assert by.startswith("command:")
    assert [row[:2] for row in trail()] == [
        (by, "source.create"), (by, "api_key.create"), (by, "profile.export"),
    ]  # fmt: skip
    assert trail()[2][2:] == ("profile", str(profile.pk))
    assert trail()[0][3] == str(Source.objects.get().pk)


def test_the_trail_is_listed_newest_first_and_filtered(client, key):
    headers, name = key
    for number in range(3):
        audit.record(actor=name, action="source.change", object_type="source", object_id=number)
    audit.record(actor="admin:ann", action="profile.edit", object_type="profile", object_id="p1")
    found = client.get("/v1/audit-entries", headers=headers).json()["results"]
    assert [row["object_id"] for row in found] == ["p1", "2", "1", "0"]
    found = client.get("/v1/audit-entries", {"action": "profile.edit"}, headers=headers).json()["results"]
    assert [(row["actor"], row["object_type"]) for row in found] == [("admin:ann", "profile")]
    page = client.get("/v1/audit-entries", {"object_type": "source", "limit": 2}, headers=headers).json()
    rest = client.get(page["next"], headers=headers).json()
    assert [row["object_id"] for row in page["results"] + rest["results"]] == ["2", "1", "0"]
    assert rest["next"] is None


def test_the_trail_needs_its_scope(client):
    assert client.get("/v1/audit-entries", headers=make_api_key("profiles:read")).status_code == 403
    assert client.get("/v1/audit-entries", headers=make_api_key("audit:read")).status_code == 200


def test_the_page_shows_it_and_changes_nothing(client):
    entry = audit.record(actor="admin:ann", action="profile.edit", object_type="profile", object_id="p1")
    client.force_login(make_user("admin"))
    listed = client.get(reverse("admin:cdp_auditentry_changelist"), {"action": "profile.edit"})
    assert "admin:ann" in listed.text
    address = reverse("admin:cdp_auditentry_change", args=[entry.pk])
    assert client.get(address).status_code == 200
    assert client.post(address, {"actor": "me"}).status_code == 403
    assert client.get(reverse("admin:cdp_auditentry_add")).status_code == 403
    client.force_login(make_user("operator"))
    assert client.get(reverse("admin:cdp_auditentry_changelist")).status_code == 403
