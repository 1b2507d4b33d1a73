"""Following one event: where it is, what it did, or why it is not there."""

import json
import os
from contextlib import closing
from dataclasses import replace
from io import StringIO

import msgspec
import pytest
import redis
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection
from django.urls import reverse

from cdp import dead_letters, waiting
from cdp import trace as tracing
from cdp.log import open_log
from cdp.log.base import Delivery, Entry, Event, encode_entry
from cdp.models import Checkpoint, DeadLetter, MergePolicy, Profile, TraitDefinition
from cdp.trace import trace
from martech.lib import clock
from tests.factories import make_api_key, make_dead_letter, make_source, make_user
from tests.platform import append
from tests.test_real_path import process, send
from tests.test_trace_context import PARENT

pytestmark = pytest.mark.django_db
REFUSED = {"refused_calls": ["track"]}


@pytest.fixture
def shop():
    return make_source("shop")


@pytest.fixture
def log():
    redis.Redis.from_url(os.environ["LOG_URL"]).flushdb()
    opened = open_log(settings.CONFIG.log_url, partitions=settings.CONFIG.log_partitions)
    yield opened
    opened.close()


def click(message_id="m-1", **fields):
    return {"type": "track", "userId": "u1", "event": "Clicked", "messageId": message_id, **fields}


def identify(message_id, traits, **fields):
    return {"type": "identify", "userId": "u1", "messageId": message_id, "traits": traits, **fields}


def delivery(source, *messages, **fields):
    events = [Event("", "", 0, json.dumps(message).encode()) for message in messages]
    return with_(Delivery(source.pk, clock.now_us(), "", b"", b"", events), **fields)


with_ = msgspec.structs.replace


def give_to_log(log, source, *messages, partition=1, **fields):
    return append(log, [(partition, encode_entry(Entry([delivery(source, one, **fields)]))) for one in messages])


def told(found):
    return " ".join(found.explanation)


def only(found):
    [event] = found.events
    return event


def test_a_stored_event_tells_where_it_came_from_and_whose_it_is(shop):
    process(delivery(shop, click(timestamp="2026-11-01T10:00:00+02:00"), trace=PARENT))
    found = trace("m-1")
    event = only(found)
    assert (found.status, found.found, found.scan) == ("stored", True, None)
    assert (event.source, event.event_type, event.name, event.message_id) == ("shop", "track", "Clicked", "m-1")
    assert (event.log_partition, event.log_position, event.trace_parent) == (1, "1-0", PARENT)
    assert (event.original_timestamp, event.occurred_at.isoformat()) == (
        "2026-11-01T10:00:00+02:00", "2026-11-01T08:00:00+00:00",
    )  # fmt: skip
    assert event.profile_then == event.profile_id == Profile.objects.get().pk
    assert event.identifiers == [{"namespace": "user_id", "value": "u1"}]
    assert told(found) == "Copies of it that come later are dropped, and not recorded one by one."


def test_the_computed_traits_that_count_it_are_told_with_what_it_contributed(shop):
    send(shop, click("m-0"), click("m-1", timestamp="2026-11-01T10:00:00Z"))
    assert {one.name: (one.contributed, one.value) for one in only(trace("m-1")).effects.computed}.items() >= {
        "event_count": (1, 2),
        "first_seen": ("2026-11-01T10:00:00Z", "2026-11-01T10:00:00Z"),
    }.items()


def test_definitions_that_cannot_be_used_leave_the_rest_to_be_told(shop):
    send(shop, identify("m-1", {"plan": "gold"}))
    TraitDefinition.objects.create(name="broken", kind="unheard_of")
    done = only(trace("m-1")).effects
    assert (done.computed, [one.outcome for one in done.given]) == ([], ["current"])


def test_of_the_traits_it_set_some_count_and_others_were_overtaken_or_refused(shop):
    shop.rules = {"refused_traits": ["consent"]}
    shop.save()
    send(shop, identify("m-1", {"plan": "free", "city": "Porto", "consent": True}, timestamp="2026-11-01T10:00:00Z"))
    send(shop, identify("m-2", {"plan": "gold"}, timestamp="2026-11-01T11:00:00Z"))
    given = only(trace("m-1")).effects.given
    assert [(one.name, one.value, one.outcome, one.winner) for one in given] == [
        ("city", "Porto", "current", "m-1"),
        ("consent", True, "refused", ""),
        ("plan", "free", "older", "m-2"),
    ]
    assert given[2].won_at.isoformat() == "2026-11-01T11:00:00+00:00"


