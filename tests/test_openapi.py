"""The API's description is sound and complete."""

import re
from typing import Any

import pytest
from django.core.management import call_command
from django.urls import get_resolver
from drf_spectacular.validation import validate_schema


@pytest.fixture(scope="module")
def description():
    from django.test import Client

    return Client().get("/v1/openapi.json").json()


def views():
    """Return our views by the address that the description gives them."""
    resolver: Any = next(pattern for pattern in get_resolver().url_patterns if str(pattern.pattern) == "v1/")
    found = {
        "/v1/" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", str(pattern.pattern)): pattern.callback.cls
        for pattern in resolver.url_patterns
    }
    del found["/v1/openapi.json"], found["/v1/docs"]
    assert len(found) > 10
    return found


def operations(description):
    return [operation for methods in description["paths"].values() for operation in methods.values()]


def test_the_command_finds_nothing_to_warn_of(tmp_path):
    call_command("spectacular", "--validate", "--fail-on-warn", "--file", str(tmp_path / "openapi.yaml"))


def test_the_description_is_valid_openapi(description):
    validate_schema(description)
    assert description["info"]["title"] == "Martech"


def test_every_route_is_described(description):
    assert set(views()) - set(description["paths"]) == set()


def test_every_method_of_every_view_is_described(description):
    for path, view in views().items():
        for method in view.scopes:
            assert method.lower() in description["paths"][path]


def test_the_tracking_calls_are_described(description):
    for call in ("track", "identify", "page", "screen", "group", "alias", "batch", "import"):
        operation = description["paths"][f"/v1/{call}"]["post"]
        assert operation["security"] == [{"write_key": []}]
        assert set(operation["responses"]) == {"200", "400", "401", "413", "429", "503"}


def test_operations_have_ids_of_their_own_and_say_how_they_fail(description):
    found = operations(description)
    ids = [operation["operationId"] for operation in found]
    assert len(set(ids)) == len(ids)
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    for operation in found:
        failure = operation["responses"].get("default") or operation["responses"]["503"]
        assert failure["content"] == {"application/problem+json": problem}


@pytest.mark.django_db
def test_the_page_takes_nothing_from_elsewhere(client):
    page = client.get("/v1/docs")
    assert page.status_code == 200
    assert re.findall(r'(?:src|href)="(?:https?:)?//', page.text) == []
    for address in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text):
        assert client.get(address).status_code == 200
