"""The pages that draw who is who, and that take people apart."""

import re

import pytest
from django.urls import reverse

from cdp.models import AuditEntry, Identifier, IdentityDecision, Profile
from tests.factories import make_user
from tests.platform import message


@pytest.fixture
def ann(own_database, core):
    """Return the core with one person of two devices, and another whom a limit keeps apart, on Django's database."""
    core.apply(message("page", anonymousId="phone-123", name="Home", messageId="p-1"))
    core.apply(
        message("identify", userId="user-ann", anonymousId="phone-123", messageId="m-1",
                traits={"name": "Ann Archer", "email": "ann@example.com"})
    )  # fmt: skip
    core.apply(message("identify", userId="user-ann", anonymousId="laptop-456", messageId="m-2"))
    core.apply(message("track", anonymousId="laptop-456", event="Clicked", messageId="m-3"))
    core.apply(message("identify", userId="user-bob", anonymousId="phone-123", messageId="m-4", traits={"name": "Bob"}))
    return core


@pytest.fixture
def operator(ann, client):
    client.user = make_user("operator")
    client.force_login(client.user)
    return client


def id_of(core, identifier):
    return core.profile(identifier)["id"]


def page(core, identifier="user_id:user-ann"):
    return reverse("admin:cdp_profile_change", args=[id_of(core, identifier)])


def apart(core, identifier="user_id:user-ann"):
    return reverse("admin:cdp_profile_unmerge", args=[id_of(core, identifier)])


def rows(*values):
    return list(Identifier.objects.filter(value__in=values).order_by("pk").values_list("pk", flat=True))


def state(text):
    return re.search(r'name="state" value="(\d+)"', text)[1]


def said(client, address):
    return client.get(address).text


def take_apart(client, core, *values, identifier="user_id:user-ann", note=""):
    """Choose, look at the preview and confirm; return where that leads."""
    asked = {"identifier": rows(*values)}
    text = client.post(apart(core, identifier), asked).text
    return client.post(apart(core, identifier), {**asked, "state": state(text), "confirmed": "yes", "note": note})


def test_the_graph_shows_who_was_joined_by_what_and_who_was_refused(ann, operator):
    text = said(operator, page(ann))
    titles = re.findall(r"<title>\s*((?:Joined|Refused)[^<]*)</title>", text)
    assert len(titles) == 4
    [joined] = [one for one in titles if "phone-123 and user_id:user-ann" in one]
    assert re.fullmatch(
        r"Joined: anonymous_id:phone-123 and user_id:user-ann\. s\d+ \(Server\), .* UTC, message m-1,"
        r" rules version 1",
        joined,
    )
    [refused] = [one for one in titles if "user-bob" in one]
    assert refused.startswith("Refused, since one person would have too many values of user_id: ")
    assert text.count("mt-refused") == 1
    assert f'<a href="{page(ann, "user_id:user-bob")}" class="mt-near"' in text
    assert 'href="/admin/cdp/event/?q=m-2"' in text
    for edge in re.findall(r'href="#(edge-\d+)"', text):
        assert text.count(f'id="{edge}"') == 1


def test_the_preview_shows_both_sides_and_changes_nothing(ann, operator):
    before = list(Identifier.objects.order_by("pk").values_list("pk", "profile_id"))
    text = operator.post(apart(ann), {"identifier": rows("laptop-456")}).text
    assert "Nothing has changed yet." in text
    assert re.findall(r"(becomes a profile|stays) · (\d+) events?", text) == [
        ("stays", "3"), ("becomes a profile", "2"),
    ]  # fmt: skip
    assert "Ann Archer" in text
    assert list(Identifier.objects.order_by("pk").values_list("pk", "profile_id")) == before
    assert not IdentityDecision.objects.filter(kind="unmerge").exists()


