"""Who gets into the REST API, and how a refusal looks."""

from datetime import timedelta

import psycopg_pool
import pytest
from django.db import OperationalError
from django.test import Client

from cdp.api.access import SCOPES
from cdp.keys import SCOPES as ISSUED
from cdp.keys import revoke_api_key
from cdp.models import ApiKey
from martech.lib import clock
from tests.factories import make_api_key, make_user

pytestmark = pytest.mark.django_db


def raising(error):
    """Return a function that raises."""

    def fail(*_args, **_options):
        raise error

    return fail


def refusal(response):
    """Return status and code of an answer that is a problem in every respect."""
    body = response.json()
    assert response.headers["Content-Type"] == "application/problem+json"
    assert body["status"] == response.status_code
    assert body["detail"] == body["message"]
    assert body["type"] == "about:blank"
    assert body["title"]
    return response.status_code, body["code"]


def test_every_scope_that_can_be_issued_means_something():
    assert set(SCOPES) == set(ISSUED)


def test_without_a_key_the_answer_is_401_with_a_challenge(client):
    response = client.get("/v1/profiles")
    assert refusal(response) == (401, "not_authenticated")
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_an_unknown_key_is_401(client):
    assert refusal(client.get("/v1/profiles", headers={"Authorization": "Bearer nonsense"})) == (
        401,
        "not_authenticated",
    )


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Bearer a b", "Bearer \xff", "Basic eDo="])
def test_odd_authorization_headers_are_401(client, header):
    assert client.get("/v1/profiles", headers={"Authorization": header}).status_code == 401


def test_a_revoked_key_is_401(client):
    headers = make_api_key("profiles:read")
    assert client.get("/v1/profiles", headers=headers).status_code == 200
    revoke_api_key(ApiKey.objects.get())
    assert refusal(client.get("/v1/profiles", headers=headers)) == (401, "not_authenticated")


def test_an_expired_key_is_401(client):
    headers = make_api_key("profiles:read", expires_at=clock.now() - timedelta(seconds=1))
    assert refusal(client.get("/v1/profiles", headers=headers)) == (401, "not_authenticated")


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("get", "/v1/profiles", "profiles:read"),
        ("get", "/v1/traits", "profiles:read"),
        ("get", "/v1/identity-decisions", "profiles:read"),
        ("get", "/v1/identity-rules", "profiles:read"),
        ("post", "/v1/identity-rules", "identity:write"),
        ("post", "/v1/identity-rules/dry-run", "identity:write"),
        ("get", "/v1/trace/m-1", "profiles:read"),
        ("get", "/v1/sources", "sources:read"),
        ("post", "/v1/sources", "sources:write"),
        ("get", "/v1/api-keys", "keys:write"),
        ("post", "/v1/api-keys", "keys:write"),
        ("get", "/v1/dead-letters", "dead_letters:read"),
        ("get", "/v1/dead-letters/summary", "dead_letters:read"),
        ("post", "/v1/dead-letters/replay", "dead_letters:write"),
    ],
)
def test_a_key_does_what_its_scopes_say_and_nothing_else(client, method, path, scope):
    others = sorted(set(SCOPES) - {scope, "all"})
    response = getattr(client, method)(path, headers=make_api_key(*others))
    assert refusal(response) == (403, "permission_denied")
    assert scope in response.json()["message"]
    for enough in (scope, "all"):
        allowed = getattr(client, method)(path, content_type="application/json", headers=make_api_key(enough))
        assert allowed.status_code in {200, 400}


def test_the_use_of_a_key_is_noted_once_a_minute(client, django_assert_num_queries):
    headers = make_api_key("profiles:read")
    with django_assert_num_queries(3):  # the key, its use, the list
        client.get("/v1/profiles", headers=headers)
    first = ApiKey.objects.get().last_used_at
    assert first is not None
    with django_assert_num_queries(2):
        client.get("/v1/profiles", headers=headers)
    assert ApiKey.objects.get().last_used_at == first

    long_ago = first - timedelta(seconds=61)
    ApiKey.objects.update(last_used_at=long_ago)
    client.get("/v1/profiles", headers=headers)
    assert ApiKey.objects.filter(last_used_at__gte=first).count() == 1


