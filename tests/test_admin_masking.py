"""What viewers do not get to see, wherever they look in the admin."""

import pytest
from django.urls import reverse

from tests.factories import make_dead_letter, make_decision, make_event, make_profile, make_source, make_user

pytestmark = pytest.mark.django_db

SECRETS = ["ann@example.com", "Archer", "+49 151 1234567", "user-4711", "anon-4711", "what she said", "203.0.113.77"]


@pytest.fixture
def paths():
    """Make a person whose every word is known, and return the pages on which they occur."""
    shop = make_source("shop")
    ann = make_profile(
        ("user_id", "user-4711"),
        ("email", "ann@example.com"),
        traits={"name": "Ann Archer", "email": "ann@example.com", "phone": "+49 151 1234567", "plan": "gold"},
    )
    visitor = make_profile(("anonymous_id", "anon-4711"), traits={"lastName": "Archer"})
    gone = make_profile(merged_into=ann, traits={"name": "Ann Archer"})
    make_event(ann, shop, properties={"said": "what she said"}, context={"ip": "203.0.113.77"})
    decision = make_decision(ann, visitor, detail={"left": "user-4711", "right": "anon-4711"})
    letter = make_dead_letter(shop, body=b'{"said": "what she said"}', detail="No such address: ann@example.com")
    return [
        "/admin/",
        "/admin/cdp/profile/",
        "/admin/cdp/profile/?q=ann@example.com",
        reverse("admin:cdp_profile_change", args=[ann.pk]),
        reverse("admin:cdp_profile_timeline", args=[ann.pk]),
        reverse("admin:cdp_profile_change", args=[visitor.pk]),
        reverse("admin:cdp_profile_change", args=[gone.pk]),
        reverse("admin:cdp_profile_history", args=[ann.pk]),
        "/admin/cdp/identitydecision/",
        reverse("admin:cdp_identitydecision_change", args=[decision.pk]),
        reverse("admin:cdp_identitydecision_history", args=[decision.pk]),
        "/admin/cdp/deadletter/",
        reverse("admin:cdp_deadletter_change", args=[letter.pk]),
        "/admin/search/?s=ann&extended=1",
        "/admin/autocomplete/?app_label=cdp&model_name=identitydecision&field_name=profile&term=ann@example.com",
    ]


def seen(client, paths):
    """Return the secrets on the pages that open, and where."""
    found: dict[str, str] = {}
    for path in paths:
        answer = client.get(path)
        # What somebody typed into a search stands in its box.
        text = answer.text.replace('value="ann@example.com"', "") if answer.status_code == 200 else ""
        found |= {secret: path for secret in SECRETS if secret in text}
    return found


def test_viewers_see_no_personal_data_anywhere(client, paths):
    client.force_login(make_user("viewer"))
    assert seen(client, paths) == {}


def test_operators_and_admins_see_all_of_it(client, paths):
    for role in ("operator", "admin"):
        client.force_login(make_user(role))
        assert set(seen(client, paths)) == set(SECRETS)


def test_somebody_without_a_role_sees_no_page_of_it(client, paths):
    client.force_login(make_user(""))
    assert {client.get(path).status_code for path in paths[1:-2]} <= {403, 404, 302}


def test_viewers_still_see_what_is_nobodys(client, paths):
    client.force_login(make_user("viewer"))
    text = client.get(paths[3]).text
    assert "a•••@e•••.com" in text
    assert "gold" in text
    assert "Signed Up" in text


def test_viewers_find_by_whole_identifiers_only(client, paths):
    client.force_login(make_user("viewer"))
    assert "A•••" in client.get("/admin/cdp/profile/", {"q": "ann@example.com"}).text
    assert "A•••" not in client.get("/admin/cdp/profile/", {"q": "ann@"}).text
    client.force_login(make_user("operator"))
    assert "Ann Archer" in client.get("/admin/cdp/profile/", {"q": "ann@"}).text
