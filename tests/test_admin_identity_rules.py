"""The page of the rules of who is who: looked at, tried, published."""

import re

import pytest
from django.urls import reverse

from cdp import identity_rules, rule_drafts
from cdp.models import IdentityRules
from tests.factories import make_user
from tests.platform import message

LIST, EDIT = reverse("admin:cdp_identityrules_changelist"), reverse("admin:cdp_identityrules_edit")


@pytest.fixture
def people(own_database, core):
    """Return the core with three people who share a kiosk and one with two addresses, on Django's database."""
    for number in range(3):
        core.apply(message("identify", anonymousId="kiosk-1", userId=f"user-{number}"))
    for address in ("ann@example.com", "archer@example.com"):
        core.apply(message("identify", userId="user-ann", traits={"email": address}))
    return core


@pytest.fixture
def admin(people, client):
    client.user = make_user("admin")
    client.force_login(client.user)
    return client


def page(version, what="change"):
    return reverse(f"admin:cdp_identityrules_{what}", args=[version])


def form(client, **changes):
    """Return the form as a browser has it, with these fields changed by namespace: `email__limit=1`."""
    text = client.get(EDIT).text
    found = dict(re.findall(r'<input name="(\w+:\d+)"[^>]*value="([^"]*)"', text))
    found |= {"rows": re.search(r'name="rows" value="(\d+)"', text)[1]}
    at = {value: name.partition(":")[2] for name, value in found.items() if name.startswith("name:") and value}
    return found | {
        f"{field}:{at['*' if namespace == 'others' else namespace]}": value
        for name, value in changes.items()
        for namespace, _, field in [name.partition("__")]
    }


def drafted(client, **changes):
    """Send the form, and return the version that it made."""
    answer = client.post(EDIT, form(client, **changes))
    assert answer.status_code == 302
    return int(re.search(r"/(\d+)/$", answer.headers["Location"])[1])


def test_the_rules_that_count_are_shown_with_what_is_blocked_everywhere(admin):
    text = admin.get(LIST).text
    for part in ("anonymous_id", "(all others)", "distinct_id", "[object object]", "As from the start"):
        assert part in text
    assert LIST in admin.get("/admin/").text


def test_a_draft_says_what_it_would_do_and_does_nothing(admin, people):
    version = drafted(
        admin, email__limit="1", anonymous_id__shared_after="2", email__blocked="INFO@example.com\r\n\r\n"
    )
    text = admin.get(page(version)).text
    assert "These rules would split 2, merge 0; largest cluster 3 → 2." in text
    assert re.search(r"becomes 2: of 2, 1 identifiers", text)
    row = IdentityRules.objects.get(pk=version)
    assert (row.status, row.author) == ("draft", f"admin:{admin.user.username}")
    assert row.namespaces["email"] == {"limit": 1, "priority": 10, "blocked": ["info@example.com"], "shared_after": 10}
    assert identity_rules.current().version == 1
    assert "archer@example.com" not in str(row.progress)
    assert people.profile("email:ann@example.com")["id"] == people.profile("email:archer@example.com")["id"]


def test_publishing_applies_to_the_past_and_shows_progress(admin, people):
    version = drafted(admin, email__limit="1")
    text = admin.post(page(version, "publish"), follow=True).text
    assert "The rules count for new evidence now; the past follows." in text
    assert f'data-progress="{page(version, "progress")}"' in text
    waiting = admin.get(page(version, "progress")).json()
    assert waiting == {"over": False, "words": "The job begins within a minute."}
    identity_rules.apply()
    done = admin.get(page(version, "progress")).json()
    assert done["over"] is True
    assert re.fullmatch(r"(\d) of \1 profiles looked at: 1 split, 0 merged\.", done["words"])
    text = admin.get(page(version)).text
    assert "data-progress" not in text
    assert "These rules would split 1, merge 0; largest cluster 3 → 2." in text
    assert people.profile("email:ann@example.com")["id"] != people.profile("email:archer@example.com")["id"]
    again = admin.post(page(version, "publish"), follow=True).text
    assert f"There is no draft {version} of the identity rules." in again


def test_namespaces_come_and_go(admin):
    fields = form(admin)
    free = [name for name, value in fields.items() if name.startswith("name:") and not value]
    number = free[0].partition(":")[2]
    email = next(name.partition(":")[2] for name, value in fields.items() if value == "email")
    answer = admin.post(EDIT, {**fields, free[0]: "crm_id", f"limit:{number}": "1", f"remove:{email}": "on"})
    row = IdentityRules.objects.latest("version")
    assert answer.headers["Location"] == page(row.pk)
    assert set(row.namespaces) == {"user_id", "anonymous_id", "crm_id", "*"}
    assert row.namespaces["crm_id"]["limit"] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"email__limit": "many"}, "email: `limit` is a whole number from 1 to 1000."),
        ({"user_id__limit": "0"}, "user_id: `limit` is a whole number from 1 to 1000."),
        ({"email__name": "user_id"}, "There are two rows for user_id. Take one away."),
        ({"others__remove": "on"}, "has to be among them, for all others."),
    ],
)
def test_what_cannot_be_is_said_and_nothing_typed_is_lost(admin, changes, words):
    answer = admin.post(EDIT, form(admin, **changes) | {"note": "because"})
    assert (answer.status_code, words in answer.text) == (400, True)
    assert ">because</textarea>" in answer.text
    assert IdentityRules.objects.count() == 1


def test_a_dry_run_that_takes_long_goes_on_as_a_task(admin, people, monkeypatch):
    monkeypatch.setattr(identity_rules, "TOGETHER", 1)
    monkeypatch.setattr(rule_drafts.rehearse, "__kwdefaults__", {"seconds": 0.0})
    version = drafted(admin, email__limit="1", anonymous_id__shared_after="2")
    assert "There are many people to look at: it goes on in the background." in admin.get(page(version)).text
    assert admin.get(page(version, "progress")).json() == {"over": False, "words": "The dry run goes on."}
    rule_drafts.rehearse(version, seconds=None)
    assert admin.get(page(version, "progress")).json()["over"] is True
    assert "would split 2" in admin.get(page(version)).text


def test_a_dry_run_against_other_rules_is_made_again(admin, people):
    first, second = drafted(admin, email__limit="1"), drafted(admin, anonymous_id__shared_after="2")
    admin.post(page(first, "publish"))
    identity_rules.apply()
    assert "Other rules count since." in admin.get(page(second)).text
    text = admin.post(page(second, "try"), follow=True).text
    assert "Other rules count since." not in text
    # It would undo what the first has done.
    assert "would split 1, merge 1" in text


def test_operators_try_admins_publish_and_viewers_look(people, client):
    client.force_login(make_user("operator"))
    version = drafted(client, email__limit="1", email__blocked="info@example.com")
    text = client.get(page(version)).text
    assert ("Publish" in text, "Dry run again" in text) == (False, True)
    assert client.post(page(version, "publish")).status_code == 403
    client.force_login(make_user("viewer"))
    for address in (LIST, page(version)):
        text = client.get(address).text
        assert "edit/" not in text
        for secret in ("info@example.com", "user-ann", "archer@example.com"):
            assert secret not in text
    assert client.get(EDIT).status_code == 403
    for what in ("try", "publish"):
        assert client.post(page(version, what)).status_code == 403
    client.force_login(make_user(""))
    for address in (LIST, page(version), page(version, "progress")):
        assert client.get(address).status_code == 403


def test_versions_that_are_not_there_are_404(admin):
    for address in (page(99), page(99, "progress"), page(2**40)):
        assert admin.get(address).status_code == 404
