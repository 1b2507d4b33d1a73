"""An erased person is nowhere any more, does not come back by any way in, and nobody else has changed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, date, datetime

import psycopg
import pytest
import redis
from django.conf import settings as django_settings
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.utils import timezone

from cdp import archive, holders, keys, partitions, privacy, replay, showing, suppressions, unmerging
from cdp.collector.keys import WriteKey
from cdp.engines.local import LocalEngine
from cdp.log import open_log
from cdp.log.redis import RedisLog
from cdp.models import (
    Account,
    AccountMember,
    AuditEntry,
    DeadLetter,
    Erasure,
    Identifier,
    Profile,
    Standing,
)
from cdp.processing.identity import Identifier as Key
from cdp.processing.pipeline import Pipeline
from martech.embedded.postgres import binaries
from martech.lib.errors import PermanentError, RetryableError
from tests import collecting
from tests.factories import make_source
from tests.platform import Core, message
from tests.running import ROOT, wait_until
from tests.valkey import own_valkey

# No value of Ann's is part of anybody else's.
ANN = {
    "user_id": "quillfeather-7781",
    "email": "wilhelmina.quill@postbox.example",
    "older": "cookie-zebracrossing-1",
    "cookie": "cookie-hummingbird-2",
    "name": "Wilhelmina Quillfeather",
    "street": "Marzipangasse 12½",
    "note": "prefers nightingales",
    "crm": "0035-WQ-QUILL",
}
VALUES = [*ANN.values(), "Zahnarzttermin", "Wilhelmina.Quill@Postbox.example"]
EARLIER = date(2026, 3, 2)


@pytest.fixture
def platform(own_database, settings, tmp_path):
    """A collector, a log, a cache, a processor, an archive and holders, all of this test's own."""
    with own_valkey("log") as log, own_valkey("cache") as cache:
        settings.CONFIG = replace(
            settings.CONFIG, log_url=log.url, cache_url=cache.url, database_url=own_database, log_partitions=4
        )
        settings.ARCHIVE_EVENTS, settings.ARCHIVE_BUCKETS = True, 4
        settings.STORAGES = settings.STORAGES | {
            name: {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": tmp_path / name}}
            for name in ("archive", "default")
        }
        holders.holder("memory").rows.clear()
        _let_go()
        yield Platform(log, cache, own_database, tmp_path)
        _let_go()


def _let_go():
    """Forget connections that were opened by other settings."""
    keys._store.cache_clear()
    showing._cache.cache_clear()


class Platform:
    """What the test does with it: send, process, and look into every store."""

    def __init__(self, log, cache, database_url, home):
        self.log, self.cache, self.database_url, self.home = log, cache, database_url, home
        self.shop = make_source("shop")
        self.strict = make_source("strict", rules={"refused_calls": ["track"]})
        keys = {"shop": WriteKey(source_id=self.shop.pk), "strict": WriteKey(source_id=self.strict.pk)}
        collecting.publish(keys, url=log.url)

    def send(self, *messages, source="shop"):
        """Send messages to a real collector, as one batch."""

        async def run():
            config = django_settings.CONFIG
            events = open_log(config.log_url, partitions=config.log_partitions)
            changes = {"log_url": config.log_url, "cache_url": config.cache_url, "database_url": self.database_url}
            async with collecting.collecting(log=events, log_partitions=4, **changes) as running:
                answered = await running.post("/v1/batch", {"batch": list(messages)}, key=source)
                assert answered.status_code == 200, answered.text

        asyncio.run(run())

    def process(self):
        """Run a processor until the log is empty, and return how many events it took."""
        config = django_settings.CONFIG
        with closing(open_log(config.log_url, partitions=config.log_partitions)) as events:
            engine = LocalEngine(config, events)
            with closing(engine.cache):
                return engine.drain()

    def stores(self):
        """Return the bytes of everything that is kept, by store."""
        with redis.Redis.from_url(self.cache.url) as client:
            keys = sorted(client.keys())
            cached = b"\n".join([*keys, *(client.get(key) or b"" for key in keys)])
        files = [path for path in (self.log._server.data).rglob("*") if path.is_file()]
        kept = [path for path in self.home.rglob("*") if path.is_file()]
        rows = [row for file in archive.files() for table in archive.read(file) for row in table.to_pylist()]
        return {
            "postgresql": subprocess.run(
                [binaries() / "pg_dump", self.database_url], capture_output=True, check=True
            ).stdout,
            "log": b"".join(path.read_bytes() for path in files),
            "cache": cached,
            "files": b"".join(path.read_bytes() for path in kept),
            "archive": repr(rows).encode(),
            "holders": repr(holders.holder("memory").rows).encode(),
        }

    def found(self):
        """Return which of Ann's values stand where, in whatever way they may be written."""
        stores = self.stores()
        return {
            (store, value)
            for store, data in stores.items()
            for value in VALUES
            for form in {value, json.dumps(value)[1:-1]}
            if form.encode() in data or form.encode().hex().encode() in data
        }


def story():
    """Return everything that Ann and those around her did, in batches."""
    at = "2026-11-01T10:00:00Z"
    ann = [
        message("page", anonymousId=ANN["older"], name="Home", timestamp=at),
        message("identify", userId=ANN["user_id"], anonymousId=ANN["older"], timestamp=at,
                traits={"email": "Wilhelmina.Quill@Postbox.example", "name": ANN["name"],
                        "address": {"street": ANN["street"], "notes": [{"deep": ANN["note"]}]}}),
        message(userId=ANN["user_id"], event="Booked", properties={"what": "Zahnarzttermin", "total": 12.5}),
        message(userId=ANN["user_id"], anonymousId=ANN["cookie"], event="Clicked",
                context={"externalIds": [{"type": "crm_id", "id": ANN["crm"]}]}),
        message("group", userId=ANN["user_id"], groupId="acme", traits={"name": "Acme"}),
    ]  # fmt: skip
    others = [
        message("identify", userId="bob-the-builder", traits={"name": "Bob", "email": "bob@example.com"}),
        message(userId="bob-the-builder", event="Order Completed", properties={"total": 3}),
        # Bob sits down at Ann's machine: refused, and remembered with what it said.
        message("identify", userId="bob-the-builder", anonymousId=ANN["cookie"],
                traits={"friend": ANN["email"], "city": "Bonn"}),
    ]  # fmt: skip
    return ann, others


def others_state():
    """Return what is known of everybody but Ann."""
    rows = Identifier.objects.filter(value__in=["bob-the-builder", "bob@example.com"]).order_by("value")
    bob = Profile.objects.get(identifiers__value="bob-the-builder")
    with connection.cursor() as cursor:
        cursor.execute("SELECT message_id, name FROM event_stream WHERE profile_id = %s ORDER BY event_id", [bob.pk])
        events = cursor.fetchall()
    return {
        "identifiers": list(rows.values_list("namespace", "value", "profile_id")),
        "graph": bob.identity_graph,
        "computed": bob.computed_traits,
        "traits": {name: value for name, value in bob.traits.items() if name != "friend"},
        "events": events,
    }


@pytest.fixture
def lived(platform):
    """Let Ann and Bob live through everything, and return the platform with what was sent."""
    ann, others = story()
    platform.ann = ann
    platform.send(ann[0])
    platform.process()
    # Two profiles that become one: Ann's older one stays as a row that points on.
    platform.send(message(userId=ANN["user_id"], event="Signed Up"))
    platform.process()
    platform.send(*ann[1:], *others)
    platform.send(message(userId=ANN["user_id"], event="Booked"), message(userId="bob-the-builder", event="Lost"),
                  source="strict")  # fmt: skip
    platform.send({"type": "nonsense", "traits": {"mail": ANN["email"]}, "messageId": "broken-1"})
    platform.process()
    _archive_some()
    _remember_in_other_places()
    platform.unprocessed = [message(userId=ANN["user_id"], event="On its way", properties={"with": ANN["name"]}),
                            message(anonymousId="somebody-new", event="Arrived")]  # fmt: skip
    platform.send(*platform.unprocessed)
    return platform


def _archive_some():
    """Put some events of both into a partition of the past, and that into the archive."""
    connection.ensure_connection()
    partitions.ensure(connection.connection, partitions.EVENTS, days=1, today=EARLIER, ahead=0)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO event_stream (ingested_at, profile_id, anchor_id, identifiers, event_type, name, properties,"
            " context, extra, source_id, message_id, occurred_at, received_at, flags) SELECT %s, profile_id, anchor_id,"
            " identifiers, event_type, name, properties, context, extra, source_id, message_id, occurred_at,"
            " received_at, flags FROM event_stream",
            [datetime(2026, 3, 2, 12, tzinfo=UTC)],
        )
    assert sum(one.events for one in archive.archive_closed(now=timezone.now())) > 0


def _remember_in_other_places():
    anchor = Identifier.objects.get(value=ANN["user_id"])
    acme = Account.objects.create(traits={"name": "Acme"}, timestamp=timezone.now(), created_at=timezone.now())
    AccountMember.objects.get_or_create(account=acme, identifier=anchor, defaults={"joined_at": timezone.now()})
    holders.holder("memory").hold(Key("email", ANN["email"]), {"sent_to": ANN["email"]})
    holders.holder("memory").hold(Key("user_id", "bob-the-builder"), {"sent_to": "bob@example.com"})
    from django.contrib.auth.models import User

    LogEntry.objects.create(
        user=User.objects.create_user("root"), content_type=ContentType.objects.get_for_model(Profile),
        object_id=str(anchor.profile_id), object_repr=ANN["name"], action_flag=CHANGE, change_message=ANN["street"],
    )  # fmt: skip


def erase(reference, **options):
    """Ask for an erasure."""
    return privacy.request(reference=reference, actor="command:test", enqueue=False, **options)


def finish(platform, asked):
    """Do an erasure to its end, with a processor that comes when it is waited for."""
    with suppress(privacy.ErasureWaits):
        privacy.run(asked.pk, patience=0)
    platform.process()
    return privacy.run(asked.pk, patience=5)


@pytest.mark.parametrize("reference", [f"email:{ANN['email']}", f"anonymous_id:{ANN['older']}"])
def test_no_byte_of_an_erased_person_is_left_and_none_comes_back(lived, caplog, reference):
    caplog.set_level("DEBUG")
    before = others_state()
    assert {store for store, _ in lived.found()} >= {"postgresql", "log", "cache", "archive", "holders"}
    profile = Profile.objects.get(identifiers__value=ANN["user_id"])
    merged = list(Profile.objects.filter(merged_into=profile))
    assert len(merged) == 1

    asked = erase(reference, reason=f"{ANN['name']} asked by mail from {ANN['email']}")
    with pytest.raises(RetryableError):
        privacy.run(asked.pk, patience=0)
    assert lived.process() > 0
    done = privacy.run(asked.pk, patience=0)

    assert (done.status, done.work, done.profile_id) == (Erasure.Status.DONE, {}, profile.pk)
    assert set(done.receipts) == {"suppression", *privacy.STEPS}
    assert done.receipts["postgresql"]["identifiers"] == 5
    assert done.receipts["dead_letters"]["dead_letters"] == done.receipts["dead_letters"]["redacted_letters"] == 1
    assert done.receipts["mentions"]["events"] == 2
    assert done.receipts["log"] == {"partitions": 4, "at": done.receipts["log"]["at"]}
    assert done.receipts["archive"]["removed"] > 0
    assert done.receipts["holders"]["memory"] == 1
    # Names that were never identifiers are in the reason only as people wrote it.
    Erasure.objects.update(reason="")
    assert lived.found() == set()
    assert [value for value in VALUES if value in caplog.text] == []

    for stub in (profile, *merged):
        stub.refresh_from_db()
        assert (stub.identity_graph, stub.traits, stub.computed_traits, stub.registers, stub.trait_states) == ({},) * 5
        assert stub.erased_at is not None
    assert others_state() == before
    assert Profile.objects.get(identifiers__value="bob-the-builder").traits["friend"] == "[erased]"
    assert sorted(letter.reason for letter in DeadLetter.objects.all()) == ["refused_call", "unknown_type"]
    assert holders.holder("memory").rows == {Key("user_id", "bob-the-builder"): [{"sent_to": "bob@example.com"}]}
    assert Profile.objects.filter(identifiers__value="somebody-new").exists()

    events = Profile.objects.count(), Identifier.objects.count(), DeadLetter.objects.count()
    lived.send(*lived.ann, *lived.unprocessed[:1])
    lived.send(message(userId=ANN["user_id"], event="Booked"), source="strict")
    lived.send({"type": "nonsense", "traits": {"mail": ANN["email"]}})
    lived.process()
    assert (Profile.objects.count(), Identifier.objects.count(), DeadLetter.objects.count()) == events
    with closing(open_log(django_settings.CONFIG.log_url, partitions=4)) as events:
        for partition, position in privacy.async_to_sync(privacy._end_partitions)(events).items():
            events.trim(int(partition), position)
        events.compact(seconds=10)
    assert lived.found() == set()


def test_whoever_dies_between_two_steps_is_followed_by_another_that_goes_on(lived, monkeypatch):
    before = others_state()
    asked = erase(f"user_id:{ANN['user_id']}")
    for store, step in privacy.STEPS.items():
        with monkeypatch.context() as patched:
            patched.setitem(privacy.STEPS, store, _dying_after(step))
            with suppress(privacy.ErasureWaits), pytest.raises(Died):
                privacy.run(asked.pk, patience=0)
            lived.process()
            with pytest.raises(Died):
                privacy.run(asked.pk, patience=0)
        assert store not in Erasure.objects.get(pk=asked.pk).receipts
        assert privacy.unfinished() == [asked.pk]
    done = privacy.run(asked.pk)
    assert (done.status, done.work) == (Erasure.Status.DONE, {})
    assert privacy.unfinished() == []
    assert lived.found() == set()
    assert others_state() == before


class Died(Exception):
    """A step's process died when it had done its work, and before it could say so."""


def _dying_after(step):
    def die(turn):
        step(turn)
        raise Died

    return die


def test_an_identifier_that_nobody_has_is_kept_out_all_the_same(platform):
    asked = erase("email:Carla@Example.com")
    assert asked.profile is None
    platform.send(message("identify", anonymousId="c-1", traits={"email": "carla@example.com"}), message(userId="dora"))
    assert finish(platform, asked).status == Erasure.Status.DONE
    assert list(Identifier.objects.values_list("namespace", "value")) == [("user_id", "dora")]


def test_what_a_batch_wrote_that_had_begun_before_goes_too(lived):
    """The batch has asked who is kept out, then comes the erasure, and then the batch's commit."""
    asked = None
    with psycopg.connect(lived.database_url) as late:
        arrivals = Core.arrivals(None, message(userId=ANN["user_id"], anonymousId="late-cookie", event="Late"))
        late.execute("SELECT version FROM cdp_definitionversion")
        Pipeline()._without_erased(late, arrivals)
        asked = erase(f"user_id:{ANN['user_id']}")
        with pytest.raises(RetryableError):
            privacy.run(asked.pk, patience=0)
        lived.process()
        with pytest.raises(RetryableError, match="Transactions from before"):
            privacy.run(asked.pk, patience=0)
        pipeline = Pipeline()
        pipeline._without_erased = lambda connection, arrivals: (arrivals, 0)
        pipeline.apply(late, arrivals)
    assert Identifier.objects.filter(value="late-cookie").exists()
    done = privacy.run(asked.pk)
    assert done.receipts["late"]["identifiers"] == 2
    assert lived.found() == set()
    assert not Identifier.objects.filter(value="late-cookie").exists()
    lived.send(message(anonymousId="late-cookie"))
    lived.process()
    assert not Identifier.objects.filter(value="late-cookie").exists()


def test_a_person_who_comes_back_on_purpose_is_a_new_one(lived):
    asked = erase(f"user_id:{ANN['user_id']}")
    with pytest.raises(PermanentError, match="being erased"):
        suppressions.lift(Key("user_id", ANN["user_id"]), actor="command:test")
    old = finish(lived, asked).profile_id
    assert suppressions.lift(Key("user_id", ANN["user_id"]), actor="command:test")
    assert not suppressions.lift(Key("user_id", ANN["user_id"]), actor="command:test")
    lived.send(message(userId=ANN["user_id"], event="Back"), message(userId="x", anonymousId=ANN["older"]))
    lived.process()
    back = Profile.objects.get(identifiers__value=ANN["user_id"])
    assert back.pk != old
    assert back.computed_traits["event_count"] == 1
    assert not Identifier.objects.filter(value__in=["x", ANN["older"]]).exists()
    assert AuditEntry.objects.get(action="suppression.lift").detail["namespace"] == "user_id"


def test_two_processes_at_one_erasure_do_not_meet(lived):
    asked = erase(f"user_id:{ANN['user_id']}")
    with psycopg.connect(lived.database_url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s, %s)",
                      [privacy.LOCK_CLASS, int.from_bytes(asked.pk.bytes[-4:], signed=True)])  # fmt: skip
        with pytest.raises(privacy.ErasureWaits, match="Another process"):
            privacy.run(asked.pk)
        other.execute("SELECT pg_advisory_unlock_all()")
    assert finish(lived, asked).status == Erasure.Status.DONE


