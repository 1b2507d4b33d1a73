"""Accounts in the admin: found by what they are called, and what their page and a person's page tell."""

import re

import pytest
from django.contrib.auth.models import Permission
from django.urls import reverse

from cdp.admin.accounts import PAGE
from tests.factories import join, make_account, make_event, make_profile, make_source, make_user

pytestmark = pytest.mark.django_db
LIST = "/admin/cdp/account/"


@pytest.fixture
def operator(client):
    client.force_login(make_user("operator"))
    return client


@pytest.fixture
def acme():
    return make_account(("crm", "c-77"), ("group_id", "acme"), traits={"name": "Acme Lighting", "seats": 12})


def page_of(account):
    return reverse("admin:cdp_account_change", args=[account.pk])


def found(client, term=""):
    return re.findall(r"/admin/cdp/account/([0-9a-f-]{36})/change/", client.get(LIST, {"q": term}).text)


@pytest.mark.parametrize("term", ["acme", "group_id:acme", "c-77", "crm:c-77", "ac", "crm:c"])
def test_an_account_is_found_by_what_it_is_called_or_its_beginning(operator, acme, term):
    make_account(("group_id", "other"))
    assert found(operator, term) == [str(acme.pk)]


def test_an_account_is_found_by_its_id_and_viewers_find_whole_names_only(operator, acme):
    assert found(operator, str(acme.pk)) == [str(acme.pk)]
    assert found(operator, "cme") == []
    operator.force_login(make_user("viewer"))
    assert found(operator, "ac") == []
    assert found(operator, "acme") == [str(acme.pk)]


def test_the_list_shows_names_and_identifiers_in_few_queries(operator, acme, django_assert_max_num_queries):
    nameless = [make_account(("group_id", f"nameless-{number}")) for number in range(20)]
    with django_assert_max_num_queries(12):
        text = operator.get(LIST).text
    for shown in ("Acme Lighting", "acme", "c-77", "nameless-7"):
        assert shown in text
    assert found(operator) == [str(one.pk) for one in reversed([acme, *nameless])]


def test_the_page_tells_what_is_known_and_who_belongs(operator, acme):
    ann = make_profile(("user_id", "u1"), traits={"name": "Ann Archer"})
    ben = make_profile(("user_id", "u2"), traits={"name": "Ben Baker"})
    join(acme, ann.identifiers.get(), role="owner", day=3)
    join(acme, ben.identifiers.get(), day=5, left=True)
    make_event(ann, make_source("shop"), event_type="group", name="", properties={"seats": 12},
               extra={"groupId": "acme"})  # fmt: skip
    text = operator.get(page_of(acme)).text
    for shown in ("Acme Lighting", str(acme.pk), "c-77", "seats", "Ann Archer", "owner", "since 4 Nov 2026",
                  "6 Nov 2026 to 6 Nov 2026", "u1 · seats"):  # fmt: skip
        assert shown in text
    assert reverse("admin:cdp_profile_change", args=[ann.pk]) in text


def test_members_and_group_calls_are_shown_a_page_at_a_time(operator, acme):
    shop = make_source("shop")
    for number in range(PAGE + 2):
        person = make_profile(("user_id", f"u{number:02}"))
        join(acme, person.identifiers.get())
        make_event(person, shop, minute=number, event_type="group", name="", extra={"groupId": "acme"})
    text = operator.get(page_of(acme)).text
    members, calls = (
        [address.replace("&amp;", "&") for address in re.findall(rf'hx-get="([^"]+/{part}/[^"]+)"', text)]
        for part in ("members", "timeline")
    )
    assert len(re.findall(r'class="mt-link" href="/admin/cdp/profile/', text)) == PAGE
    rest = operator.get(members[0]).text
    assert re.findall(r">(u\d\d)</a>", rest) == ["u01", "u00"]
    assert "Load more" not in rest
    assert re.findall(r'mt-title">(u\d\d)', operator.get(calls[0]).text) == ["u01", "u00"]
    for nonsense in ("member", "before"):
        assert operator.get(page_of(acme), {nonsense: "nonsense"}).status_code == 200


def test_the_page_of_a_person_shows_their_accounts(operator, acme):
    ann = make_profile(("user_id", "u1"), ("anonymous_id", "a1"))
    for identifier in ann.identifiers.all():
        join(acme, identifier, role="owner", day=3)
    text = operator.get(reverse("admin:cdp_profile_change", args=[ann.pk])).text
    assert re.findall(rf'href="{page_of(acme)}">([^<]+)</a>', text) == ["Acme Lighting"]
    assert "owner" in text


def test_viewers_see_personal_data_of_accounts_masked(client):
    account = make_account(("group_id", "annco-4711"), traits={"name": "Ann Archer & Co", "plan": "gold"})
    ann = make_profile(("email", "ann@example.com"))
    join(account, ann.identifiers.get(), role="via ann@example.com")
    make_event(ann, make_source("shop"), event_type="group", name="", properties={"said": "what she said"},
               extra={"groupId": "annco-4711"})  # fmt: skip
    pages = [LIST, f"{LIST}?q=annco-4711", page_of(account), reverse("admin:cdp_account_members", args=[account.pk]),
             reverse("admin:cdp_account_timeline", args=[account.pk]),
             reverse("admin:cdp_profile_change", args=[ann.pk])]  # fmt: skip
    secrets = ["annco-4711", "Archer", "ann@example.com", "what she said"]

    def seen():
        # What somebody typed into a search stands in its box and in the addresses of what it found.
        texts = [re.sub('(value="|q%3D)annco-4711', "", client.get(page).text) for page in pages]
        return {secret for secret in secrets for text in texts if secret in text}

    client.force_login(make_user("viewer"))
    assert seen() == set()
    assert "gold" in client.get(page_of(account)).text
    client.force_login(make_user("operator"))
    assert seen() == set(secrets)


def test_who_may_see_accounts_alone_sees_no_people(client, acme):
    join(acme, make_profile(("user_id", "u1")).identifiers.get(), role="owner")
    user = make_user("")
    user.user_permissions.add(Permission.objects.get(codename="view_account"))
    client.force_login(user)
    text = client.get(page_of(acme)).text
    assert "Members" not in text
    assert "owner" not in text
    for part in ("members", "timeline"):
        assert client.get(f"{LIST}{acme.pk}/{part}/").status_code == 404


def test_what_senders_say_of_an_account_is_text_and_not_markup(operator):
    evil = "<script>alert(1)</script>"
    account = make_account(("group_id", evil), traits={"name": evil, evil: evil})
    join(account, make_profile(("user_id", evil)).identifiers.get(), role=evil)
    assert evil not in operator.get(page_of(account)).text
    assert evil not in operator.get(LIST).text


def test_an_account_without_anything_has_a_page(operator):
    text = operator.get(page_of(make_account())).text
    for shown in ("No identifiers.", "No members.", "No events."):
        assert shown in text
    assert operator.get(f"{LIST}nonsense/change/").status_code == 404