def test_a_trait_with_a_merge_policy_tells_what_became_of_it(shop):
    for trait, policy in (("tags", "union"), ("points", "counter"), ("plan", "newest")):
        MergePolicy.objects.create(trait=trait, policy=policy)
    send(shop, identify("m-1", {"tags": ["vip"], "points": 5, "plan": "free"}, timestamp="2026-11-01T10:00:00Z"))
    send(shop, identify("m-2", {"plan": "gold"}, timestamp="2026-11-01T11:00:00Z"))
    found = only(trace("m-1"))
    assert [(one.name, one.outcome, one.winner) for one in found.effects.given] == [
        ("plan", "older", "m-2"), ("points", "misfit", ""), ("tags", "combined", ""),
    ]  # fmt: skip
    assert found.flags == ["policy_mismatch"]


def test_what_it_joined_and_whose_it_became_are_told(shop):
    send(shop, {"type": "page", "anonymousId": "a1", "messageId": "m-1"})
    send(shop, click("m-2"))
    first = Profile.objects.get(identity_graph__has_key="anonymous_id").pk
    stays = Profile.objects.get(identity_graph__has_key="user_id").pk
    send(shop, identify("m-3", {}, anonymousId="a1"))
    event = only(trace("m-1"))
    assert (event.profile_then, event.profile_id) == (first, stays)
    joining = only(trace("m-3")).effects
    assert [(one.kind, one.reason, one.profile_id, one.other_id) for one in joining.decisions] == [
        ("merge", "identify", stays, first)
    ]
    [edge] = joining.edges
    assert {edge.left["value"], edge.right["value"], edge.refused} == {"u1", "a1", ""}
    assert (event.effects.decisions, event.effects.edges) == ([], [])


def test_an_id_that_was_used_again_is_followed_to_both_events(shop):
    send(shop, click(event="A"), click(event="B"))
    send(shop, click(event="C"))
    found = trace("m-1")
    assert [event.name for event in found.events] == ["A", "B", "C"]
    again = found.events[1].message_id
    assert f"The id was used again for something else, which is kept as {again}." in found.explanation
    assert [event.name for event in trace(again).events] == ["B"]


def test_several_sources_may_have_used_the_id(shop):
    app = make_source("app")
    send(shop, click())
    send(app, click())
    found = trace("m-1")
    assert [event.source for event in found.events] == ["shop", "app"]
    assert "Several sources have used this id: to each it is an event of its own." in found.explanation
    assert only(trace("m-1", source="app")).source == "app"
    with pytest.raises(tracing.UnknownSource, match="There is no source 'shopp'"):
        trace("m-1", source="shopp")


def test_an_event_that_waits_in_the_log_is_found_there(shop, log):
    positions = give_to_log(log, shop, *(click(f"m-{number}") for number in range(5)), trace=PARENT)
    Checkpoint.objects.create(log=log.name, partition=1, position=positions[0], updated_at=clock.now())
    found = trace("m-3")
    [copy] = found.scan.found
    assert (found.status, found.events) == ("waiting", [])
    assert (copy.partition, copy.position, copy.before, copy.trace_parent) == (1, positions[3], 2, PARENT)
    assert f"It waits in the log: partition 1, position {positions[3]}, 2 entries before it." in told(found)
    assert trace("m-0").status == "unknown"
    assert trace("m-3", source=make_source("app").name).status == "unknown"


@pytest.mark.parametrize("message_id", ['a"b', "é/ß", "a\\b", "x" * 300])
def test_ids_of_any_kind_are_found_in_the_log(shop, log, message_id):
    give_to_log(log, shop, click(message_id))
    assert trace(message_id).status == "waiting"


def test_a_look_into_the_log_ends_somewhere(shop, log):
    give_to_log(log, shop, *(click(f"m-{number}") for number in range(5)))
    with closing(waiting.Look()) as look:
        scan = look.scan("m-4", most=3)
    assert (scan.found, scan.entries, scan.trouble) == (
        [], 3, "Only the first 3 entries that wait were looked into.",
    )  # fmt: skip


