"""Reading accounts by REST."""

from datetime import timedelta
from urllib.parse import quote
from uuid import uuid4

import pytest
from django.db import connection

from tests.factories import NOON, join, make_account, make_api_key, make_event, make_profile, make_source, make_user
from tests.test_api_profiles import walk

pytestmark = pytest.mark.django_db


@pytest.fixture
def get(client):
    headers = make_api_key("accounts:read", "profiles:read")
    return lambda path, **query: client.get(path, query, headers=headers)


def test_an_account_answers_with_its_document(get):
    account = make_account(("salesforce", "001"), ("group_id", "acme"), traits={"name": "Acme"}, version=4,
                           created_at=NOON)  # fmt: skip
    response = get("/v1/accounts/group_id:acme")
    assert response.headers["ETag"] == '"4"'
    body = response.json()
    assert body.pop("as_of") > "2026"
    assert body == {
        "id": str(account.pk),
        "identifiers": [
            {"namespace": "group_id", "value": "acme"},
            {"namespace": "salesforce", "value": "001"},
        ],
        "traits": {"name": "Acme"},
        "version": 4,
        "created_at": "2026-11-01T12:00:00Z",
        "updated_at": "2026-11-01T12:00:00Z",
    }
    assert get(f"/v1/accounts/{account.pk}").json()["id"] == get("/v1/accounts/salesforce:001").json()["id"]


@pytest.mark.parametrize("value", ["acme", "a/b", "a/b/members/x", "ä ?#%", "x:y"])
def test_an_account_is_found_by_any_value_of_an_identifier(get, value):
    account = make_account(("group_id", value))
    assert get(f"/v1/accounts/group_id:{quote(value, safe='')}").json()["id"] == str(account.pk)
    (listed,) = get("/v1/accounts", identifier=f"group_id:{value}").json()["results"]
    assert listed["id"] == str(account.pk)


@pytest.mark.parametrize("reference", ["group_id:nobody", "group_id:", "nonsense", "group_id:%00", str(uuid4())])
@pytest.mark.parametrize("tail", ["", "/members", "/events"])
def test_an_account_that_is_not_there_is_404(get, reference, tail):
    assert get(f"/v1/accounts/{reference}{tail}").status_code == 404


def test_accounts_are_listed_newest_first(get):
    made = [make_account(("group_id", f"g{number}")) for number in range(5)]
    pages = walk(get, "/v1/accounts?limit=2")
    assert [[row["id"] for row in page] for page in pages] == [
        [str(made[4].pk), str(made[3].pk)], [str(made[2].pk), str(made[1].pk)], [str(made[0].pk)],
    ]  # fmt: skip
    assert get("/v1/accounts", identifier="group_id:g9").json() == {"results": [], "next": None}
    assert get("/v1/accounts", identifier="acme").status_code == 400


def test_the_document_of_numbers_is_exact(get):
    account = make_account(("group_id", "acme"))
    with connection.cursor() as cursor:
        cursor.execute("UPDATE cdp_account SET traits = '{\"revenue\": 12345678901234567890.10}'")
    assert '"revenue": 12345678901234567890.10' in get(f"/v1/accounts/{account.pk}").text


def test_members_are_people_with_a_role_and_times(get):
    account = make_account(("group_id", "acme"))
    ann = make_profile(("user_id", "u1"), ("anonymous_id", "a1"), traits={"name": "Ann"})
    ben = make_profile(("user_id", "u2"))
    join(account, ann.identifiers.get(value="u1"), role="admin", day=5)
    join(account, ben.identifiers.get(), day=6, left=True)
    join(account, ann.identifiers.get(value="a1"), role="guest", day=2)
    join(make_account(), ann.identifiers.get(value="a1"), role="else", day=9)
    pages = walk(get, "/v1/accounts/group_id:acme/members?limit=1")
    shown = [[(row["profile"]["id"], row["role"], row["joined_at"], row["left_at"]) for row in page] for page in pages]
    assert shown == [
        [(str(ben.pk), "", "2026-11-07T12:00:00Z", "2026-11-07T12:00:00Z")],
        [(str(ann.pk), "admin", "2026-11-03T12:00:00Z", None)],
    ]
    assert pages[1][0]["profile"]["traits"] == {"name": "Ann"}


def test_a_person_left_when_the_newest_call_says_so_of_any_identifier(get):
    account = make_account(("group_id", "acme"))
    ann = make_profile(("user_id", "u1"), ("anonymous_id", "a1"))
    join(account, ann.identifiers.get(value="a1"), role="guest", day=1)
    join(account, ann.identifiers.get(value="u1"), day=3, left=True)
    (row,) = get("/v1/accounts/group_id:acme/members").json()["results"]
    assert (row["role"], row["joined_at"], row["left_at"]) == ("guest", "2026-11-02T12:00:00Z", "2026-11-04T12:00:00Z")
    ann.identifiers.filter(value="a1").update(profile=make_profile())
    rows = get("/v1/accounts/group_id:acme/members").json()["results"]
    assert [(row["role"], row["left_at"]) for row in rows] == [("guest", None), ("", "2026-11-04T12:00:00Z")]


