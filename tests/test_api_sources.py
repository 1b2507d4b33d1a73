"""Managing sources by REST."""

import pytest

from cdp.models import DefinitionVersion, Source
from tests.factories import make_api_key, make_source, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def call(client):
    headers = make_api_key("sources:read", "sources:write")

    def call(method, path, body=None):
        return getattr(client, method)(path, body, content_type="application/json", headers=headers)

    return call


def test_a_created_source_answers_with_its_write_key(call):
    rules = {"refused_traits": ["vip"]}
    response = call("post", "/v1/sources", {"name": "shop", "kind": "browser", "rules": rules, "quota": 250})
    assert response.status_code == 201
    source = Source.objects.get()
    body = response.json()
    assert body.pop("created_at").startswith("20")
    assert body == {
        "id": source.pk,
        "name": "shop",
        "kind": "browser",
        "enabled": True,
        "rules": {"refused_traits": ["vip"]},
        "quota": 250,
        "write_key": source.write_key,
    }
    assert (source.kind, source.rules, source.quota) == ("browser", {"refused_traits": ["vip"]}, 250)


def test_a_source_is_renamed_switched_off_and_given_rules(call):
    source = make_source("shop")
    before = DefinitionVersion.objects.get().version
    response = call("patch", f"/v1/sources/{source.pk}", {"name": "Shop", "enabled": False, "kind": "mobile"})
    assert response.status_code == 200
    call("patch", f"/v1/sources/{source.pk}", {"rules": {"refused_calls": ["import"]}})
    source.refresh_from_db()
    assert (source.name, source.enabled, source.kind) == ("Shop", False, "mobile")
    assert source.rules == {"refused_calls": ["import"]}
    assert DefinitionVersion.objects.get().version == before + 2


def test_a_source_is_given_a_quota_and_loses_it(call):
    source = make_source("shop")
    for quota in (0, 2**31 - 1, None):
        answer = call("patch", f"/v1/sources/{source.pk}", {"quota": quota})
        source.refresh_from_db()
        assert (answer.status_code, answer.json()["quota"], source.quota) == (200, quota, quota)


def test_a_source_may_be_given_its_own_name(call):
    source = make_source("shop")
    assert call("patch", f"/v1/sources/{source.pk}", {"name": "shop"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "name: This field is required."),
        ({"name": ""}, "name: This field may not be blank."),
        ({"name": "x" * 129}, "name: Ensure this field has no more than 128 characters."),
        ({"name": "a\0b"}, "name: Null characters are not allowed."),
        ({"name": "taken"}, "name: This field must be unique."),
        ({"name": "x", "kind": "pigeon"}, 'kind: "pigeon" is not a valid choice.'),
        (
            {"name": "x", "write_key": "mine"},
            "write_key: There is no such field. Known: enabled, kind, name, quota, rules.",
        ),
        ({"name": "x", "quota": -1}, "quota: Ensure this value is greater than or equal to 0."),
        ({"name": "x", "quota": 2**31}, "quota: Ensure this value is less than or equal to 2147483647."),
        ({"name": "x", "quota": "many"}, "quota: A valid integer is required."),
        ({"name": "x", "rules": []}, 'rules: Rules are an object, such as {"refused_traits": ["consent"]}.'),
        (
            {"name": "x", "rules": {"refuse": []}},
            "rules: There is no rule 'refuse'. Known: refused_namespaces, refused_traits, refused_calls,"
            " refused_policies.",
        ),
        ({"name": "x", "rules": {"refused_traits": "vip"}}, "rules: refused_traits is a list of texts."),
        ({"name": "x", "rules": {"refused_traits": [1]}}, "rules: refused_traits is a list of texts."),
        (
            {"name": "x", "rules": {"refused_calls": ["shout"]}},
            "rules: There is no call 'shout'. Known: alias, group, identify, import, page, screen, track.",
        ),
        (["x"], "Invalid data. Expected a dictionary, but got list."),
    ],
)
def test_an_unsound_source_is_refused_with_the_reason(call, body, message):
    make_source("taken")
    response = call("post", "/v1/sources", body)
    assert (response.status_code, response.json()["code"]) == (400, "invalid")
    assert response.json()["message"] == message
    assert Source.objects.count() == 1


def test_rotating_a_write_key_replaces_it(call):
    source = make_source("shop")
    old = source.write_key
    response = call("post", f"/v1/sources/{source.pk}/rotate-key")
    source.refresh_from_db()
    assert response.status_code == 200
    assert response.json()["write_key"] == source.write_key != old


def test_write_keys_are_shown_to_those_who_may_change_sources(client):
    source = make_source("shop")
    paths = ["/v1/sources", f"/v1/sources/{source.pk}"]
    for path in paths:
        assert source.write_key not in client.get(path, headers=make_api_key("sources:read")).text
        assert source.write_key in client.get(path, headers=make_api_key("sources:read", "sources:write")).text
    client.force_login(make_user("viewer"))
    assert [source.write_key in client.get(path).text for path in paths] == [False, False]
    client.force_login(make_user("operator"))
    assert [source.write_key in client.get(path).text for path in paths] == [True, True]


def test_viewers_change_no_source(client):
    source = make_source("shop")
    client.force_login(make_user("viewer"))
    assert client.post("/v1/sources", {"name": "x"}, content_type="application/json").status_code == 403
    assert client.patch(f"/v1/sources/{source.pk}", {}, content_type="application/json").status_code == 403
    assert client.post(f"/v1/sources/{source.pk}/rotate-key").status_code == 403


def test_sources_are_listed_newest_first_by_pages(call):
    made = [make_source().pk for _ in range(3)]
    page = call("get", "/v1/sources?limit=2").json()
    assert [row["id"] for row in page["results"]] == made[:0:-1]
    last = call("get", page["next"]).json()
    assert ([row["id"] for row in last["results"]], last["next"]) == (made[:1], None)
