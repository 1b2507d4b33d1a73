"""People's edits: taken where nobody was quicker, never lost to the future, and read back at once."""

import json
import os
import threading

import psycopg
import pytest
import redis
from django.conf import settings

from cdp import edits, privacy, showing, unmerging
from cdp.models import AuditEntry, MergePolicy, Profile, Source
from cdp.processing import registers
from cdp.processing.consent import granted
from cdp.processing.identity import Identifier as Pair
from cdp.profiles import ProfileCache
from martech.lib import clock
from tests.factories import make_api_key, make_user
from tests.platform import message
from tests.test_local_engine import read_profile

PROOF = {"form": "newsletter"}


@pytest.fixture
def ann(own_database, core):
    """Return the core with one person, beside Django on the same database and an empty cache."""
    redis.Redis.from_url(os.environ["CACHE_URL"]).flushdb()
    core.apply(message("identify", userId="ann", traits={"name": "Ann", "plan": "pro", "age": 40}))
    return core


@pytest.fixture
def patch(ann, client):
    headers = make_api_key("profiles:write", "profiles:read")

    def send(body, version=None, reference="user_id:ann", **more):
        version = ann.profile("user_id:ann")["version"] if version is None else version
        given = headers | ({"If-Match": f'"{version}"'} if version else {}) | more
        data = body if isinstance(body, str) else json.dumps(body)
        return client.patch(f"/v1/profiles/{reference}", data, content_type="application/json", headers=given)

    return send


def test_an_edit_answers_the_new_document_and_its_version(ann, patch):
    answer = patch(
        {"traits": {"plan": "gold", "age": None, "balance": 12345678901234567.89}, "consent": {"sms": False}}
    )
    assert (answer.status_code, answer.headers["ETag"]) == (200, '"2"')
    body = answer.json()
    assert body["traits"] == {"name": "Ann", "plan": "gold", "balance": 12345678901234567.89}
    assert body["consent"]["sms"]["granted"] is False
    assert (body["version"], ann.profile("user_id:ann")["version"]) == (2, 2)


def test_an_edit_is_an_event_of_a_source_that_nobody_can_send_by(ann, patch):
    patch({"traits": {"plan": "gold"}})
    event = ann.events()[-1]
    source = Source.objects.get(pk=event["source_id"])
    assert (source.name, source.kind, source.enabled) == ("People", "people", False)
    assert (event["event_type"], event["properties"], event["identifiers"]) == (
        "identify", {"plan": "gold"}, [["user_id", "ann"]],
    )  # fmt: skip
    assert event["context"]["edited_by"].startswith("key:")
    patch({"traits": {"plan": "silver"}})
    assert Source.objects.filter(kind="people").count() == 1


def test_numbers_stay_exact(ann, patch):
    patch('{"traits": {"balance": 12345678901234567.89}}')
    [row] = ann.rows("SELECT traits->'balance' #>> '{}' AS balance FROM customer_profiles")
    assert row["balance"] == "12345678901234567.89"


def test_who_was_not_quick_enough_learns_the_version_and_changes_nothing(ann, patch):
    before = ann.profile("user_id:ann")
    ann.apply(message("identify", userId="ann", traits={"plan": "basic"}))
    answer = patch({"traits": {"plan": "gold"}}, version=before["version"])
    assert (answer.status_code, answer.headers["ETag"], answer.headers["Content-Type"]) == (
        412, '"2"', "application/problem+json",
    )  # fmt: skip
    assert (answer.json()["code"], answer.json()["version"]) == ("version_moved", 2)
    assert ann.profile("user_id:ann")["traits"]["plan"] == "basic"
    assert (len(ann.events()), AuditEntry.objects.count()) == (2, 0)