def test_the_preview_says_who_else_would_take_them_in(ann, operator):
    text = operator.post(apart(ann), {"identifier": rows("phone-123")}).text
    assert re.findall(r"<code>(\S+)</code> · (takes them in|stays)", text) == [
        (str(id_of(ann, "user_id:user-ann")), "stays"), (str(id_of(ann, "user_id:user-bob")), "takes them in"),
    ]  # fmt: skip
    answer = take_apart(operator, ann, "phone-123")
    assert answer.headers["Location"] == page(ann, "user_id:user-bob")


def test_confirming_takes_apart_and_leads_to_the_new_profile(ann, operator):
    answer = take_apart(operator, ann, "laptop-456", note="Her brother's")
    assert (answer.status_code, answer.headers["Location"]) == (302, page(ann, "anonymous_id:laptop-456"))
    assert id_of(ann, "anonymous_id:laptop-456") != id_of(ann, "user_id:user-ann")
    text = said(operator, answer.headers["Location"])
    assert "1 identifier is this profile&#x27;s now. The others stayed with Ann Archer." in text
    decision = IdentityDecision.objects.get(kind="unmerge")
    assert (decision.author, decision.detail["note"]) == (f"admin:{operator.user.username}", "Her brother's")
    assert "Taken apart by people" in said(operator, page(ann))
    assert "somebody took the two apart" in said(operator, page(ann))
    assert AuditEntry.objects.get().action == "profile.unmerge"


def test_lifting_shows_its_consequences_and_joins_again(ann, operator):
    take_apart(operator, ann, "laptop-456")
    decision = IdentityDecision.objects.get(kind="unmerge")
    lift = reverse("admin:cdp_identitydecision_lift", args=[decision.pk])
    assert lift in said(operator, page(ann))
    assert lift in said(operator, reverse("admin:cdp_identitydecision_change", args=[decision.pk]))
    preview = operator.post(lift).text
    assert "Nothing has changed yet." in preview
    assert id_of(ann, "anonymous_id:laptop-456") != id_of(ann, "user_id:user-ann")
    answer = operator.post(lift, {"confirmed": "yes"})
    assert (answer.status_code, answer.headers["Location"]) == (302, page(ann))
    assert id_of(ann, "anonymous_id:laptop-456") == id_of(ann, "user_id:user-ann")
    text = operator.post(lift, {"confirmed": "yes"}, follow=True).text
    assert "There is no such unmerge, or it was lifted already." in text


def test_who_confirms_a_profile_that_has_changed_sees_it_anew(ann, operator):
    asked = {"identifier": rows("laptop-456")}
    before = state(operator.post(apart(ann), asked).text)
    ann.apply(message("identify", userId="user-ann", anonymousId="tablet-789"))
    text = operator.post(apart(ann), {**asked, "state": before, "confirmed": "yes"}).text
    assert "The profile has changed since you looked: nothing was done." in text
    assert not IdentityDecision.objects.filter(kind="unmerge").exists()
    answer = operator.post(apart(ann), {**asked, "state": state(text), "confirmed": "yes"})
    assert answer.status_code == 302
    assert id_of(ann, "anonymous_id:laptop-456") != id_of(ann, "user_id:user-ann")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "Choose some of the profile&#x27;s identifiers, but not all: the rest stays."),
        (["user-ann", "ann@example.com", "phone-123", "laptop-456"], "but not all"),
        (["user-bob"], "Some of them are another profile&#x27;s by now. Choose again."),
    ],
)
def test_what_cannot_be_taken_apart_is_said(ann, operator, values, words):
    assert words in operator.post(apart(ann), {"identifier": rows(*values)}, follow=True).text


def test_a_profile_of_one_identifier_has_no_form(ann, operator):
    assert apart(ann) in said(operator, page(ann))
    assert apart(ann, "user_id:user-bob") not in said(operator, page(ann, "user_id:user-bob"))