@pytest.mark.parametrize(
    ("role", "allowed", "refused"),
    [
        (
            "viewer",
            ["/v1/profiles", "/v1/sources", "/v1/dead-letters", "/v1/traits", "/v1/identity-decisions"],
            ["/v1/api-keys"],
        ),
        ("operator", ["/v1/profiles", "/v1/sources", "/v1/dead-letters"], ["/v1/api-keys"]),
        ("admin", ["/v1/profiles", "/v1/sources", "/v1/dead-letters", "/v1/api-keys"], []),
        ("", [], ["/v1/profiles", "/v1/sources", "/v1/dead-letters", "/v1/traits", "/v1/api-keys"]),
    ],
)
def test_people_read_what_their_role_lets_them(client, role, allowed, refused):
    client.force_login(make_user(role))
    assert [client.get(path).status_code for path in allowed] == [200] * len(allowed)
    assert [client.get(path).status_code for path in refused] == [403] * len(refused)


def test_a_session_needs_a_csrf_token_to_change_something():
    client = Client(enforce_csrf_checks=True)
    client.force_login(make_user("admin"))
    answer = client.post("/v1/sources", {"name": "shop"}, content_type="application/json")
    assert refusal(answer) == (403, "permission_denied")

    client.get("/admin/")
    client.cookies["csrftoken"] = token = "a" * 32
    allowed = client.post(
        "/v1/sources", {"name": "shop"}, content_type="application/json", headers={"X-CSRFToken": token}
    )
    assert allowed.status_code == 201


def test_a_key_needs_no_csrf_token():
    client = Client(enforce_csrf_checks=True)
    answer = client.post("/v1/sources", {"name": "s"}, content_type="application/json", headers=make_api_key("all"))
    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("get", "/v1/nothing", 404, "not_found"),
        ("get", "/v1/sources/99999999999", 404, "not_found"),
        ("delete", "/v1/sources", 405, "method_not_allowed"),
        ("options", "/v1/sources", 405, "method_not_allowed"),
        ("get", "/v1/profiles/00000000-0000-0000-0000-000000000000", 404, "not_found"),
    ],
)
def test_refusals_are_problems(client, method, path, status, code):
    assert refusal(getattr(client, method)(path, headers=make_api_key("all"))) == (status, code)


def test_a_body_that_is_no_json_is_a_problem(client):
    response = client.post("/v1/sources", b"{", content_type="application/json", headers=make_api_key("all"))
    assert refusal(response) == (400, "parse_error")


def test_a_body_of_another_type_is_a_problem(client):
    response = client.post("/v1/sources", b"<a/>", content_type="text/xml", headers=make_api_key("all"))
    assert refusal(response) == (415, "unsupported_media_type")


def test_an_unexpected_exception_is_a_problem(client, monkeypatch):
    monkeypatch.setattr("cdp.lookup.newest", raising(RuntimeError("boom")))
    client.raise_request_exception = False
    assert refusal(client.get("/v1/profiles", headers=make_api_key("all"))) == (500, "internal_error")


def test_a_database_that_is_away_is_503_and_says_when_to_try_again(client, monkeypatch):
    headers = make_api_key("all")
    for error in (OperationalError("gone"), psycopg_pool.PoolTimeout("none free")):
        monkeypatch.setattr("cdp.lookup.newest", raising(error))
        response = client.get("/v1/profiles", headers=headers)
        assert refusal(response) == (503, "database_unavailable")
        assert response.headers["Retry-After"] == "1"


def test_a_host_that_is_not_ours_is_a_problem(client):
    assert refusal(client.get("/v1/profiles", headers={"Host": "evil.example"})) == (400, "bad_request")


def test_pages_outside_of_the_api_answer_as_pages(client):
    response = client.get("/nothing")
    assert response.status_code == 404
    assert response.headers["Content-Type"].startswith("text/html")
