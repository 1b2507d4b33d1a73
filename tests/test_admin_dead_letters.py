"""Dead letters in the admin."""

from dataclasses import replace

import pytest
from django.urls import reverse

from cdp.models import DeadLetter
from tests.factories import make_dead_letter, make_source, make_user

pytestmark = pytest.mark.django_db
LIST = "/admin/cdp/deadletter/"
REPLAY = "/admin/cdp/deadletter/replay/"


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


def test_one_letter_is_replayed(operator, shop):
    first, _second = make_dead_letter(shop), make_dead_letter(shop)
    text = operator.post(REPLAY, {"id": first.pk}, follow=True).text
    assert "1 dead letter given back to the log." in text
    assert statuses() == ["replayed", "new"]


def test_a_group_is_replayed(operator, shop):
    for reason in ("too_large", "missing_id", "missing_id"):
        make_dead_letter(shop, reason=reason)
    make_dead_letter(make_source("app"), reason="missing_id")
    text = operator.post(REPLAY, {"reason": "missing_id", "source_id": shop.pk}, follow=True).text
    assert "2 dead letters given back to the log." in text
    assert statuses() == ["new", "replayed", "replayed", "new"]


def test_selected_letters_are_replayed(operator, shop):
    letters = [make_dead_letter(shop) for _ in range(3)]
    chosen = {"action": "replay_selected", "_selected_action": [letters[0].pk, letters[2].pk]}
    assert "2 dead letters given back to the log." in operator.post(LIST, chosen, follow=True).text
    assert statuses() == ["replayed", "new", "replayed"]


def test_a_replay_must_say_of_what(operator, shop):
    make_dead_letter(shop)
    for nothing in ({}, {"id": "x"}, {"reason": "missing_id"}, {"source_id": shop.pk}):
        assert operator.post(REPLAY, nothing).status_code == 400
    assert operator.get(REPLAY).status_code in {404, 405}
    assert statuses() == ["new"]


def test_a_log_that_is_away_is_said(operator, shop, settings):
    letter = make_dead_letter(shop)
    settings.CONFIG = replace(settings.CONFIG, log_url="redis://127.0.0.1:1/0")
    text = operator.post(REPLAY, {"id": letter.pk}, follow=True).text
    assert "given back" not in text
    assert "log" in text.lower()
    assert statuses() == ["new"]


def test_viewers_replay_nothing(client, shop):
    letter = make_dead_letter(shop)
    client.force_login(make_user("viewer"))
    assert client.post(REPLAY, {"id": letter.pk}).status_code == 403
    client.post(LIST, {"action": "replay_selected", "_selected_action": [letter.pk]})
    for path in (LIST, reverse("admin:cdp_deadletter_change", args=[letter.pk])):
        assert REPLAY not in client.get(path).text
        assert "replay_selected" not in client.get(path).text
    assert statuses() == ["new"]
