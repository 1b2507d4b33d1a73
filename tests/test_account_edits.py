"""What is said of an account alone: by a CRM's group calls without a person, and by people's edits."""

import json
import threading

import pytest
from django.db import connection

from cdp import account_edits, edits, integrity
from cdp.models import Account, AuditEntry, Event, MergePolicy, Source
from tests.factories import make_api_key, make_user
from tests.platform import message
from tests.test_accounts import account, group, members


def company(group_id="acme", **fields):
    """Return a group call that concerns no person, as a CRM's company gives one."""
    return group(group_id, membership=False, userId=None, **fields)


def test_a_company_without_people_is_an_account_and_nobody_s_event(core):
    said = company(traits={"name": "Acme"}, external=[("salesforce", "001")])
    core.apply(said, message(userId="u1"))
    assert account(core, "salesforce:001")["traits"] == {"name": "Acme"}
    assert members(core) == {}
    first, second = core.events()
    assert (first["profile_id"], first["anchor_id"], first["identifiers"]) == (None, 0, [])
    assert second["profile_id"] == core.profile("user_id:u1")["id"]
    assert len(core.rows("SELECT id FROM customer_profiles")) == 1
    assert core.apply(said).duplicates == 1
    partition = core.rows("SELECT tableoid::regclass::text AS name FROM event_stream")[0]["name"]
    assert integrity.count_orphans(core.writer, partition) == 0


def test_a_call_that_tells_of_no_member_leaves_the_person_s_membership_alone(core):
    core.apply(group(membership={"role": "owner", "left": True}))
    core.apply(group(day=2, membership=False, traits={"size": 3}))
    assert members(core)["user_id:u1"][0] == "owner"
    assert members(core)["user_id:u1"][2] is not None
    core.apply(group(day=2, membership=False, userId="u2"))
    assert list(members(core)) == ["user_id:u1"]
    assert core.profile("user_id:u2")["computed_traits"]["event_count"] == 1


def test_only_what_says_so_names_no_person_and_browsers_never_do(core):
    core.apply(group(userId=None), group(userId=None, membership={"role": "owner"}))
    core.apply(message("track", context={"membership": False}))
    core.apply(company(), source=core.source("browser"))
    assert core.letters() == ["missing_id"] * 4
    core.apply(company(), source=core.source("server", {"refused_namespaces": ["email"]}))
    assert account(core)["version"] == 1


@pytest.fixture
def acme(own_database, core):
    """Return the core with one account, beside Django on the same database."""
    core.apply(group(traits={"name": "Acme", "plan": "pro", "seats": 12}, membership={"role": "owner"}))
    return core


@pytest.fixture
def patch(acme, client):
    headers = make_api_key("accounts:write", "accounts:read", "profiles:read")

    def send(body, version=None, reference="group_id:acme", **more):
        version = account(acme)["version"] if version is None else version
        given = headers | ({"If-Match": f'"{version}"'} if version else {}) | more
        data = body if isinstance(body, str) else json.dumps(body)
        return client.patch(f"/v1/accounts/{reference}", data, content_type="application/json", headers=given)

    return send


def test_an_edit_answers_the_new_document_and_its_version(acme, patch):
    answer = patch('{"traits": {"plan": "gold", "seats": null, "revenue": 12345678901234567.89}}')
    assert (answer.status_code, answer.headers["ETag"]) == (200, '"2"')
    assert '"revenue": 12345678901234567.89' in answer.text
    assert answer.json()["traits"].keys() == {"name", "plan", "revenue"}
    assert account(acme)["version"] == 2


def test_an_edit_is_in_the_account_s_timeline_and_in_no_person_s(acme, patch, client):
    before = acme.profile("user_id:u1")
    patch({"traits": {"plan": "gold"}})
    assert acme.profile("user_id:u1") == before
    event = Event.objects.order_by("-event_id").first()
    source = Source.objects.get(kind="people")
    assert (event.event_type, event.properties, event.source_id, event.profile_id) == (
        "group", {"plan": "gold"}, source.pk, None,
    )  # fmt: skip
    headers = make_api_key("profiles:read")
    rows = client.get("/v1/accounts/group_id:acme/events", headers=headers).json()["results"]
    assert [(row["source"], row["identifiers"]) for row in rows] == [
        ("People", []), (rows[1]["source"], [{"namespace": "user_id", "value": "u1"}]),
    ]  # fmt: skip
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.object_id) == ("account.edit", str(account(acme)["id"]))
    assert entry.detail == {"traits": ["plan"], "version": 2}
    trace = client.get(f"/v1/trace/{event.message_id}", headers=headers).json()["events"][0]
    assert (trace["profile_then"], trace["profile_id"], trace["effects"]["computed"]) == (None, None, [])
    client.force_login(make_user("operator"))
    for page in (f"/admin/cdp/account/{account(acme)['id']}/change/", f"/admin/cdp/event/?q={event.message_id}"):
        assert client.get(page).status_code == 200


