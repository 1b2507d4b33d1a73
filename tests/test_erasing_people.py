"""Who may ask for an erasure, by which way, and what they are told of it."""

import json
from dataclasses import replace

import pytest
from django.conf import settings as django_settings
from django.core.management import call_command
from django.core.management.base import CommandError
from django.urls import reverse

from cdp import audit, privacy
from cdp.models import AuditEntry, Erasure, SuppressedIdentifier
from cdp.processing import suppression
from cdp.processing.identity import Identifier
from tests.factories import make_api_key, make_event, make_profile, make_source, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _nobody_else(monkeypatch):
    """Send no task: what the worker does is shown elsewhere."""
    monkeypatch.setattr(privacy, "_send", lambda erasure_id: None)


@pytest.fixture
def ann():
    profile = make_profile(("user_id", "ann-1"), ("email", "ann@example.com"), traits={"name": "Ann"})
    for minute in range(3):
        make_event(profile, make_source(), minute=minute)
    return profile


def kept_out(*identifiers):
    key = django_settings.CONFIG.privacy_key
    digests = [suppression.digest(key, Identifier(*one.split(":", 1))) for one in identifiers]
    return SuppressedIdentifier.objects.filter(digest__in=digests).count()


@pytest.mark.parametrize("reference", ["user_id:ann-1", "email:ANN@example.com", "id"])
def test_the_api_takes_any_reference_and_keeps_all_identifiers_out_at_once(client, ann, reference):
    headers = make_api_key("profiles:erase")
    address = f"/v1/profiles/{ann.pk if reference == 'id' else reference}?reason=asked"
    answered = client.delete(address, headers=headers)
    assert answered.status_code == 202
    told = answered.json()
    assert (told["status"], told["profile"], told["reason"]) == ("requested", str(ann.pk), "asked")
    assert told["receipts"]["suppression"]["identifiers"] == 2
    assert kept_out("user_id:ann-1", "email:ann@example.com") == 2
    got = client.get(f"/v1/erasures/{told['id']}", headers=headers)
    assert got.json() == told
    assert [row["id"] for row in client.get("/v1/erasures", headers=headers).json()["results"]] == [told["id"]]
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.object_type, entry.object_id) == ("profile.erase", "profile", str(ann.pk))
    assert "ann" not in json.dumps(entry.detail)


def test_erasures_are_listed_page_by_page_newest_first(client):
    headers = make_api_key("profiles:erase")
    asked = [client.delete(f"/v1/profiles/user_id:u{number}", headers=headers).json()["id"] for number in range(3)]
    first = client.get("/v1/erasures?limit=2", headers=headers).json()
    second = client.get(first["next"], headers=headers).json()
    assert [row["id"] for row in first["results"] + second["results"]] == asked[::-1]
    assert second["next"] is None


def test_an_identifier_that_nobody_has_is_kept_out_and_not_named(client):
    told = client.delete("/v1/profiles/email:carla@example.com", headers=make_api_key("profiles:erase")).json()
    assert told["profile"] is None
    assert kept_out("email:carla@example.com") == 1
    entry = AuditEntry.objects.get()
    assert (entry.object_type, entry.object_id) == ("erasure", told["id"])


@pytest.mark.parametrize("reference", ["nobody", "user_id:", "user_id:null", "00000000-0000-4000-8000-000000000000"])
def test_what_can_name_nobody_is_not_found(client, reference):
    answered = client.delete(f"/v1/profiles/{reference}", headers=make_api_key("profiles:erase"))
    assert (answered.status_code, answered.json()["code"]) == (404, "not_found")
    assert Erasure.objects.count() == SuppressedIdentifier.objects.count() == 0


def test_only_its_own_scope_erases(client, ann):
    for scope in ("profiles:read", "profiles:write", "profiles:export"):
        assert client.delete("/v1/profiles/user_id:ann-1", headers=make_api_key(scope)).status_code == 403
    assert client.get("/v1/erasures", headers=make_api_key("profiles:read")).status_code == 403
    assert not Erasure.objects.exists()


