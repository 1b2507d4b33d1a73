"""Reading profiles by REST."""

from contextlib import closing
from urllib.parse import quote
from uuid import uuid4

import pytest
import redis
from django.conf import settings
from django.db import connection

from tests.factories import NOON, make_api_key, make_profile, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def get(client):
    headers = make_api_key("profiles:read")
    return lambda path, **query: client.get(path, query, headers=headers)


def walk(get, address):
    """Follow `next` to the end; return the pages."""
    pages = []
    while address:
        page = get(address).json()
        pages.append(page["results"])
        address = page["next"]
    return pages


def test_a_profile_answers_with_its_document(get):
    profile = make_profile(
        ("email", "ann@example.com"),
        ("user_id", "user-1"),
        traits={"name": "Ann"},
        computed_traits={"event_count": 2},
        version=4,
        created_at=NOON,
    )
    response = get(f"/v1/profiles/{profile.pk}")
    assert response.headers["ETag"] == '"4"'
    body = response.json()
    assert body.pop("as_of") > "2026"
    assert body == {
        "id": str(profile.pk),
        "identifiers": [
            {"namespace": "user_id", "value": "user-1"},
            {"namespace": "email", "value": "ann@example.com"},
        ],
        "traits": {"name": "Ann"},
        "computed_traits": {"event_count": 2},
        "consent": {},
        "version": 4,
        "created_at": "2026-11-01T12:00:00Z",
        "updated_at": "2026-11-01T12:00:00Z",
    }


@pytest.mark.parametrize("value", ["user-1", "a/b", "a/b/events/x", "ä ?#%", "x:y", "user@example.com"])
def test_a_profile_is_found_by_any_value_of_an_identifier(get, value):
    profile = make_profile(("crm", value))
    assert get(f"/v1/profiles/crm:{quote(value, safe='')}").json()["id"] == str(profile.pk)
    assert get("/v1/profiles", identifier=f"crm:{value}").json()["results"][0]["id"] == str(profile.pk)


@pytest.mark.parametrize("reference", ["crm:nobody", "crm:", ":x", "nonsense", "crm:%00", "crm:" + "x" * 5000])
def test_what_nobody_has_is_404(get, reference):
    response = get(f"/v1/profiles/{reference}")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_an_identifier_that_nobody_has_filters_everything_out(get):
    make_profile(("user_id", "user-1"))
    assert get("/v1/profiles", identifier="user_id:user-2").json() == {"results": [], "next": None}
    assert get("/v1/profiles", identifier="user-2").json()["errors"] == {
        "identifier": ["Write it as namespace:value, such as user_id:42."]
    }


def test_a_merged_profile_answers_as_the_one_it_became_part_of(get):
    last = make_profile(("user_id", "user-1"))
    middle = make_profile(merged_into=last)
    first = make_profile(merged_into=middle)
    for profile in (first, middle, last):
        assert get(f"/v1/profiles/{profile.pk}").json()["id"] == str(last.pk)


def test_the_list_is_newest_first_a_page_at_a_time_without_merged_ones(get):
    profiles = [make_profile(("user_id", f"user-{number}")) for number in range(5)]
    make_profile(merged_into=profiles[0])
    same_instant = [make_profile(created_at=NOON) for _ in range(3)]
    pages = walk(get, "/v1/profiles?limit=3")
    expected = [str(profile.pk) for profile in reversed(profiles)] + sorted(
        (str(profile.pk) for profile in same_instant), reverse=True
    )
    assert [[row["id"] for row in page] for page in pages] == [expected[:3], expected[3:6], expected[6:]]


def test_a_page_that_ends_with_the_list_has_no_next(get):
    for _ in range(2):
        make_profile()
    assert get("/v1/profiles", limit=2).json()["next"] is None


def test_next_keeps_the_other_parameters(get):
    for _ in range(3):
        make_profile()
    following = get("/v1/profiles", limit=1).json()["next"]
    assert following.startswith("http://testserver/v1/profiles?")
    assert "limit=1" in following


def test_the_list_counts_nothing_and_is_two_queries(get, django_assert_num_queries):
    for number in range(3):
        make_profile(("user_id", f"user-{number}"))
    get("/v1/profiles")
    with django_assert_num_queries(2) as captured:  # the key, the page
        get("/v1/profiles")
    assert not [query for query in captured if "count(" in query["sql"].lower()]