def test_viewers_see_the_graph_masked_and_no_buttons(ann, operator, client):
    said(operator, take_apart(operator, ann, "laptop-456").headers["Location"])
    decision = IdentityDecision.objects.get(kind="unmerge")
    joined = IdentityDecision.objects.get(reason="limit_user_id")
    client.force_login(make_user("viewer"))
    pages = [
        page(ann), page(ann, "user_id:user-bob"), page(ann, "anonymous_id:laptop-456"),
        *(reverse("admin:cdp_identitydecision_change", args=[one.pk]) for one in (decision, joined)),
    ]  # fmt: skip
    for address in pages:
        text = said(client, address)
        for secret in ("user-ann", "phone-123", "laptop-456", "ann@example.com", "Archer", "user-bob"):
            assert secret not in text
        for button in ("Preview taking apart", "/lift/", "Mark as reviewed", 'type="checkbox" name="identifier"'):
            assert button not in text
    assert "user_id:u•••" in said(client, page(ann))
    lift = reverse("admin:cdp_identitydecision_lift", args=[decision.pk])
    review = reverse("admin:cdp_identitydecision_review", args=[joined.pk])
    for address in (apart(ann), lift, review):
        assert client.post(address, {"identifier": rows("phone-123"), "confirmed": "yes"}).status_code == 403


def test_a_decision_shows_its_evidence_and_is_reviewed_once(ann, operator):
    decision = IdentityDecision.objects.get(kind="refusal")
    address = reverse("admin:cdp_identitydecision_change", args=[decision.pk])
    text = said(operator, address)
    assert "one person would have too many values of user_id" in text
    for part in ("phone-123", "user-bob", page(ann), page(ann, "user_id:user-bob"), "Mark as reviewed", "q=m-4"):
        assert part in text
    review = reverse("admin:cdp_identitydecision_review", args=[decision.pk])
    assert "1 decision marked as reviewed." in operator.post(review, follow=True).text
    decision.refresh_from_db()
    at = decision.reviewed_at
    assert decision.reviewed_by == f"admin:{operator.user.username}"
    assert "0 decisions marked as reviewed." in operator.post(review, follow=True).text
    decision.refresh_from_db()
    assert decision.reviewed_at == at
    assert AuditEntry.objects.filter(action="identity_decision.review").count() == 1


def test_the_list_is_filtered_and_reviewed_in_bulk(ann, operator):
    address = reverse("admin:cdp_identitydecision_changelist")

    def ids(**query):
        return set(
            map(int, re.findall(r"/admin/cdp/identitydecision/(\d+)/change/", operator.get(address, query).text))
        )

    refusal = IdentityDecision.objects.get(kind="refusal").pk
    everything = set(IdentityDecision.objects.values_list("pk", flat=True))
    assert ids() == everything
    assert ids(reason="limit_user_id") == ids(kind__exact="refusal") == {refusal}
    text = operator.post(address, {"action": "review_selected", "_selected_action": [refusal]}, follow=True).text
    assert "1 decision marked as reviewed." in text
    assert (ids(reviewed="yes"), ids(reviewed="no")) == ({refusal}, everything - {refusal})


def test_a_merge_is_taken_apart_from_its_decision(ann, operator):
    ann.apply(message("track", anonymousId="tv-1", event="Watched"))
    ann.apply(message("identify", userId="user-ann", anonymousId="tv-1", messageId="m-9"))
    merge = IdentityDecision.objects.filter(kind="merge").latest("pk")
    text = said(operator, reverse("admin:cdp_identitydecision_change", args=[merge.pk]))
    assert apart(ann) in text
    [hidden] = re.findall(r'name="identifier" value="(\d+)"', text)
    assert [int(hidden)] == rows("tv-1")
    preview = operator.post(apart(ann), {"identifier": [hidden]})
    assert "becomes" in preview.text or "stays" in preview.text
    take_apart(operator, ann, "tv-1")
    assert Profile.objects.get(pk=merge.other_id).merged_into_id is None
    assert apart(ann) not in said(operator, reverse("admin:cdp_identitydecision_change", args=[merge.pk]))