def test_of_edits_at_once_one_is_taken(ann, own_database):
    profile_id = ann.profile("user_id:ann")["id"]
    outcomes = []

    def try_it(number):
        from django.db import connection

        try:
            edits.edit(profile_id=profile_id, versions=[1], traits={"plan": str(number)}, consent={}, actor="admin:x")
            outcomes.append("taken")
        except edits.Moved as error:
            outcomes.append(error.version)
        finally:
            connection.close()

    edits.people_source()
    threads = [threading.Thread(target=try_it, args=[number], daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(map(str, outcomes)) == ["2", "2", "2", "taken"]
    assert ann.profile("user_id:ann")["version"] == 2


@pytest.mark.parametrize("if_match", ["", "*", "ann", '"x"'])
def test_an_edit_says_what_it_was_decided_on(patch, if_match):
    answer = patch({"traits": {"plan": "gold"}}, version=0, **({"If-Match": if_match} if if_match else {}))
    assert (answer.status_code, answer.json()["code"]) == (428, "version_required")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("{", "invalid"), ("[]", "invalid"), ({"trait": {}}, "invalid"), ({"traits": []}, "invalid"),
        ({}, "unfit_edit"), ({"traits": {}}, "unfit_edit"), ({"traits": {"consent": {"sms": False}}}, "unfit_edit"),
        ({"consent": {"sms": True}}, "unfit_edit"), ({"consent": {"sms": None}}, "unfit_edit"),
        ({"traits": {"a": "\x00"}}, "unfit_edit"), ({"traits": {"a": "x" * 40_000}}, "unfit_edit"),
        ('{"traits": {"a": 1e400000}}', "unfit_edit"),
    ],
)  # fmt: skip
def test_an_edit_that_cannot_be_taken_is_refused_and_leaves_nothing(ann, patch, body, code):
    answer = patch(body)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert (len(ann.events()), ann.letters(), ann.profile("user_id:ann")["version"]) == (1, [], 1)
    assert AuditEntry.objects.count() == 0


def test_an_edit_needs_its_scope_and_a_profile(ann, client, patch):
    assert patch({"traits": {"a": 1}}, reference="user_id:nobody").status_code == 404
    reader = make_api_key("profiles:read") | {"If-Match": '"1"'}
    answer = client.patch("/v1/profiles/user_id:ann", "{}", content_type="application/json", headers=reader)
    assert answer.status_code == 403


def test_who_is_being_erased_cannot_be_edited_any_more(ann, patch):
    privacy.request(reference="user_id:ann", actor="command:test", enqueue=False)
    answer = patch({"traits": {"plan": "gold"}})
    assert (answer.status_code, answer.json()["message"]) == (
        404, "The person is being erased: nothing of them is kept any more.",
    )  # fmt: skip
    assert len(ann.events()) == 1
    assert ann.profile("user_id:ann")["version"] == 1


def test_an_edit_is_later_than_a_register_from_the_future(ann, patch):
    ann.apply(message("identify", userId="ann", traits={"plan": "future"}, timestamp="2099-01-01T00:00:00Z"))
    assert patch({"traits": {"plan": "gold"}}).json()["traits"]["plan"] == "gold"
    assert patch({"traits": {"plan": "silver"}}).json()["traits"]["plan"] == "silver"
    future, gold, silver = ann.events()[1:]
    assert future["occurred_at"] < gold["occurred_at"] < silver["occurred_at"]
    assert (silver["occurred_at"] - future["occurred_at"]).microseconds == 2
    assert [row["flags"] for row in (gold, silver)] == [[], []]
    ann.apply(message("identify", userId="ann", traits={"plan": "later"}, timestamp=clock.now().isoformat()))
    assert ann.profile("user_id:ann")["traits"]["plan"] == "silver"


def test_whoever_has_an_email_alone_can_be_edited(ann, patch):
    ann.apply(message("identify", context={"traits": {"email": "bob@example.com"}}, traits={"name": "Bob"}))
    answer = patch({"traits": {"name": "Robert", "email": "rob@example.com"}}, reference="email:bob@example.com")
    assert answer.json()["traits"] == {"name": "Robert", "email": "rob@example.com"}
    assert ann.profile("email:rob@example.com")["id"] == ann.profile("email:bob@example.com")["id"]


