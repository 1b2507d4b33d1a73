"""Managing API keys by REST."""

from datetime import timedelta

import pytest

from cdp.models import ApiKey
from martech.lib import clock
from tests.factories import make_api_key, make_user

pytestmark = pytest.mark.django_db


def post(client, path, body=None, **options):
    return client.post(path, body, content_type="application/json", **options)


def test_a_created_key_is_shown_once_and_works(client):
    admin = make_api_key("keys:write", "profiles:read")
    response = post(client, "/v1/api-keys", {"name": "bi", "scopes": ["profiles:read"]}, headers=admin)
    assert response.status_code == 201
    secret = response.json()["key"]
    assert response.json()["prefix"] == secret[:11]
    assert client.get("/v1/profiles", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    listed = client.get("/v1/api-keys", headers=admin)
    assert secret not in listed.text
    assert [row["name"] for row in listed.json()["results"] if row["scopes"] == ["profiles:read"]] == ["bi"]
    assert "key_hash" not in listed.text


def test_a_key_may_be_given_an_end(client):
    end = clock.now() + timedelta(days=1)
    body = {"name": "bi", "scopes": ["profiles:read"], "expires_at": end.isoformat()}
    post(client, "/v1/api-keys", body, headers=make_api_key("all"))
    assert ApiKey.objects.get(name="bi").expires_at == end


@pytest.mark.parametrize("scopes", [[], ["everything"], "all", None])
def test_scopes_that_are_none_are_refused(client, scopes):
    response = post(client, "/v1/api-keys", {"name": "x", "scopes": scopes}, headers=make_api_key("all"))
    assert (response.status_code, list(response.json()["errors"])) == (400, ["scopes"])


def test_nobody_gives_a_scope_they_do_not_have(client):
    holder = make_api_key("keys:write", "profiles:read")
    for beyond in ("all", "sources:write"):
        response = post(client, "/v1/api-keys", {"name": "x", "scopes": ["profiles:read", beyond]}, headers=holder)
        assert (response.status_code, response.json()["code"]) == (403, "scope_exceeded")
    assert not ApiKey.objects.filter(name="x").exists()


def test_a_revoked_key_is_refused_from_then_on(client):
    admin = make_api_key("keys:write")
    bi = make_api_key("profiles:read")
    key = ApiKey.objects.get(scopes=["profiles:read"])
    first = post(client, f"/v1/api-keys/{key.pk}/revoke", headers=admin)
    again = post(client, f"/v1/api-keys/{key.pk}/revoke", headers=admin)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["revoked_at"] == again.json()["revoked_at"] is not None
    assert client.get("/v1/profiles", headers=bi).status_code == 401


def test_only_admins_manage_keys(client):
    key = make_api_key("profiles:read")
    path = f"/v1/api-keys/{ApiKey.objects.get().pk}/revoke"
    for role in ("viewer", "operator"):
        client.force_login(make_user(role))
        assert client.get("/v1/api-keys").status_code == 403
        assert post(client, "/v1/api-keys", {"name": "x", "scopes": ["profiles:read"]}).status_code == 403
        assert post(client, path).status_code == 403
    client.force_login(make_user("admin"))
    assert post(client, "/v1/api-keys", {"name": "x", "scopes": ["profiles:read"]}).status_code == 201
    assert post(client, path).status_code == 200
    assert key