def test_who_was_not_quick_enough_learns_the_version_and_changes_nothing(acme, patch):
    acme.apply(group(day=2, traits={"plan": "basic"}))
    answer = patch({"traits": {"plan": "gold"}}, version=1)
    assert (answer.status_code, answer.headers["ETag"]) == (412, '"2"')
    assert (answer.json()["code"], answer.json()["version"]) == ("version_moved", 2)
    assert account(acme)["traits"]["plan"] == "basic"
    assert (len(acme.events()), AuditEntry.objects.count()) == (2, 0)


def test_of_edits_at_once_one_is_taken(acme):
    account_id, outcomes = account(acme)["id"], []
    edits.people_source()

    def try_it(number):
        try:
            account_edits.edit(account_id=account_id, versions=[1], traits={"plan": str(number)}, actor="admin:x")
            outcomes.append("taken")
        except edits.Moved as error:
            outcomes.append(str(error.version))
        finally:
            connection.close()

    threads = [threading.Thread(target=try_it, args=[number], daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(outcomes) == ["2", "2", "2", "taken"]


def test_an_edit_stands_above_an_event_from_the_future(acme, patch):
    acme.apply(
        message("group", userId="u1", groupId="acme", traits={"plan": "later"}, timestamp="2999-01-01T00:00:00Z")
    )
    assert patch({"traits": {"plan": "gold"}}).json()["traits"]["plan"] == "gold"


def test_merge_policies_hold_for_accounts_too(acme, patch):
    MergePolicy.objects.create(trait="labels", policy="union")
    MergePolicy.objects.create(trait="points", policy="counter")
    acme.connection.execute("UPDATE cdp_definitionversion SET version = version + 1")
    acme.apply(group(traits={"labels": ["a", "b"], "points": {"$add": 2}}),
               group(traits={"labels": ["c"], "points": {"$add": 3}}, userId="u2"))  # fmt: skip
    acme.apply(group(traits={"points": {"$add": 5}}))
    assert account(acme)["traits"]["points"] == 10
    assert "u1" not in json.dumps(account(acme)["registers"])
    answer = patch({"traits": {"labels": {"$remove": ["b"]}, "points": {"$add": -1}}})
    assert (answer.json()["traits"]["labels"], answer.json()["traits"]["points"]) == (["a", "c"], 9)
    assert patch({"traits": {"points": 7}}).status_code == 400


@pytest.mark.parametrize("if_match", ["", "*", '"x"'])
def test_an_edit_says_what_it_was_decided_on(patch, if_match):
    answer = patch({"traits": {"plan": "gold"}}, version=0, **({"If-Match": if_match} if if_match else {}))
    assert (answer.status_code, answer.json()["code"]) == (428, "version_required")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("[]", "invalid"), ("{", "invalid"), ("{}", "invalid"), ('{"traits": []}', "invalid"),
        ('{"traits": {"a": 1}, "consent": {}}', "invalid"), ('{"traits": {}}', "unfit_edit"),
        ('{"traits": {"consent": {"email": true}}}', "unfit_edit"), ('{"traits": {"a": "\\u0000"}}', "unfit_edit"),
    ],
)  # fmt: skip
def test_what_is_no_edit_is_400_and_changes_nothing(acme, patch, body, code):
    answer = patch(body)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert (account(acme)["version"], len(acme.events())) == (1, 1)


def test_changing_an_account_needs_its_scope_and_an_account(acme, patch):
    assert patch({"traits": {"a": 1}}, **make_api_key("accounts:read")).status_code == 403
    assert patch({"traits": {"a": 1}}, reference="group_id:nobody").status_code == 404
    assert Account.objects.get().version == 1