def test_what_is_processed_while_we_look_into_the_log_is_not_missed(shop, log, monkeypatch):
    monkeypatch.setattr(waiting.Look, "scan", lambda *_: send(shop, click()) and waiting.Scan())
    assert trace("m-1").status == "stored"


def test_a_log_that_is_away_is_said(shop, settings):
    settings.CONFIG = replace(settings.CONFIG, log_url="redis://127.0.0.1:1/0")
    send(shop, click())
    assert trace("m-1").status == "stored"
    assert "The log does not answer" in told(trace("m-2"))


def test_an_event_in_quarantine_says_why_and_how_its_replays_went(shop, log):
    shop.rules = REFUSED
    shop.save()
    send(shop, click())
    letter = DeadLetter.objects.get()
    found = trace("m-1")
    [shown] = found.letters
    assert (found.status, shown.id, shown.reason, shown.attempts) == ("quarantined", letter.pk, "refused_call", 0)
    assert f"It was put aside as refused_call (dead letter {letter.pk}). Mend the cause, then replay it." in told(found)

    dead_letters.replay(dead_letters.matching(ids=[letter.pk]))
    found = trace("m-1")
    assert (found.status, found.scan.found[0].letter_id) == ("waiting", letter.pk)
    assert f"It waits in the log, given back by dead letter {letter.pk}: " in told(found)
    assert "and given back to the log; it has not been processed since." in told(found)

    process(with_(dead_letters.delivery_of(letter), letter_id=letter.pk))
    assert f"(dead letter {letter.pk}, and 1 more time)" in told(trace("m-1"))

    shop.rules = {}
    shop.save()
    process(with_(dead_letters.delivery_of(letter), letter_id=letter.pk))
    found = trace("m-1")
    assert (found.status, found.letters[0].status) == ("stored", "replayed")
    assert ", and replayed since." in told(found)


def test_what_was_never_received_is_said_with_what_to_check(shop, log):
    send(shop, click())
    found = trace("m-404")
    assert (found.status, found.found) == ("unknown", False)
    assert found.explanation[0] == "Nothing is known of it: it was never received, as far as we know."
    assert "Nothing of it waits in the log (0 entries were looked into)." in found.explanation
    assert "older ids are not remembered" in told(found)
    assert "refused at the door" in told(found)
    assert "Check the write key, the answer the SDK got" in told(found)
    assert "--deep" in told(found)


@pytest.mark.parametrize("message_id", ["", "a\0b", "\ud800"])
def test_what_cannot_be_an_id_is_unknown(message_id):
    assert trace(message_id).explanation == ["No message id can be like this: it cannot be stored."]


def test_an_event_older_than_what_is_remembered_is_found_by_reading_everything(shop, log):
    send(shop, click("m%1", event="A"), click("m%1", event="B"), click("m-1"))
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM event_duplicate")
    assert trace("m%1").status == "unknown"
    found = trace("m%1", deep=True)
    assert [event.name for event in found.events] == ["A", "B"]
    missing = trace("m-404", deep=True)
    assert missing.status == "unknown"
    assert "Nor is it in the event stream, back to " in told(missing)
    assert "--deep" not in told(missing)


def test_an_event_that_was_merged_away_and_moved_back_is_its_anchors(shop):
    send(shop, click())
    other = Profile.objects.create(timestamp=clock.now(), created_at=clock.now(), traits={"name": "Other"})
    other_id = other.pk
    Profile.objects.get(identity_graph__has_key="user_id").identifiers.update(profile=other)
    assert only(trace("m-1")).profile_id == other_id


def run(*arguments):
    output = StringIO()
    call_command("trace", *arguments, stdout=output)
    return output.getvalue()


def test_the_command_tells_it_to_people_and_programs(shop, log):
    send(shop, identify("m-1", {"plan": "[gold]"}))
    text = run("m-1")
    assert text.startswith("m-1: stored\n")
    for part in ("shop", "user_id:u1", "sets plan", '"[gold]": counts', "counts for event_count"):
        assert part in text
    shown = json.loads(run("m-1", "--source", "shop", "--json"))
    assert (shown["status"], shown["events"][0]["properties"]) == ("stored", {"plan": "[gold]"})


def test_the_command_fails_when_nothing_is_known(shop, log):
    for arguments in (["m-404"], ["m-404", "--deep", "--json"]):
        with pytest.raises(SystemExit) as ended:
            run(*arguments)
        assert ended.value.code == 1
    with pytest.raises(CommandError, match="There is no source 'x'"):
        run("m-1", "--source", "x")