def test_a_suppression_is_lifted_by_its_identifier_once_the_erasure_is_done(client, ann):
    headers = make_api_key("profiles:erase")
    client.delete("/v1/profiles/user_id:ann-1", headers=headers)
    address = "/v1/suppressed-identifiers?namespace=email&value=Ann@example.com"
    early = client.delete(address, headers=headers)
    assert (early.status_code, early.json()["code"]) == (400, "erasure_running")
    Erasure.objects.update(status="done")
    assert client.delete(address, headers=headers).status_code == 204
    assert client.delete(address, headers=headers).status_code == 404
    assert (kept_out("email:ann@example.com"), kept_out("user_id:ann-1")) == (0, 1)
    assert AuditEntry.objects.order_by("-id")[0].action == "suppression.lift"


def test_the_admin_shows_what_it_would_do_before_it_does(client, ann):
    client.force_login(make_user("admin"))
    page = client.get(reverse("admin:cdp_profile_change", args=[ann.pk])).text
    ask = f"{reverse('admin:cdp_erasure_add')}?reference={ann.pk}"
    assert ask in page
    shown = client.get(ask).text
    assert "ann@example.com" in shown
    assert "Erase for good" in shown
    assert not Erasure.objects.exists()
    asked = client.post(reverse("admin:cdp_erasure_add"), {"reference": str(ann.pk), "reason": "by letter"})
    erasure = Erasure.objects.get()
    assert asked["Location"] == reverse("admin:cdp_erasure_change", args=[erasure.pk])
    assert (erasure.reason, erasure.requested_by.partition(":")[0]) == ("by letter", "admin")
    assert "2 identifiers" in client.get(asked["Location"]).text


def test_the_admin_erases_whom_it_does_not_know_and_refuses_what_is_nobody(client):
    client.force_login(make_user("admin"))
    address = reverse("admin:cdp_erasure_add")
    assert "Nobody has this identifier yet" in client.get(address, {"reference": "email:carla@example.com"}).text
    assert "stands for nobody" in client.get(address, {"reference": "user_id:null"}).text
    client.post(address, {"reference": "user_id:null"})
    assert not Erasure.objects.exists()
    client.post(address, {"reference": "email:carla@example.com"})
    assert kept_out("email:carla@example.com") == 1


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_who_may_not_erase_sees_no_way_to(client, ann, role):
    client.force_login(make_user(role))
    assert "Erase this person" not in client.get(reverse("admin:cdp_profile_change", args=[ann.pk])).text
    assert client.get(reverse("admin:cdp_erasure_add")).status_code == 403
    assert client.post(reverse("admin:cdp_erasure_add"), {"reference": str(ann.pk)}).status_code == 403
    assert not Erasure.objects.exists()


def test_an_erased_profiles_page_says_so(client, ann):
    ann.erased_at = ann.created_at
    ann.save()
    client.force_login(make_user("admin"))
    assert "Everything on this person was erased" in client.get(reverse("admin:cdp_profile_change", args=[ann.pk])).text


def test_the_command_asks_nobody_where_nobody_is(ann):
    with pytest.raises(CommandError, match="--yes"):
        call_command("erase_profile", "user_id:ann-1")
    assert not Erasure.objects.exists()


def test_the_command_says_what_still_waits(ann, capsys, settings):
    settings.CONFIG = replace(settings.CONFIG, log_url="memory:", log_partitions=1)
    call_command("erase_profile", "user_id:ann-1", yes=True, json=True, wait=0, reason="by phone")
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "running"
    assert told["receipts"]["postgresql"]["events"] == 3
    assert "a processor has to run" in told["waits"]
    assert Erasure.objects.get().requested_by == audit.commander()


def test_the_command_lifts(ann, capsys):
    privacy.request(reference="user_id:ann-1", actor="x")
    with pytest.raises(CommandError, match="being erased"):
        call_command("erase_profile", "user_id:ann-1", lift=True)
    Erasure.objects.update(status="done")
    call_command("erase_profile", "user_id:ann-1", lift=True)
    assert kept_out("user_id:ann-1") == 0
    with pytest.raises(CommandError, match="not kept out"):
        call_command("erase_profile", "user_id:ann-1", lift=True)