def test_a_removal_takes_away_what_the_person_saw(ann, patch):
    MergePolicy.objects.create(trait="tags", policy="union")
    ann.apply(message("identify", userId="ann", traits={"tags": ["vip", "new", "gold"]}))
    answer = patch({"traits": {"tags": {"$remove": ["new"], "$union": ["old"]}}})
    assert answer.json()["traits"]["tags"] == ["gold", "old", "vip"]
    [dots] = ann.events()[-1]["properties"]["tags"]["$remove"].values()
    assert dots == {"1": [clock.to_us(ann.events()[-2]["occurred_at"]), ann.events()[-2]["message_id"]]}
    # It was added by another source meanwhile, though earlier: nobody had seen that.
    other = ann.source("server")
    ann.apply(
        message("identify", userId="ann", traits={"tags": ["new"]}, timestamp="2026-01-01T00:00:00Z"), source=other
    )
    assert ann.profile("user_id:ann")["traits"]["tags"] == ["gold", "new", "old", "vip"]
    assert patch({"traits": {"tags": {"$set": ["vip"]}}}).json()["traits"]["tags"] == ["vip"]
    assert "tags" not in patch({"traits": {"tags": None}}).json()["traits"]
    for unfit in ("vip", {"$remove": [5]}, {"$set": [5]}, {"$set": "vip"}, {"$remove": "vip"}):
        assert patch({"traits": {"tags": unfit}}).json()["code"] == "unfit_edit"


def test_a_choice_settles_what_sources_disagree_on(ann, patch):
    MergePolicy.objects.create(trait="city", policy="ask")
    other = ann.source("server")
    ann.apply(message("identify", userId="ann", traits={"city": "Bonn"}))
    ann.apply(message("identify", userId="ann", traits={"city": "Kiel"}), source=other)

    def conflicts():
        return registers.conflicts(
            registers.load(ann.rows("SELECT registers::text AS r FROM customer_profiles")[0]["r"])
        )

    assert len(conflicts()["city"]) == 2
    assert patch({"traits": {"city": "Ulm"}}).json()["traits"]["city"] == "Ulm"
    assert conflicts() == {}
    ann.apply(message("identify", userId="ann", traits={"city": "Rome"}), source=other)
    assert len(conflicts()["city"]) == 2
    assert "city" not in patch({"traits": {"city": None}}).json()["traits"]


def test_a_counter_is_added_to(ann, patch):
    MergePolicy.objects.create(trait="points", policy="counter")
    assert patch({"traits": {"points": {"$add": 5}}}).json()["traits"]["points"] == 5
    assert patch({"traits": {"points": {"$add": -7.5}}}).json()["traits"]["points"] == -2.5
    assert patch({"traits": {"points": None}}).status_code == 400
    assert patch({"traits": {"points": 5}}).status_code == 400


def test_an_edit_that_a_policy_overrules_says_so(ann, patch):
    MergePolicy.objects.create(trait="city", policy="source_priority", sources=[1])
    ann.apply(message("identify", userId="ann", traits={"city": "Bonn"}))
    answer = patch({"traits": {"city": "Kiel"}})
    assert (answer.status_code, answer.json()["code"]) == (409, "overruled")
    policy = MergePolicy.objects.get()
    policy.sources, policy.version = [edits.people_source().pk, 1], 2
    policy.save()
    assert patch({"traits": {"city": "Kiel"}}).json()["traits"]["city"] == "Kiel"


def test_consent_is_granted_with_evidence_and_withdrawn_by_people(ann, patch):
    body = patch({"consent": {"email": {"granted": True, "evidence": PROOF}}}).json()
    assert granted(body["consent"], "email")
    assert not granted(patch({"consent": {"email": False}}).json()["consent"], "email")


def test_the_audit_trail_names_traits_and_no_values(ann, patch):
    patch({"traits": {"plan": "secret-value", "name": None}, "consent": {"sms": False}})
    [entry] = AuditEntry.objects.all()
    assert (entry.action, entry.object_type, entry.object_id) == (
        "profile.edit", "profile", str(ann.profile("user_id:ann")["id"]),
    )  # fmt: skip
    assert entry.detail == {"traits": ["name", "plan"], "consent": ["sms"], "version": 2}
    assert entry.actor.startswith("key:")


def cached(ann):
    """Return the plan that the fast path shows, with PostgreSQL out of the way."""
    return read_profile(settings.CONFIG, "user_id", "ann")["traits"]["plan"]