def test_the_api_answers_with_the_same(client, shop, log):
    send(shop, identify("a/b?c", {"plan": "gold"}))
    headers = make_api_key("profiles:read")
    answer = client.get("/v1/trace/a%2Fb%3Fc", headers=headers)
    body = answer.json()
    assert (answer.status_code, body["status"], body["message_id"]) == (200, "stored", "a/b?c")
    assert set(body) == {"message_id", "status", "explanation", "events", "dead_letters", "waiting"}
    assert body["events"][0]["effects"]["given"][0] == {
        "name": "plan", "value": "gold", "outcome": "current", "winner": "a/b?c",
        "won_at": body["events"][0]["received_at"],
    }  # fmt: skip
    give_to_log(log, shop, click("m-2"))
    [copy] = client.get("/v1/trace/m-2", headers=headers).json()["waiting"]
    assert (copy["source"], copy["before"]) == ("shop", 0)
    assert client.get("/v1/trace/m-404", headers=headers).json()["status"] == "unknown"
    assert client.get("/v1/trace/m-1", {"source": "x"}, headers=headers).status_code == 404


def test_details_of_dead_letters_need_their_scope(client, shop):
    make_dead_letter(shop, message_id="m-1", detail="No such plan: gold")
    for scopes, detail in ((["profiles:read"], ""), (["profiles:read", "dead_letters:read"], "No such plan: gold")):
        answer = client.get("/v1/trace/m-1", headers=make_api_key(*scopes))
        assert answer.json()["dead_letters"][0]["detail"] == detail


PERSONAL = ["Archer", "ann@example.com", "user-4711", "anon-4711"]


@pytest.fixture
def personal(shop, log):
    """Store an event full of personal data, and put one aside."""
    traits = {"name": "Ann Archer", "email": "ann@example.com", "plan": "gold"}
    send(shop, {"type": "page", "anonymousId": "anon-4711", "messageId": "m-0"})
    send(shop, {**identify("m-1", traits), "userId": "user-4711", "anonymousId": "anon-4711"})
    make_dead_letter(shop, message_id="m-1", detail="Bad address ann@example.com.")
    return shop


@pytest.mark.parametrize("path", ["/v1/trace/m-1", "/admin/cdp/event/?q=m-1"])
def test_viewers_see_no_personal_data_and_operators_do(client, personal, path):
    client.force_login(make_user("viewer"))
    text = client.get(path).text
    assert [secret for secret in PERSONAL if secret in text] == []
    assert "gold" in text
    assert "a•••@e•••" in text
    client.force_login(make_user("operator"))
    text = client.get(path).text
    assert [secret for secret in PERSONAL if secret not in text] == []


def test_the_page_follows_an_event_and_leads_on(client, personal):
    client.force_login(make_user("operator"))
    text = client.get("/admin/cdp/event/", {"q": "m-1", "source": "shop"}).text
    assert reverse("admin:cdp_profile_change", args=[Profile.objects.get().pk]) in text
    assert reverse("admin:cdp_deadletter_change", args=[DeadLetter.objects.get().pk]) in text
    assert "There is no source &#x27;x&#x27;" in client.get("/admin/cdp/event/", {"q": "m-1", "source": "x"}).text
    assert "never received" in client.get("/admin/cdp/event/", {"q": "m-404"}).text
    assert client.get("/admin/cdp/event/").status_code == 200


def test_the_page_is_reached_from_timelines_and_dead_letters(client, personal):
    client.force_login(make_user("viewer"))
    profile, letter = Profile.objects.get(), DeadLetter.objects.get()
    for page in (reverse("admin:cdp_profile_change", args=[profile.pk]),
                 reverse("admin:cdp_deadletter_change", args=[letter.pk])):  # fmt: skip
        assert 'href="/admin/cdp/event/?q=m-1"' in client.get(page).text
    assert "Trace an event" in client.get("/admin/").text
    DeadLetter.objects.update(message_id="for-ann@example.com")
    assert "/admin/cdp/event/?q=" not in client.get(reverse("admin:cdp_deadletter_change", args=[letter.pk])).text


def test_the_page_is_for_those_who_may_see_events(client, personal):
    client.force_login(make_user(""))
    assert client.get("/admin/cdp/event/", {"q": "m-1"}).status_code == 403
