"""`/healthz`, `/readyz` and `/metrics`: what they say, to whom, and whatever is away."""

import json
import re
import socket
import threading
import time
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from io import StringIO

import psycopg
import pytest
import redis
from django.conf import settings as configured
from django.core.management import call_command
from django.test import AsyncClient, Client, RequestFactory
from django.utils import timezone
from prometheus_client import REGISTRY, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from cdp import keys, tasks
from cdp.engines.leases import Leases
from cdp.engines.local import LocalEngine
from cdp.log import open_log
from cdp.models import Checkpoint, DeadLetter, DuplicateGeneration, TaskRun
from martech import health, readiness, vitals
from tests.factories import make_source

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
NOWHERE = "unix:///tmp/nobody-listens-here.sock"


@pytest.fixture
def platform(own_database, settings):
    """Return the settings of a platform whose parts are all well."""
    settings.CONFIG = replace(configured.CONFIG, database_url=own_database)
    for url in (configured.CONFIG.log_url, configured.CONFIG.broker_url):
        with redis.Redis.from_url(url) as client:
            client.flushall()
    keys.publish_keys()
    tasks.heartbeat.apply(throw=True)
    with closing(open_log(settings.CONFIG.log_url, partitions=8)) as log:
        with psycopg.connect(own_database, autocommit=True) as processor:
            hold(processor, log.name)
            yield settings


def hold(processor, log):
    """Own all partitions, as an idle processor does."""
    leases = Leases(log, 8)
    leases.register(processor)
    leases.tend(processor)
    processor.execute("UPDATE cdp_processor SET expires_at = now() + interval '1 day'")


def ask(**options):
    answer = Client().get("/readyz", **options)
    return answer.status_code, answer.json()


def detail(part):
    return ask()[1]["parts"][part]["detail"]


def test_a_living_process_says_so_whatever_is_away(settings):
    settings.CONFIG = replace(configured.CONFIG, database_url="", log_url=NOWHERE, cache_url=NOWHERE)
    answer = Client().get("/healthz", HTTP_HOST="10.1.2.3:8000")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


def test_a_platform_that_is_well_is_ready(platform):
    status, told = ask()
    assert (status, told["status"]) == (200, "ready")
    assert {name: part["status"] for name, part in told["parts"].items()} == dict.fromkeys(
        ("log", "keys", "database", "processor", "broker", "cache", "worker"), "ok"
    )
    assert told["parts"]["database"]["detail"] == "PostgreSQL 18"
    assert told["parts"]["processor"]["detail"] == "0 entries behind"
    assert told["parts"]["worker"]["detail"] == "heartbeat 0 s ago"