@pytest.fixture
def cache(ann):
    """Return the processor's cache, which shows the person as they are."""
    config = settings.CONFIG
    cache = ProfileCache(config.cache_url)
    cache.start_epoch()
    applied = ann.apply(message("identify", userId="ann", traits={"plan": "shown"}))
    cache.write(applied.documents, [(one, known[1]) for one, known in applied.identifiers.items()], [], {})
    # Whoever reads past the cache would see this.
    with psycopg.connect(ann.url, autocommit=True) as connection:
        connection.execute('UPDATE customer_profiles SET traits = \'{"plan": "database"}\'')
    yield cache
    cache.close()


def test_the_fast_path_shows_an_edit_at_once_and_keeps_what_else_it_had(ann, cache, patch):
    epoch = redis.Redis.from_url(settings.CONFIG.cache_url).get("epoch")
    assert cached(ann) == "shown"
    patch({"traits": {"plan": "gold"}})
    assert cached(ann) == "gold"
    assert redis.Redis.from_url(settings.CONFIG.cache_url).get("epoch") == epoch


def test_what_the_cache_missed_is_shown_by_the_chore(ann, cache, patch, monkeypatch):
    away = ProfileCache("redis://127.0.0.1:1/0", starts_epochs=False)
    monkeypatch.setattr(showing, "_cache", lambda: away)
    assert patch({"traits": {"plan": "gold"}}).status_code == 200
    assert cached(ann) == "shown"
    monkeypatch.undo()
    assert showing.show_edits(now=clock.now()) == 1
    assert cached(ann) == "gold"


def test_an_unmerge_gives_each_side_its_own_and_lifting_it_all_again(ann):
    for trait, policy in (("tags", "union"), ("points", "counter"), ("city", "ask")):
        MergePolicy.objects.create(trait=trait, policy=policy)
    said = [
        ({"userId": "ann"}, {"tags": ["vip"], "points": {"$add": 5}, "city": "Bonn", "consent": {"sms": False}}),
        ({"anonymousId": "a1"}, {"tags": ["new"], "points": {"$add": 0.5}, "city": "Kiel"}),
        ({"userId": "ann", "anonymousId": "a1"}, {"points": {"$add": 1}}),
        ({"anonymousId": "a1"}, {"points": {"$add": 2}, "consent": {"email": {"granted": True, "evidence": PROOF}}}),
    ]
    for ids, traits in said:
        ann.apply(message("identify", traits=traits, **ids))
    whole = ann.profile("user_id:ann")
    assert (whole["traits"]["tags"], whole["traits"]["points"], whole["traits"]["city"]) == (
        ["new", "vip"],
        8.5,
        "Kiel",
    )
    assert whole["consent"].keys() == {"email", "sms"}
    apart = unmerging.unmerge(profile_id=whole["id"], identifiers=[Pair("anonymous_id", "a1")], author="admin:x")
    left, taken = ann.profile("user_id:ann"), ann.profile("anonymous_id:a1")
    assert (left["traits"]["tags"], left["traits"]["points"], left["traits"]["city"]) == (["vip"], 6, "Bonn")
    assert taken["traits"] == {"tags": ["new"], "points": 2.5, "city": "Kiel"}
    assert (left["consent"].keys(), taken["consent"].keys()) == ({"sms"}, {"email"})
    # Each goes on by itself, and nothing counts twice when they are one again.
    ann.apply(message("identify", anonymousId="a1", traits={"points": {"$add": 100}}))
    unmerging.lift(apart.decision_id, author="admin:x")
    again = ann.profile("user_id:ann")
    assert ann.profile("anonymous_id:a1")["id"] == again["id"]
    assert again["traits"] == whole["traits"] | {"points": 108.5}
    assert again["consent"] == whole["consent"]


def test_a_person_edits_by_the_api_with_their_role(ann, client):
    client.force_login(make_user("operator"))
    body = json.dumps({"traits": {"plan": "gold"}})
    answer = client.patch(
        "/v1/profiles/user_id:ann", body, content_type="application/json", headers={"If-Match": '"1"'}
    )
    assert answer.status_code == 200
    client.force_login(make_user("viewer"))
    answer = client.patch(
        "/v1/profiles/user_id:ann", body, content_type="application/json", headers={"If-Match": '"2"'}
    )
    assert answer.status_code == 403
    assert Profile.objects.get().version == 2