def test_a_profile_lists_its_accounts(get):
    ann = make_profile(("user_id", "u1"), ("anonymous_id", "a1"))
    acme, brix = make_account(("group_id", "acme"), traits={"name": "Acme"}), make_account(("group_id", "brix"))
    join(acme, ann.identifiers.get(value="a1"), role="guest", day=1)
    join(acme, ann.identifiers.get(value="u1"), role="admin", day=3)
    join(brix, ann.identifiers.get(value="a1"), day=2)
    make_account(("group_id", "other"))
    pages = walk(get, "/v1/profiles/user_id:u1/accounts?limit=1")
    assert [[(row["account"]["id"], row["role"]) for row in page] for page in pages] == [
        [(str(brix.pk), "")], [(str(acme.pk), "admin")],
    ]  # fmt: skip
    assert pages[1][0]["account"]["traits"] == {"name": "Acme"}
    assert get("/v1/profiles/user_id:nobody/accounts").status_code == 404


def test_an_account_lists_the_group_calls_that_name_it(get):
    shop, ann, ben = make_source("shop"), make_profile(("user_id", "u1")), make_profile(("user_id", "u2"))
    make_account(("group_id", "acme"), ("crm", "1"))
    for minute, (who, named) in enumerate([(ann, "acme"), (ben, "acme"), (ann, "other"), (ben, "acme")]):
        make_event(who, shop, minute=minute, event_type="group", name="", properties={"n": minute},
                   extra={"groupId": named})  # fmt: skip
    make_event(ann, shop, event_type="track", extra={"groupId": "acme"})
    pages = walk(get, "/v1/accounts/crm:1/events?limit=2")
    assert [[row["properties"]["n"] for row in page] for page in pages] == [[3, 1], [0]]
    assert pages[0][0]["source"] == "shop"
    since = (NOON + timedelta(minutes=1)).isoformat()
    rows = get("/v1/accounts/group_id:acme/events", since=since, until=(NOON + timedelta(minutes=3)).isoformat()).json()
    assert [row["properties"]["n"] for row in rows["results"]] == [1]


def test_viewers_see_personal_data_of_accounts_masked(client):
    account = make_account(("group_id", "acme"), traits={"email": "info@acme.com", "plan": "gold"})
    ann = make_profile(("email", "ann@example.com"))
    join(account, ann.identifiers.get(), role="reachable at ann@example.com")
    make_event(ann, make_source("shop"), event_type="group", properties={"said": "secret"}, extra={"groupId": "acme"})
    client.force_login(make_user("viewer"))
    seen = client.get(f"/v1/accounts/{account.pk}").json()
    assert (seen["identifiers"], seen["traits"]) == (
        [{"namespace": "group_id", "value": "a•••"}], {"email": "i•••@a•••.com", "plan": "gold"}
    )  # fmt: skip
    assert client.get("/v1/accounts").json()["results"][0]["traits"] == seen["traits"]
    (member,) = client.get(f"/v1/accounts/{account.pk}/members").json()["results"]
    assert member["profile"]["identifiers"] == [{"namespace": "email", "value": "a•••@e•••.com"}]
    assert member["role"] == "reachable at a•••@e•••.com"
    (belonging,) = client.get(f"/v1/profiles/{ann.pk}/accounts").json()["results"]
    assert belonging["account"]["traits"] == seen["traits"]
    assert client.get(f"/v1/accounts/{account.pk}/events").json()["results"][0]["properties"] == {"said": "s•••"}
    client.force_login(make_user("operator"))
    assert client.get(f"/v1/accounts/{account.pk}").json()["traits"] == {"email": "info@acme.com", "plan": "gold"}


def test_each_list_asks_for_the_scope_of_what_it_shows(client):
    account = make_account(("group_id", "acme"))
    ann = make_profile(("user_id", "u1"))
    accounts_only, people_only = make_api_key("accounts:read"), make_api_key("profiles:read")

    def status(path, headers):
        return client.get(path, headers=headers).status_code

    for path in ("/v1/accounts", f"/v1/accounts/{account.pk}"):
        assert (status(path, accounts_only), status(path, people_only)) == (200, 403)
    for path in (f"/v1/accounts/{account.pk}/members", f"/v1/accounts/{account.pk}/events",
                 f"/v1/profiles/{ann.pk}/accounts"):  # fmt: skip
        assert (status(path, accounts_only), status(path, people_only)) == (403, 200)


def test_a_timeline_is_read_by_its_index():
    shop, ann = make_source("shop"), make_profile(("user_id", "u1"))
    make_event(ann, shop)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO event_stream (profile_id, anchor_id, identifiers, event_type, extra, source_id, message_id,"
            " occurred_at, received_at) SELECT profile_id, anchor_id, identifiers, 'group',"
            " jsonb_build_object('groupId', n::text), source_id, n::text, now(), now()"
            " FROM event_stream, generate_series(1, 20000) n"
        )
        cursor.execute("ANALYZE event_stream")
        cursor.execute(
            "EXPLAIN SELECT * FROM event_stream WHERE event_type = 'group' AND extra->>'groupId' = '77'"
            " ORDER BY occurred_at DESC, event_id DESC LIMIT 10"
        )
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "Seq Scan" not in plan
    assert "Index Scan" in plan
