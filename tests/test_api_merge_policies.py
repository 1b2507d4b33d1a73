"""Merge policies by REST and in the admin."""

import pytest
from django.urls import reverse

from cdp.models import AuditEntry, DefinitionVersion, MergePolicy
from tests.factories import make_api_key, make_source, make_user

pytestmark = pytest.mark.django_db
PATH = "/v1/merge-policies"


@pytest.fixture
def call(client):
    headers = make_api_key("definitions:write", "profiles:read")

    def send(method, path, body=None):
        return getattr(client, method)(path, body, content_type="application/json", headers=headers)

    return send


def version():
    return DefinitionVersion.objects.get().version


def test_a_policy_is_made_changed_and_listed_and_its_version_rises(call):
    crm, shop, before = make_source(), make_source(), version()
    made = call("post", PATH, {"trait": "city", "policy": "source_priority", "sources": [shop.pk, crm.pk]})
    assert made.status_code == 201
    row = {"id": made.json()["id"], "trait": "city", "policy": "source_priority", "sources": [shop.pk, crm.pk]}
    assert made.json() == row | {"version": 1}
    assert version() > before
    address, before = f"{PATH}/{row['id']}", version()
    changed = call("patch", address, {"sources": [crm.pk]})
    assert changed.json() == row | {"sources": [crm.pk], "version": 2}
    assert version() > before
    assert call("patch", address, {"policy": "union"}).json() == row | {"policy": "union", "sources": [], "version": 3}
    assert call("patch", address, {"policy": "union"}).json()["version"] == 3
    assert call("get", address).json() == call("get", PATH).json()["results"][0]
    assert [entry.action for entry in AuditEntry.objects.all()] == ["merge_policy.change"] * 4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"trait": "consent", "policy": "union"}, "Consent has a policy of its own"),
        ({"trait": "a", "policy": "source_priority"}, "Source priority needs `sources`"),
        ({"trait": "a", "policy": "union", "sources": [1]}, "Only source priority has `sources`."),
        ({"trait": "a", "policy": "source_priority", "sources": [77, 77]}, "A source is named twice."),
        ({"trait": "a", "policy": "source_priority", "sources": [77]}, "There is no source 77."),
        ({"trait": "a", "policy": "vote"}, '"vote" is not a valid choice.'),
        ({"policy": "union"}, "trait: This field is required."),
        ({"trait": "taken", "policy": "union"}, "taken has a merge policy. Change that one."),
    ],
)
def test_a_policy_that_cannot_be_is_refused_with_the_reason(call, body, message):
    MergePolicy.objects.create(trait="taken", policy="union")
    answer = call("post", PATH, body)
    assert (answer.status_code, message in answer.json()["message"]) == (400, True)
    assert MergePolicy.objects.count() == 1


def test_policies_need_their_scope(client):
    headers = make_api_key("profiles:read")
    assert client.get(PATH, headers=headers).status_code == 200
    body = {"trait": "a", "policy": "union"}
    assert client.post(PATH, body, content_type="application/json", headers=headers).status_code == 403


def test_operators_set_policies_in_the_admin(client):
    client.force_login(make_user("operator"))
    add = reverse("admin:cdp_mergepolicy_add")
    assert client.post(add, {"trait": "tags", "policy": "union", "sources": ""}).status_code == 302
    policy = MergePolicy.objects.get()
    change = reverse("admin:cdp_mergepolicy_change", args=[policy.pk])
    answer = client.post(change, {"policy": "source_priority", "sources": ""})
    assert "Source priority needs `sources`" in answer.text
    assert client.post(change, {"policy": "ask", "sources": ""}).status_code == 302
    policy.refresh_from_db()
    assert (policy.trait, policy.policy, policy.version) == ("tags", "ask", 2)
    delete = reverse("admin:cdp_mergepolicy_delete", args=[policy.pk])
    assert client.post(delete, {"post": "yes"}).status_code == 403
