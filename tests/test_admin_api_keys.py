"""API keys in the admin."""

import pytest
from django.urls import reverse

from cdp.models import ApiKey
from tests.factories import make_api_key, make_user

pytestmark = pytest.mark.django_db
ADD = "/admin/cdp/apikey/add/"


def test_a_new_key_is_shown_once_and_works(client):
    client.force_login(make_user("admin"))
    answer = client.post(ADD, {"name": "bi", "scopes": ["profiles:read", "sources:read"]})
    assert answer.status_code == 200
    secret = answer.context["secret"]
    assert secret in answer.text
    assert "no-store" in answer.headers["Cache-Control"]
    key = ApiKey.objects.get()
    assert (key.name, key.scopes, key.expires_at) == ("bi", ["profiles:read", "sources:read"], None)
    for path in ("/admin/cdp/apikey/", reverse("admin:cdp_apikey_change", args=[key.pk])):
        text = client.get(path).text
        assert secret not in text
        assert key.key_hash not in text
        assert key.prefix in text
    client.logout()
    assert client.get("/v1/profiles", headers={"Authorization": f"Bearer {secret}"}).status_code == 200


def test_a_key_needs_a_scope(client):
    client.force_login(make_user("admin"))
    assert "This field is required." in client.post(ADD, {"name": "bi"}).text
    assert not ApiKey.objects.exists()


def test_nobody_gives_a_scope_they_do_not_have(client):
    from django.contrib.auth.models import Permission

    user = make_user("viewer")
    user.user_permissions.add(*Permission.objects.filter(codename__in=["add_apikey", "change_apikey", "view_apikey"]))
    client.force_login(user)
    answer = client.post(ADD, {"name": "bi", "scopes": ["profiles:read", "sources:write"]})
    assert "You cannot give the scope sources:write, which you do not have." in answer.text
    assert client.post(ADD, {"name": "bi", "scopes": ["all"]}).status_code == 200
    assert not ApiKey.objects.exists()


def test_a_key_is_revoked_and_not_changed_or_deleted(client):
    headers = make_api_key("profiles:read")
    key = ApiKey.objects.get()
    revoke = reverse("admin:cdp_apikey_revoke", args=[key.pk])
    page = reverse("admin:cdp_apikey_change", args=[key.pk])

    client.force_login(make_user("operator"))
    assert client.post(revoke).status_code == 403
    client.force_login(make_user("admin"))
    assert revoke in client.get(page).text
    assert client.post(page, {"name": "mine", "scopes": ["all"]}).status_code == 403
    assert client.post(reverse("admin:cdp_apikey_delete", args=[key.pk]), {"post": "yes"}).status_code == 403
    assert client.get(revoke).status_code == 405
    assert client.post(revoke).status_code == 302
    assert revoke not in client.get(page).text
    client.logout()
    assert client.get("/v1/profiles", headers=headers).status_code == 401
