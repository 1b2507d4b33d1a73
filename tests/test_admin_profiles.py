"""Profiles in the admin: found by identifiers, and what their page tells."""

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from cdp import lookup
from cdp.admin import base
from cdp.admin.timelines import PAGE
from tests.factories import NOON, make_decision, make_event, make_profile, make_source, make_user

pytestmark = pytest.mark.django_db
LIST = "/admin/cdp/profile/"


@pytest.fixture
def operator(client):
    client.force_login(make_user("operator"))
    return client


@pytest.fixture
def ann():
    return make_profile(
        ("user_id", "user-1"),
        ("email", "ann@example.com"),
        traits={"name": "Ann Archer", "address": {"city": "Lisbon"}},
        computed_traits={"event_count": 3, "last_seen": "2026-11-01T12:30:00Z"},
    )


def page_of(profile):
    return reverse("admin:cdp_profile_change", args=[profile.pk])


def found(client, term):
    """Return the ids of the profiles that a search lists."""
    text = client.get(LIST, {"q": term}).text
    return re.findall(r"/admin/cdp/profile/([0-9a-f-]{36})/change/", text)


@pytest.mark.parametrize(
    "term", ["user-1", "user_id:user-1", "ann@example.com", "email:ann@example.com", "ann@", "use", "email:an"]
)
def test_a_profile_is_found_by_an_identifier_or_its_beginning(operator, ann, term):
    make_profile(("user_id", "somebody-else"))
    assert found(operator, term) == [str(ann.pk)]


def test_a_profile_is_found_by_its_id(operator, ann):
    make_profile()
    assert found(operator, str(ann.pk)) == [str(ann.pk)]


@pytest.mark.parametrize("term", ["nobody", "user-11", "email:x", "%", "_", "'; --"])
def test_what_nobody_has_finds_nothing(operator, ann, term):
    assert found(operator, term) == []


def test_a_value_of_an_unusual_namespace_is_found(operator):
    profile = make_profile(("crm", "c:1"))
    assert found(operator, "crm:c:1") == found(operator, "c:1") == [str(profile.pk)]


def test_a_search_uses_the_unique_index(ann):
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO cdp_identifier (namespace, value, profile_id, created_at, registers, trait_states)"
            " SELECT 'anonymous_id', md5(n::text), %s, now(), '{}', '{}' FROM generate_series(1, 20000) n",
            [ann.pk],
        )
        cursor.execute("ANALYZE cdp_identifier")
        with CaptureQueriesContext(connection) as captured:
            lookup.search("ann@", limit=10, prefix=True)
        searches = [query["sql"] for query in captured if "cdp_identifier" in query["sql"]]
        assert len(searches) == 4  # the namespaces, then one range in each of three
        for query in searches:
            cursor.execute("EXPLAIN " + query)
            plan = "\n".join(row[0] for row in cursor.fetchall())
            assert "Seq Scan" not in plan
            assert "identifier_namespace_value" in plan


def test_the_list_shows_name_identifiers_events_and_last_seen(operator, ann):
    make_profile(merged_into=ann)
    text = operator.get(LIST).text
    for shown in ("Ann Archer", "user-1", "ann@example.com", "1 Nov 2026, 12:30"):
        assert shown in text
    assert re.findall(r"/admin/cdp/profile/([0-9a-f-]{36})/change/", text) == [str(ann.pk)]


def test_the_list_counts_up_to_a_cap(operator, monkeypatch):
    for number in range(7):
        make_profile(("user_id", f"user-{number}"))
    monkeypatch.setattr(base, "COUNT_CAP", 5)
    with CaptureQueriesContext(connection) as captured:
        text = operator.get(LIST).text
    assert "The first 5 profiles. Search to find others." in text
    counts = [query["sql"] for query in captured if "COUNT(*)" in query["sql"] and "customer_profiles" in query["sql"]]
    assert counts
    assert all("LIMIT 6" in query for query in counts)


def test_the_page_tells_who_they_are_and_what_is_known(operator, ann):
    make_decision(ann, make_profile(("anonymous_id", "anon-9")), reason="identify")
    text = operator.get(page_of(ann)).text
    for shown in ("Ann Archer", str(ann.pk), "user-1", "ann@example.com", "since 1 Nov 2026", "Lisbon", "event_count"):
        assert shown in text
    assert "with anon-9" in text


def test_the_timeline_is_shown_a_page_at_a_time(operator, ann):
    shop = make_source("shop")
    for minute in range(PAGE + 3):
        make_event(ann, shop, minute=minute, name=f"Event {minute:02}.", properties={"n": minute})
    text = operator.get(page_of(ann)).text
    assert re.findall(r"Event (\d\d)\.<", text) == [f"{n:02}" for n in range(PAGE + 2, 2, -1)]
    (older,) = re.findall(r'hx-get="(/admin/cdp[^"]+)"', text)
    rest = operator.get(older.replace("&amp;", "&")).text
    assert re.findall(r"Event (\d\d)\.<", rest) == ["02", "01", "00"]
    assert "Load older" not in rest
    assert "<html" not in rest


def test_the_timeline_is_filtered_by_type_and_survives_nonsense(operator, ann):
    shop = make_source("shop")
    make_event(ann, shop, event_type="page", name="A page.")
    make_event(ann, shop, event_type="track", name="A track.")
    assert "A track." not in operator.get(page_of(ann), {"type": "page"}).text
    assert "A track." in operator.get(page_of(ann), {"type": "nonsense", "before": "nonsense"}).text


def test_what_senders_say_is_text_and_not_markup(operator):
    evil = "<script>alert(1)</script>"
    profile = make_profile(("user_id", evil), traits={"name": evil, evil: evil})
    make_event(profile, make_source("shop"), name=evil, properties={evil: evil})
    assert evil not in operator.get(page_of(profile)).text
    assert evil not in operator.get(LIST).text


def test_a_deep_event_does_not_break_the_page(operator, ann):
    event_id = make_event(ann, make_source("shop"), name="Deep.")
    for depth in (400, 900, 3000):
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE event_stream SET properties = %s WHERE event_id = %s",
                ['{"a": ' + "[" * depth + "]" * depth + "}", event_id],
            )
        assert "Deep." in operator.get(page_of(ann)).text
        operator.force_login(make_user("viewer"))
        assert "Deep." in operator.get(page_of(ann)).text


def test_a_merged_profile_points_on(operator, ann):
    gone = make_profile(merged_into=make_profile(merged_into=ann))
    text = operator.get(page_of(gone)).text
    assert "This profile was merged." in text
    assert f'href="{page_of(ann)}">Ann Archer</a>' in text


@pytest.mark.parametrize("reference", ["00000000-0000-0000-0000-000000000000", "nonsense"])
def test_a_profile_that_is_not_there_is_404(operator, reference):
    assert operator.get(f"{LIST}{reference}/change/").status_code == 404


def test_lookups_that_scan_or_tell_are_refused(operator, ann):
    for lookup_ in ("traits__email__startswith", "identity_graph__icontains", "version__gt", "identifiers__value"):
        assert operator.get(LIST, {lookup_: "1"}).status_code == 400


def test_a_profile_without_anything_has_a_page(operator):
    profile = make_profile(created_at=NOON)
    text = operator.get(page_of(profile)).text
    assert "No identifiers." in text
    assert "No events." in text
