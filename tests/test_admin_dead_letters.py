"""Dead letters in the admin."""

import re
from dataclasses import replace

import pytest
from django.urls import reverse

from cdp.models import DeadLetter
from tests.factories import make_dead_letter, make_source, make_user

pytestmark = pytest.mark.django_db
LIST = "/admin/cdp/deadletter/"
REPLAY = "/admin/cdp/deadletter/replay/"
CLICK = b'{"type": "track", "userId": "user-1", "event": "Clicked"}'


@pytest.fixture
def shop():
    return make_source("shop")


@pytest.fixture
def operator(client):
    client.force_login(make_user("operator"))
    return client


def statuses():
    return list(DeadLetter.objects.order_by("pk").values_list("status", flat=True))


def test_the_list_shows_groups_and_new_letters(operator, shop):
    make_dead_letter(shop, reason="too_large", message_id="big-1")
    make_dead_letter(shop, reason="missing_id", message_id="lost-1")
    make_dead_letter(shop, reason="missing_id", message_id="done-1", status="replayed")
    text = operator.get(LIST).text
    assert f"?status=new&amp;reason=too_large&amp;source__id__exact={shop.pk}" in text
    assert ("big-1" in text, "lost-1" in text, "done-1" in text) == (True, True, False)
    group = {"status": "new", "reason": "too_large", "source__id__exact": shop.pk}
    text = operator.get(LIST, group).text
    assert ("big-1" in text, "lost-1" in text) == (True, False)
    assert "done-1" in operator.get(LIST, {"status": "any"}).text


def test_a_letter_shows_what_was_sent(operator, shop):
    letter = make_dead_letter(shop, body=b'{"event":"<b>Bold</b>"}', detail="It is bold.")
    text = operator.get(reverse("admin:cdp_deadletter_change", args=[letter.pk])).text
    assert "It is bold." in text
    assert "&quot;event&quot;: &quot;&lt;b&gt;Bold&lt;/b&gt;&quot;" in text


def confirm(client, page):
    """Press Confirm on a page that says what would become of letters; return the page after it."""
    fields = dict(re.findall(r'<input type="hidden" name="(ids|reason|source_id|confirmed)" value="([^"]*)">', page))
    assert fields.pop("confirmed") == "yes"
    return client.post(REPLAY, fields | {"confirmed": "yes"}, follow=True).text


def test_one_letter_is_replayed_after_a_look_at_what_would_become_of_it(operator, shop):
    first, _second = make_dead_letter(shop, body=CLICK), make_dead_letter(shop)
    page = operator.post(REPLAY, {"ids": first.pk}).text
    assert re.search(r"would be stored</th><td>1</td>", page)
    assert statuses() == ["new", "new"]
    assert "1 dead letter given back to the log." in confirm(operator, page)
    assert statuses() == ["replaying", "new"]


def test_what_would_be_put_aside_again_is_said_by_reason(operator, shop):
    letters = [make_dead_letter(shop, body=body) for body in (CLICK, b"{", b"[]", b"{")]
    page = operator.post(REPLAY, {"ids": ",".join(str(one.pk) for one in letters)}).text
    assert "4 letters tried" in page
    assert re.search(r"would be stored</th><td>1</td>", page)
    assert re.search(r"put aside again: malformed</th><td>2</td>", page)
    assert re.search(r"put aside again: not_an_object</th><td>1</td>", page)


def test_what_cannot_be_replayed_is_not_offered(operator, shop):
    letter = make_dead_letter(shop, status="replayed")
    page = operator.post(REPLAY, {"ids": letter.pk}).text
    assert "None of these letters can be replayed" in page
    assert "Confirm" not in page
    assert REPLAY not in operator.get(reverse("admin:cdp_deadletter_change", args=[letter.pk])).text


def test_a_group_is_replayed(operator, shop):
    for reason in ("too_large", "missing_id", "missing_id"):
        make_dead_letter(shop, reason=reason)
    make_dead_letter(make_source("app"), reason="missing_id")
    page = operator.post(REPLAY, {"reason": "missing_id", "source_id": shop.pk}).text
    assert "2 dead letters given back to the log." in confirm(operator, page)
    assert statuses() == ["new", "replaying", "replaying", "new"]


def test_selected_letters_are_replayed(operator, shop):
    letters = [make_dead_letter(shop) for _ in range(3)]
    chosen = {"action": "replay_selected", "_selected_action": [letters[0].pk, letters[2].pk]}
    page = operator.post(LIST, chosen).text
    assert statuses() == ["new", "new", "new"]
    assert "2 dead letters given back to the log." in confirm(operator, page)
    assert statuses() == ["replaying", "new", "replaying"]


def test_a_replay_must_say_of_what(operator, shop):
    make_dead_letter(shop)
    for nothing in ({}, {"ids": "x"}, {"ids": "1,"}, {"reason": "missing_id"}, {"source_id": shop.pk}):
        assert operator.post(REPLAY, nothing).status_code == 400
    assert operator.get(REPLAY).status_code in {404, 405}
    assert statuses() == ["new"]


def test_a_log_that_is_away_is_said(operator, shop, settings):
    letter = make_dead_letter(shop)
    settings.CONFIG = replace(settings.CONFIG, log_url="redis://127.0.0.1:1/0")
    text = operator.post(REPLAY, {"ids": letter.pk, "confirmed": "yes"}, follow=True).text
    assert "given back" not in text
    assert "log" in text.lower()
    assert statuses() == ["new"]


def test_viewers_replay_nothing(client, shop):
    letter = make_dead_letter(shop)
    client.force_login(make_user("viewer"))
    for fields in ({"ids": letter.pk}, {"ids": letter.pk, "confirmed": "yes"}):
        assert client.post(REPLAY, fields).status_code == 403
    client.post(LIST, {"action": "replay_selected", "_selected_action": [letter.pk]})
    for path in (LIST, reverse("admin:cdp_deadletter_change", args=[letter.pk])):
        assert REPLAY not in client.get(path).text
        assert "replay_selected" not in client.get(path).text
    assert statuses() == ["new"]
