"""The page on which people change a profile."""

import json
import re

import pytest
from django.urls import reverse

from cdp.models import AuditEntry, MergePolicy
from tests.factories import make_user
from tests.platform import message


@pytest.fixture
def ann(own_database, core):
    """Return the core with one person, beside Django on the same database."""
    core.apply(message("identify", userId="ann", traits={"name": "Ann", "age": 40, "note": "\nlines\r\nof text"}))
    return core


@pytest.fixture
def operator(ann, client):
    user = make_user("operator")
    client.force_login(user)
    client.name = user.username
    return client


def page(ann):
    return reverse("admin:cdp_profile_edit", args=[ann.profile("user_id:ann")["id"]])


def sent(client, ann, **fields):
    """Send the form as a browser has it, with these fields changed."""
    text = client.get(page(ann)).text
    version = re.search(r'name="version" value="(\d+)"', text)[1]
    shown = {
        f"trait:{name}": value if isinstance(value, str) else json.dumps(value)
        for name, value in ann.profile("user_id:ann")["traits"].items()
    }
    shown = {name: value.replace("\r\n", "\n").replace("\n", "\r\n") for name, value in shown.items()}
    return client.post(page(ann), {"version": version, **shown, **fields})


def test_what_was_not_touched_is_not_changed(ann, operator):
    answer = sent(operator, ann, **{"trait:name": "Annabel"})
    assert answer.status_code == 302
    assert ann.events()[-1]["properties"] == {"name": "Annabel"}
    assert ann.profile("user_id:ann")["traits"] == {"name": "Annabel", "age": 40, "note": "\nlines\r\nof text"}
    [entry] = AuditEntry.objects.all()
    assert (entry.actor, entry.detail["traits"]) == (f"admin:{operator.name}", ["name"])


def test_traits_are_added_taken_away_and_keep_their_kind(ann, operator):
    sent(operator, ann, **{"trait:age": "41", "remove:note": "on", "new_name": "vip", "new_value": "true"})
    assert ann.profile("user_id:ann")["traits"] == {"name": "Ann", "age": 41, "vip": True}
    sent(operator, ann, **{"trait:name": "42", "new_name": "motto", "new_value": "carpe diem"})
    assert ann.profile("user_id:ann")["traits"] == {"name": "42", "age": 41, "vip": True, "motto": "carpe diem"}


def test_who_was_not_quick_enough_is_told_and_sees_what_it_says_now(ann, operator):
    text = operator.get(page(ann)).text
    ann.apply(message("identify", userId="ann", traits={"name": "Anne"}))
    version = re.search(r'name="version" value="(\d+)"', text)[1]
    answer = operator.post(page(ann), {"version": version, "trait:name": "Annabel"})
    assert answer.status_code == 412
    assert "Somebody changed this profile while you were at it: nothing of yours was taken." in answer.text
    assert "<b>name</b> Annabel" in answer.text
    assert ">\nAnne</textarea>" in answer.text
    assert 'name="version" value="2"' in answer.text
    assert ann.profile("user_id:ann")["traits"]["name"] == "Anne"


def test_nothing_changed_is_said_so(ann, operator):
    answer = sent(operator, ann)
    assert (answer.status_code, "There is nothing to change." in answer.text) == (400, True)


def test_each_policy_has_its_field(ann, operator):
    for trait, policy in (("tags", "union"), ("points", "counter"), ("city", "ask")):
        MergePolicy.objects.create(trait=trait, policy=policy)
    other = ann.source("server")
    for source, city in ((1, "Bonn"), (other, 5)):
        traits = {"tags": ["vip", "new"], "points": {"$add": 2}, "city": city}
        ann.apply(message("identify", userId="ann", traits=traits), source=source)
    profile = reverse("admin:cdp_profile_change", args=[ann.profile("user_id:ann")["id"]])
    assert re.search(r"Sources disagree on\s+<b>city</b>", operator.get(profile).text)
    fields = {"trait:tags": "vip\r\nold", "trait:points": "-0.5", "choose:city": '"Bonn"', "trait:city": "5"}
    assert sent(operator, ann, **fields).status_code == 302
    traits = ann.profile("user_id:ann")["traits"]
    assert (traits["tags"], traits["points"], traits["city"]) == (["old", "vip"], 3.5, "Bonn")
    assert "Sources disagree" not in operator.get(profile).text


def test_consent_is_withdrawn_and_granted_with_evidence_alone(ann, operator):
    ann.apply(message("identify", userId="ann", traits={"consent": {
        "email": {"granted": True, "evidence": {"form": "x"}, "topics": {"news": {"granted": True}}},
    }}))  # fmt: skip
    key = 'consent:["email", "news"]'
    assert key in operator.get(page(ann)).text.replace("&quot;", '"')
    assert sent(operator, ann, **{key: "withdraw", "new_purpose": "sms"}).status_code == 302
    held = ann.profile("user_id:ann")["consent"]
    assert (held["email"]["granted"], held["email"]["topics"]["news"]["granted"]) == (True, False)
    assert held["sms"]["granted"] is False
    answer = sent(operator, ann, **{key: "grant"})
    assert (answer.status_code, "An opt-in without evidence does not count." in answer.text) == (400, True)
    assert sent(operator, ann, **{key: "grant", "evidence": "letter of 3 March"}).status_code == 302
    news = ann.profile("user_id:ann")["consent"]["email"]["topics"]["news"]
    assert (news["granted"], news["evidence"]) == (True, {"note": "letter of 3 March"})


def test_viewers_change_nothing_and_see_no_way_to(ann, client):
    client.force_login(make_user("viewer"))
    profile = reverse("admin:cdp_profile_change", args=[ann.profile("user_id:ann")["id"]])
    assert page(ann) not in client.get(profile).text
    assert client.get(page(ann)).status_code == 403
    assert client.post(page(ann), {"version": "1", "trait:name": "x"}).status_code == 403
    assert ann.profile("user_id:ann")["version"] == 1