def test_a_log_that_cannot_forget_says_so_in_the_receipt(lived, monkeypatch):
    monkeypatch.setattr(RedisLog, "compact", lambda self, *, seconds: False)
    asked = erase(f"user_id:{ANN['user_id']}")
    assert "does not rewrite its file" in finish(lived, asked).receipts["log"]["standing"]


def test_a_cookie_that_is_shared_only_with_the_erased_person_is_shared_no_more(platform):
    """The rules let a cookie be seen with ten user ids: without the eleventh it is the first one's."""
    at = "2026-11-01T10:00:{:02}Z"
    for number in range(11):
        platform.send(message(userId=f"guest-{number:02}", anonymousId="kiosk", timestamp=at.format(number)))
        platform.process()
    kiosk = Identifier.objects.get(value="kiosk").profile
    assert kiosk.standing == Standing.BLOCKED
    done = finish(platform, erase("user_id:guest-00"))
    assert done.receipts["clusters"]["profiles"] > 0
    assert done.receipts["mentions"]["events"] == 0
    assert Identifier.objects.get(value="kiosk").profile == Identifier.objects.get(value="guest-01").profile
    assert Identifier.objects.values("profile").distinct().count() == 10
    assert replay.verify().examples == []


def test_a_worker_that_is_killed_is_followed_by_the_next_one(lived, monkeypatch):
    with own_valkey("broker") as broker:
        config = django_settings.CONFIG
        environment = os.environ | {
            "DATABASE_URL": lived.database_url, "LOG_URL": config.log_url, "CACHE_URL": config.cache_url,
            "BROKER_URL": broker.url, "LOG_PARTITIONS": "4", "ARCHIVE_BUCKETS": "4",
            "ARCHIVE_DIR": str(lived.home / "archive"),
        }  # fmt: skip
        asked = erase(f"user_id:{ANN['user_id']}")
        with _worker(environment, lived.home / "first.log") as worker:
            _begin(environment)
            wait_until(lambda: "cache" in Erasure.objects.get(pk=asked.pk).receipts)
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        assert privacy.unfinished() == [asked.pk]
        with _worker(environment, lived.home / "second.log"):
            _begin(environment)
            wait_until(lambda: Erasure.objects.get(pk=asked.pk).work.get("positions"))
            wait_until(lambda: lived.process() or Erasure.objects.get(pk=asked.pk).status == Erasure.Status.DONE, 30)
            wait_until(lambda: Erasure.objects.get(pk=asked.pk).status == Erasure.Status.DONE, 60)
    # The holders are in this process's memory, which no other one sees.
    assert {one for one in lived.found() if one[0] != "holders"} == set()


