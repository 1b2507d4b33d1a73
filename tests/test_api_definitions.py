"""Computed traits and identity decisions by REST."""

import pytest

from tests.factories import make_api_key, make_decision, make_profile, make_source, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def get(client):
    headers = make_api_key("profiles:read")
    return lambda path, **query: client.get(path, query, headers=headers)


def test_the_first_computed_traits_are_there(get):
    rows = {row["name"]: row for row in get("/v1/traits").json()["results"]}
    assert {"event_count", "first_seen", "last_seen", "total_spent"} <= set(rows)
    assert rows["total_spent"]["options"] == {"property": "total"}
    assert (rows["total_spent"]["event_type"], rows["total_spent"]["event_name"]) == ("track", "Order Completed")


def test_decisions_are_filtered_by_profile_and_kind(get):
    ann = make_profile(("user_id", "user-1"))
    visitor, bob = make_profile(merged_into=ann), make_profile(("user_id", "user-2"))
    merge = make_decision(ann, visitor, source=make_source("shop"))
    refusal = make_decision(ann, bob, kind="refusal", reason="limit")
    elsewhere = make_decision(bob, None, kind="unmerge")

    def ids(**query):
        return [row["id"] for row in get("/v1/identity-decisions", **query).json()["results"]]

    assert ids() == [elsewhere.pk, refusal.pk, merge.pk]
    assert ids(profile=str(ann.pk)) == [refusal.pk, merge.pk]
    assert ids(profile="user_id:user-2") == [elsewhere.pk, refusal.pk]
    assert ids(profile=str(ann.pk), kind="merge") == [merge.pk]
    assert get("/v1/identity-decisions", profile="nobody").status_code == 404
    assert get("/v1/identity-decisions", kind="guess").status_code == 400


def test_a_decision_names_both_profiles_and_its_source(get):
    ann, visitor = make_profile(), make_profile()
    make_decision(ann, visitor, source=make_source("shop"))
    row = get("/v1/identity-decisions").json()["results"][0]
    assert (row["profile"], row["other"], row["source"]) == (str(ann.pk), str(visitor.pk), "shop")
    assert row["detail"] == {"left": ["user_id", "user-1"]}


def test_viewers_see_decisions_without_the_identifiers(client):
    make_decision(make_profile(), detail={"left": ["email", "ann@example.com"]})
    client.force_login(make_user("viewer"))
    assert "ann@" not in client.get("/v1/identity-decisions").text