def test_a_running_processor_makes_the_platform_ready(platform, own_database):
    with psycopg.connect(own_database, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(backend_pid) FROM cdp_processor")
    Checkpoint.objects.all().delete()
    with closing(open_log(platform.CONFIG.log_url, partitions=8)) as log:
        engine = LocalEngine(platform.CONFIG, log, partitions=range(8))
        running = threading.Thread(target=engine.run, daemon=True)
        running.start()
        deadline = time.monotonic() + 10
        while ask()[1]["status"] != "ready" and time.monotonic() < deadline:
            time.sleep(0.1)
        told = ask()
        engine.stop()
        running.join()
    assert told[1]["parts"]["processor"] == {"status": "ok", "detail": "0 entries behind"}


@pytest.mark.parametrize(
    ("part", "setting", "words"),
    [
        ("log", "log_url", "Tracking calls get 503. See LOG_URL."),
        ("keys", "log_url", "Keys cannot be looked up. See LOG_URL."),
        ("broker", "broker_url", "Tasks are not sent. Start it, or correct BROKER_URL."),
        ("cache", "cache_url", "Profiles are read from PostgreSQL. Start it, or correct CACHE_URL."),
    ],
)
def test_a_server_that_is_away_is_named_with_its_next_step(platform, part, setting, words):
    platform.CONFIG = replace(platform.CONFIG, **{setting: NOWHERE})
    status, told = ask()
    needed = setting == "log_url"
    assert (status, told["status"]) == ((503, "unready") if needed else (200, "degraded"))
    assert told["parts"][part]["status"] == ("down" if needed else "degraded")
    assert told["parts"][part]["detail"].endswith(words)


def test_without_postgresql_the_platform_is_not_ready(platform, monkeypatch):
    def away():
        raise psycopg.OperationalError("connection refused")

    monkeypatch.setattr(vitals, "read_database", away)
    status, told = ask()
    assert (status, told["parts"]["database"]) == (
        503, {"status": "down", "detail": "connection refused. Start it, or correct DATABASE_URL."},
    )  # fmt: skip
    assert told["parts"]["processor"] == {"status": "degraded", "detail": "unknown while PostgreSQL is away"}


def test_a_log_that_may_lose_events_is_not_ready(platform):
    with redis.Redis.from_url(platform.CONFIG.log_url) as log:
        log.config_set("appendfsync", "everysec")
        try:
            status, told = ask()
        finally:
            log.config_set("appendfsync", "always")
    assert status == 503
    assert "appendfsync everysec" in told["parts"]["log"]["detail"]


MEMORY = "Let the processor catch up, or give the log's server more memory (LOG_MEMORY_MB). It opens again by itself."


def test_a_log_that_fills_up_says_what_is_sent_away_and_why(platform):
    with redis.Redis.from_url(platform.CONFIG.log_url) as log:
        before = log.config_get("maxmemory")["maxmemory"]
        try:
            log.config_set("maxmemory", int(log.info("memory")["used_memory"] / 0.8))
            status, told = ask()
            log.config_set("maxmemory", 1)
            full_status, full = ask()
        finally:
            log.config_set("maxmemory", before)
    assert (status, told["status"], told["parts"]["log"]["status"]) == (200, "degraded", "degraded")
    said = rf"Sources that send more than their quota get 429: its server's memory is \d\d% full. {re.escape(MEMORY)}"
    assert re.fullmatch(said, told["parts"]["log"]["detail"])
    assert (full_status, full["status"]) == (200, "degraded")
    assert full["parts"]["log"] == {
        "status": "degraded", "detail": f"All tracking calls get 429: its server's memory is 100% full. {MEMORY}",
    }  # fmt: skip
    assert ask()[1]["parts"]["log"]["status"] == "ok"


def test_events_that_wait_for_long_are_named(platform):
    append(platform.CONFIG, 3, 2)
    with closing(open_log(platform.CONFIG.log_url, partitions=8)) as log:
        log.done({3: time.time_ns() // 1000 - 20 * 3_600_000_000})
        assert detail("log") == (
            "Sources that send more than their quota get 429: its oldest event has waited for 83% of "
            "COLLECTOR_WAIT_SECONDS. See why the processor does not catch up, or let events wait for longer "
            "(COLLECTOR_WAIT_SECONDS). It opens again by itself."
        )


def test_migrations_that_are_missing_are_named(platform, own_database):
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute("DELETE FROM django_migrations WHERE app = 'cdp' AND name = '0001_initial'")
    assert ask()[0] == 503
    assert detail("database") == "1 migrations are not applied, such as cdp.0001_initial. Run `manage.py migrate`."


def test_an_empty_key_store_is_not_ready(platform):
    with redis.Redis.from_url(platform.CONFIG.log_url) as store:
        store.delete("martech:keys")
    assert ask()[0] == 503
    assert detail("keys").startswith("The key store is empty.")


def test_before_a_processor_ever_ran_the_platform_is_not_ready(platform):
    Checkpoint.objects.all().delete()
    assert ask()[0] == 503
    assert detail("processor").startswith("No processor has ever run: events wait in the log.")


def test_a_processor_that_died_is_shown_and_the_web_goes_on(platform, own_database):
    with psycopg.connect(own_database, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(backend_pid) FROM cdp_processor")
    status, told = ask()
    assert (status, told["status"], told["parts"]["processor"]["status"]) == (200, "degraded", "degraded")
    assert detail("processor").startswith("8 of 8 log partitions have no processor")


def append(config, partition, count):
    with redis.Redis.from_url(config.log_url) as log:
        for _ in range(count):
            log.xadd(f"martech:log:{partition}", {"e": b"x"})


def test_a_processor_that_stands_still_is_shown(platform):
    append(platform.CONFIG, 3, 2)
    assert detail("processor") == "2 entries behind"
    Checkpoint.objects.filter(partition=3).update(updated_at=timezone.now() - timedelta(seconds=61))
    assert detail("processor").startswith("Partitions 3 have not moved for 60 s, and 2 entries wait.")


def test_a_missing_or_late_heartbeat_is_shown(platform):
    TaskRun.objects.update(ended_at=timezone.now() - timedelta(seconds=91))
    assert re.match(r"The last heartbeat of beat and worker is 9\d s old\.", detail("worker"))
    TaskRun.objects.all().delete()
    status, told = ask()
    assert (status, told["status"]) == (200, "degraded")
    assert told["parts"]["worker"]["detail"] == "No heartbeat of beat and worker yet. Start both."


@pytest.fixture
def silent():
    """Return the address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("page", ["/readyz", "/metrics"])
def test_servers_that_are_silent_do_not_hold_the_page_up(platform, silent, page):
    platform.CONFIG = replace(platform.CONFIG, log_url=silent, broker_url=silent, cache_url=silent)
    begin = time.monotonic()
    answer = Client(headers={"accept": OPENMETRICS}).get(page)
    assert time.monotonic() - begin < 1.5
    if page == "/readyz":
        assert answer.json()["parts"]["log"]["detail"].startswith("It does not answer in time.")
    else:
        assert samples(answer)["martech_part_up", "log"] == 0


STRANGERS = [
    {"REMOTE_ADDR": "203.0.113.9"},
    {"REMOTE_ADDR": ""},
    {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "127.0.0.1"},
    {"REMOTE_ADDR": "127.0.0.1", "HTTP_FORWARDED": "for=1.2.3.4"},
    {"REMOTE_ADDR": "203.0.113.9", "HTTP_AUTHORIZATION": "Bearer wrong"},
    {"REMOTE_ADDR": "203.0.113.9", "HTTP_AUTHORIZATION": "Bearer "},
    {"REMOTE_ADDR": "203.0.113.9", "HTTP_AUTHORIZATION": "Basic tökén"},
]


@pytest.mark.parametrize("who", STRANGERS)
@pytest.mark.parametrize("token", ["", "right"])
def test_strangers_are_known_as_such(settings, who, token):
    settings.METRICS_TOKEN = token
    assert not health.is_trusted(RequestFactory().get("/metrics", **who))


@pytest.mark.parametrize(
    "who",
    [
        {"REMOTE_ADDR": "127.0.0.1"},
        {"REMOTE_ADDR": "::1"},
        {"REMOTE_ADDR": "203.0.113.9", "HTTP_AUTHORIZATION": "Bearer right"},
        {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "203.0.113.9", "HTTP_AUTHORIZATION": "Bearer right"},
    ],
)
def test_this_machine_and_the_token_are_trusted(settings, who):
    settings.METRICS_TOKEN = "right"
    assert health.is_trusted(RequestFactory().get("/metrics", **who))


def test_strangers_see_neither_metrics_nor_reasons(platform):
    stranger = {"REMOTE_ADDR": "203.0.113.9"}
    answer = Client().get("/metrics", **stranger)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    status, told = ask(**stranger)
    assert (status, told["status"], told["parts"]["database"]) == (200, "ready", {"status": "ok"})


def samples(answer):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.content.decode())
        for sample in family.samples
    }


def test_metrics_tell_of_the_platform_as_a_whole(platform):
    append(platform.CONFIG, 3, 2)
    tasks.heartbeat.delay()
    source = make_source()
    DeadLetter.objects.create(
        reason="malformed", source=source, delivery=b"", received_at=timezone.now(), created_at=timezone.now()
    )
    answer = Client(headers={"accept": OPENMETRICS}).get("/metrics")
    assert answer.headers["content-type"].startswith(OPENMETRICS)
    told = samples(answer)
    assert {key: told["martech_log_lag_entries", key] for key in "0123"} == {"0": 0, "1": 0, "2": 0, "3": 2}
    assert told["martech_task_queue_length", "default"] == 1
    assert told["martech_task_queue_length", "email-transactional"] == 0
    assert told["martech_dead_letters_new",] == 1
    assert told["martech_log_partitions_owned",] == 8
    assert 0 <= told["martech_checkpoint_age_seconds", "7"] < 60
    assert 0 <= told["martech_heartbeat_age_seconds",] < 60
    assert {part: told["martech_part_up", part] for part in ("log", "database", "processor", "worker")} == {
        "log": 1, "database": 1, "processor": 1, "worker": 1,
    }  # fmt: skip


def test_names_carry_the_project_and_gauges_are_of_living_processes():
    for module in ("cdp.collector.application", "cdp.engines.local", "martech.task", "martech.lib.http"):
        import_module(module)
    ours = {
        name: metric
        for name, metric in REGISTRY._names_to_collectors.items()
        if type(metric).__module__ == "prometheus_client.metrics"
    }
    assert [name for name in ours if not name.startswith("martech_")] == []
    gauges = {name: metric._multiprocess_mode for name, metric in ours.items() if isinstance(metric, Gauge)}
    assert {name: mode for name, mode in gauges.items() if not mode.startswith("live")} == {}


@pytest.mark.anyio
async def test_the_pages_are_served_by_the_asynchronous_server_too(own_database):
    answer = await AsyncClient().get("/healthz")
    assert answer.json() == {"status": "alive"}
    assert (await AsyncClient().get("/nowhere")).status_code == 404


def test_other_methods_and_pages_go_on():
    assert health._page(Client().get("/healthz").wsgi_request) is health.healthz
    assert Client().post("/healthz").status_code == 404


def doctor(*options):
    told, status = StringIO(), 0
    try:
        call_command("doctor", *options, stdout=told)
    except SystemExit as end:
        status = end.code
    return status, told.getvalue()


def test_the_doctor_finds_a_platform_that_is_well(platform):
    status, told = doctor()
    assert (status, told.splitlines()[-1]) == (0, "All well.")
    status, told = doctor("--json")
    assert (status, json.loads(told)["status"], json.loads(told)["checks"]) == (0, "ready", [])


def test_the_doctor_names_what_is_amiss_and_fails(platform):
    TaskRun.objects.all().delete()
    platform.CONFIG = replace(platform.CONFIG, cache_url=platform.CONFIG.log_url)
    status, told = doctor("--json")
    found = json.loads(told)
    assert (status, found["status"]) == (1, "degraded")
    assert [one["id"] for one in found["checks"]] == ["martech.E003"]
    assert [part["name"] for part in found["parts"] if part["status"] != "ok"] == ["worker"]
    status, told = doctor()
    assert (status, told.splitlines()[-1]) == (1, "Something is amiss, see above.")
    assert "martech.E003" in told


def test_the_doctor_looks_at_one_part_alone(platform):
    platform.CONFIG = replace(platform.CONFIG, cache_url=NOWHERE)
    status, told = doctor("--part", "worker", "--json")
    assert (status, [part["name"] for part in json.loads(told)["parts"]]) == (0, ["worker"])
    assert doctor("--part", "cache")[0] == 1
    TaskRun.objects.update(ended_at=timezone.now() - timedelta(seconds=91))
    assert doctor("--part", "worker")[0] == 1


def test_each_part_can_be_asked_for(platform):
    parts = readiness.judge(vitals.gather(), partitions=8)
    assert tuple(part.name for part in parts) == readiness.NAMES


def test_lock_waits_are_shown_by_process(platform, own_database):
    with (
        psycopg.connect(own_database) as holder,
        psycopg.connect(own_database, application_name="martech-worker") as one,
    ):
        holder.execute("SELECT pg_advisory_xact_lock(1)")
        waiting = threading.Thread(target=lambda: one.execute("SELECT pg_advisory_xact_lock(1)"), daemon=True)
        waiting.start()
        deadline = time.monotonic() + 5
        while not (found := vitals.read_database().lock_waits) and time.monotonic() < deadline:
            time.sleep(0.02)
        holder.rollback()
        waiting.join()
    assert [(wait.process, wait.sessions) for wait in found] == [("worker", 1)]
    assert 0 <= found[0].seconds < 5


def test_the_window_of_duplicates_is_stated(platform):
    DuplicateGeneration.objects.update(opened_at=timezone.now() - timedelta(hours=2), sealed_at=timezone.now(), keys=7)
    window = vitals.read_database().duplicates
    assert (round(window.seconds / 60), window.ids) == (120, 7)