@contextmanager
def _worker(environment, log):
    command = [sys.executable, "-m", "celery", "-q", "-A", "martech.celery", "worker", "--concurrency", "1"]
    with log.open("w") as output:
        worker = subprocess.Popen([*command, "--without-gossip", "--without-mingle", "-l", "DEBUG"], env=environment,
                                  stdout=output, stderr=output, start_new_session=True)  # fmt: skip
    try:
        yield worker
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def _begin(environment):
    """Send what beat sends each minute."""
    code = "import django; django.setup(); from cdp.tasks import finish_erasures; finish_erasures.delay()"
    subprocess.run([sys.executable, "-c", code], env=environment | {"DJANGO_SETTINGS_MODULE": "martech.settings"},
                   check=True, cwd=ROOT)  # fmt: skip


def test_what_tells_of_an_unmerge_names_nobody_who_was_erased_since(platform):
    platform.send(message(userId="hub-user-1", anonymousId="device-alpha"),
                  message(userId="hub-user-1", anonymousId="device-gamma"))  # fmt: skip
    platform.process()
    hub = Profile.objects.get(identifiers__value="hub-user-1")
    devices = [Key("anonymous_id", "device-alpha"), Key("anonymous_id", "device-gamma")]
    unmerging.unmerge(profile_id=hub.pk, identifiers=devices, author="admin:x", note="device-gamma is another's")
    pair = Identifier.objects.get(value="device-gamma").profile
    unmerging.unmerge(profile_id=pair.pk, identifiers=devices[1:], author="admin:x")
    assert finish(platform, erase("anonymous_id:device-gamma")).receipts["mentions"]["events"] == 2
    dump = platform.stores()["postgresql"]
    assert b"device-gamma" not in dump
    assert b"hub-user-1" in dump
    assert b"device-alpha" in dump
    assert replay.verify().examples == []


def test_what_only_the_person_told_of_goes_with_them_though_the_rules_had_kept_it_apart(platform):
    for number in range(7):
        platform.send(message("identify", userId="many-mails", traits={"email": f"mail-{number}@example.com"}))
    platform.send(message("identify", userId="other-one", traits={"email": "mail-6@example.com"}))
    platform.process()
    assert Identifier.objects.get(value="mail-5@example.com").profile.identity_graph == {
        "email": ["mail-5@example.com"]
    }
    done = finish(platform, erase("user_id:many-mails"))
    assert done.receipts["clusters"]["left_alone"] == 1
    assert set(Identifier.objects.values_list("value", flat=True)) == {"other-one", "mail-6@example.com"}
    assert b"mail-5@example.com" not in platform.stores()["postgresql"]
    assert replay.verify().examples == []
