"""Sources in the admin."""

import pytest
from django.contrib.admin.models import LogEntry
from django.urls import reverse

from cdp.models import Source
from tests.factories import make_source, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def shop():
    return make_source("shop")


def page_of(source):
    return reverse("admin:cdp_source_change", args=[source.pk])


def test_an_operator_makes_a_source(client):
    client.force_login(make_user("operator"))
    answer = client.post(
        reverse("admin:cdp_source_add"), {"name": "shop", "kind": "browser", "enabled": "on", "rules": "{}"}
    )
    assert answer.status_code == 302
    source = Source.objects.get()
    assert (source.name, source.kind, source.enabled, source.rules) == ("shop", "browser", True, {})


def test_a_quota_is_set_and_taken_away(client, shop):
    client.force_login(make_user("operator"))
    for given, kept in (("250", 250), ("", None)):
        body = {"name": "shop", "kind": "server", "enabled": "on", "rules": "{}", "quota": given}
        assert client.post(page_of(shop), body).status_code == 302
        assert Source.objects.get().quota == kept


def test_unsound_rules_are_refused_with_the_reason(client):
    client.force_login(make_user("operator"))
    answer = client.post(
        reverse("admin:cdp_source_add"), {"name": "shop", "kind": "server", "rules": '{"refused": []}'}
    )
    assert "There is no rule &#x27;refused&#x27;." in answer.text
    assert not Source.objects.exists()


def test_the_page_has_the_write_key_and_calls_ready_to_paste(client, shop):
    client.force_login(make_user("operator"))
    text = client.get(page_of(shop)).text
    assert f"curl -u {shop.write_key}: http://testserver/v1/track" in text
    assert f"analytics.write_key = &quot;{shop.write_key}&quot;" in text
    assert f"new Analytics({{ writeKey: &#x27;{shop.write_key}&#x27;, host: &#x27;http://testserver&#x27; }})" in text
    assert "apiHost: &#x27;testserver/v1&#x27;, protocol: &#x27;http&#x27;" in text


def test_viewers_see_no_write_key(client, shop):
    client.force_login(make_user("viewer"))
    assert shop.write_key not in client.get(page_of(shop)).text
    assert shop.write_key not in client.get("/admin/cdp/source/").text
    for lookup in ("write_key__startswith", "write_key"):
        assert client.get("/admin/cdp/source/", {lookup: "wk"}).status_code == 400


def test_a_write_key_is_replaced(client, shop):
    client.force_login(make_user("operator"))
    old, rotate = shop.write_key, reverse("admin:cdp_source_rotate_key", args=[shop.pk])
    assert client.get(rotate).status_code == 405
    assert client.post(rotate, follow=True).status_code == 200
    shop.refresh_from_db()
    assert shop.write_key != old
    assert LogEntry.objects.get().change_message == "Rotated the write key."


def test_viewers_replace_no_write_key(client, shop):
    client.force_login(make_user("viewer"))
    assert client.post(reverse("admin:cdp_source_rotate_key", args=[shop.pk])).status_code == 403
    assert Source.objects.get().write_key == shop.write_key


def test_a_source_is_switched_off_and_not_deleted(client, shop):
    client.force_login(make_user("", is_superuser=True))
    assert client.post(reverse("admin:cdp_source_delete", args=[shop.pk]), {"post": "yes"}).status_code == 403
    client.post(page_of(shop), {"name": "shop", "kind": "server", "rules": "{}"})
    assert Source.objects.get().enabled is False