@pytest.mark.parametrize("cursor", ["x", "bm9wZQ==", "WyIxIl0=", "W10=", "eyJhIjogMX0=", "ä", "WzEsMl0="])
def test_a_bad_cursor_is_400_and_says_so(get, cursor):
    response = get("/v1/profiles", cursor=cursor)
    assert (response.status_code, response.json()["code"]) == (400, "bad_cursor")
    assert "cursor" in response.json()["message"]


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1.5"])
def test_a_limit_that_is_none_is_400(get, limit):
    response = get("/v1/profiles", limit=limit)
    assert response.status_code == 400
    assert list(response.json()["errors"]) == ["limit"]


def test_a_limit_beyond_the_greatest_counts_as_the_greatest(get, monkeypatch):
    monkeypatch.setattr("cdp.api.lists.MAX_LIMIT", 2)
    for _ in range(3):
        make_profile()
    assert len(get("/v1/profiles", limit=1000).json()["results"]) == 2


def test_a_misspelt_parameter_is_400(get):
    response = get("/v1/profiles", identifer="user_id:1")
    assert response.status_code == 400
    assert response.json()["message"] == "identifer: There is no such field. Known: cursor, identifier, limit."


def test_numbers_keep_the_digits_they_were_stored_with(client, get):
    profile = make_profile()
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE customer_profiles SET traits = '{\"exact\": 0.12345678901234567890}' WHERE id = %s", [profile.pk]
        )
    assert b'"exact": 0.12345678901234567890' in get(f"/v1/profiles/{profile.pk}").content


def test_the_identifiers_of_a_profile_newest_first(get):
    profile = make_profile(("user_id", "user-1"), ("email", "ann@example.com"), ("anonymous_id", "anon-1"))
    pages = walk(get, f"/v1/profiles/{profile.pk}/identifiers?limit=2")
    assert pages == [
        [
            {"namespace": "anonymous_id", "value": "anon-1", "created_at": "2026-11-01T12:00:00Z"},
            {"namespace": "email", "value": "ann@example.com", "created_at": "2026-11-01T12:00:00Z"},
        ],
        [{"namespace": "user_id", "value": "user-1", "created_at": "2026-11-01T12:00:00Z"}],
    ]


def test_viewers_see_personal_data_masked_and_operators_do_not(client):
    profile = make_profile(("email", "ann@example.com"), traits={"email": "ann@example.com", "plan": "gold"})
    address = f"/v1/profiles/{profile.pk}"
    client.force_login(make_user("viewer"))
    seen = client.get(address).json()
    assert seen["identifiers"] == [{"namespace": "email", "value": "a•••@e•••.com"}]
    assert seen["traits"] == {"email": "a•••@e•••.com", "plan": "gold"}
    assert client.get("/v1/profiles").json()["results"][0]["identifiers"] == seen["identifiers"]
    assert client.get(f"{address}/identifiers").json()["results"][0]["value"] == "a•••@e•••.com"

    client.force_login(make_user("operator"))
    assert client.get(address).json()["traits"] == {"email": "ann@example.com", "plan": "gold"}
    assert client.get(f"{address}/identifiers").json()["results"][0]["value"] == "ann@example.com"


@pytest.fixture
def reached():
    """Let the cache say that partition 3 was processed to 1764-1."""
    with closing(redis.Redis.from_url(settings.CONFIG.cache_url)) as cache:
        cache.set("at:3", "1764-1")
        yield
        cache.delete("at:3")


@pytest.mark.usefixtures("reached")
def test_a_read_waits_until_the_asked_position_is_processed(client, monkeypatch):
    headers = make_api_key("profiles:read")
    make_profile(("user_id", "user-1"))
    monkeypatch.setattr("cdp.collector.reads.WAIT_SECONDS", 0.05)

    def read(token):
        return client.get("/v1/profiles/user_id:user-1", {"min_position": token}, headers=headers)

    assert read("3.1764-1").status_code == 200
    late = read("3.1764-2")
    assert (late.status_code, late.json()["code"]) == (504, "position_not_reached")
    assert late.headers["Retry-After"] == "5"
    bad = read("nonsense")
    assert (bad.status_code, bad.json()["code"]) == (400, "bad_position")


def test_an_id_of_no_profile_is_404_everywhere(get):
    for tail in ("", "/events", "/identifiers"):
        assert get(f"/v1/profiles/{uuid4()}{tail}").status_code == 404
