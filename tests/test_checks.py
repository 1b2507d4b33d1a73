"""System checks: each mistake is found, by its id, with a hint; a right installation is silent."""

from dataclasses import replace
from io import StringIO

import psycopg
import pytest
import redis
from celery import shared_task
from celery.app.routes import Router, prepare
from django.conf import settings as configured
from django.core import checks as framework
from django.core.management import call_command
from django.db import connection, connections, transaction

from cdp import suppressions
from cdp.processing.identity import Identifier
from martech import checks
from martech.celery import app


def ids(found):
    assert all(message.hint for message in found)
    return [message.id for message in found]


def test_a_right_installation_is_silent(own_database):
    told = StringIO()
    call_command("check", databases=["default"], fail_level="WARNING", stderr=told)
    assert ids(checks.event_log() + checks.redis_broker()) == []


def test_every_check_is_registered():
    registered = {check.__name__ for check in framework.registry.registry.get_checks(include_deployment_checks=True)}
    assert {"secrets", "redis_roles", "celery_settings", "postgresql", "event_log", "redis_broker"} <= registered


@pytest.mark.parametrize(
    ("debug", "hosts", "found"),
    [
        (True, ["localhost", "127.0.0.1", "[::1]"], []),
        (True, ["cdp.example.com"], ["martech.E001"]),
        (True, ["*"], ["martech.E001"]),
        (False, ["cdp.example.com"], []),
    ],
)
def test_debugging_in_public_is_an_error(settings, debug, hosts, found):
    settings.DEBUG, settings.ALLOWED_HOSTS = debug, hosts
    assert ids(checks.secrets()) == found


@pytest.mark.parametrize("key", ["short-but-varied-key", "a" * 60])
def test_a_weak_secret_key_is_an_error(settings, key):
    settings.SECRET_KEY = key
    assert ids(checks.secrets()) == ["martech.E002"]


@pytest.mark.parametrize(
    ("log", "broker", "cache", "found"),
    [
        ("redis://a/0", "redis://b/0", "redis://c/0", []),
        ("redis://a:6379/0", "redis://b", "redis://a/1", ["martech.E003"]),
        ("redis://a", "redis://localhost/0", "rediss://127.0.0.1:6379/1", ["martech.E003"]),
        ("unix:///s/log", "unix:///s/broker", "unix:///s/log?db=1", ["martech.E003"]),
        ("redis://a/0", "redis://a/1", "redis://c", ["martech.W004"]),
        ("redis://a/0", "redis://a/1", "redis://a/2", ["martech.E003", "martech.E003", "martech.W004"]),
        ("redis://a:7001", "redis://a:7002", "redis://a:7003", []),
        ("", "", "", []),
    ],
)
def test_servers_with_two_roles_are_found(settings, log, broker, cache, found):
    settings.CONFIG = replace(configured.CONFIG, log_url=log, broker_url=broker, cache_url=cache)
    assert ids(checks.redis_roles()) == found


@pytest.mark.parametrize("name", sorted(checks.CELERY))
def test_a_celery_setting_that_would_lose_tasks_is_found(name, monkeypatch):
    wrong = {True: False, False: True}.get(checks.CELERY[name][0], "wrong") if name != "accept_content" else ["pickle"]
    monkeypatch.setitem(app.conf, name, wrong)
    [found] = checks.celery_settings()
    assert found.id == "martech.E010"
    assert found.msg.startswith(f"Celery's {name} is {wrong!r}: ")
    assert found.hint.startswith(f"Set CELERY_{name.upper()} = ")


@pytest.mark.parametrize("place", ["broker_transport_options", "result_backend_transport_options", ""])
def test_redelivery_set_differently_in_its_three_places_is_found(place, monkeypatch):
    if place:
        monkeypatch.setitem(app.conf, place, {"visibility_timeout": 7})
    else:
        monkeypatch.setitem(app.conf, "visibility_timeout", 7)
    assert ids(checks.celery_settings()) == ["martech.E011"]


def test_redelivery_of_tasks_that_still_run_is_found(settings):
    settings.TASK_SECONDS = settings.TASK_REDELIVERY_SECONDS
    assert ids(checks.celery_settings()) == ["martech.E012"]


@pytest.mark.parametrize("options", [{"acks_late": False}, {"ignore_result": False}])
def test_a_task_that_goes_its_own_way_is_found(options):
    @shared_task(name="tests.own_way", **options)
    def task():
        pass

    try:
        assert ids(checks.celery_settings()) == ["martech.E013"]
    finally:
        app.tasks.pop(task.name)


def test_a_task_that_goes_to_a_queue_nobody_reads_is_found(monkeypatch):
    routes = prepare({"cdp.tasks.heartbeat": {"queue": "hart"}})
    monkeypatch.setattr(app.amqp, "router", Router(routes, app.amqp.queues, create_missing=False, app=app))
    [found] = checks.celery_settings()
    assert found.id == "martech.E014"
    assert found.msg.startswith("The task cdp.tasks.heartbeat goes to a queue that no worker reads: ")


@pytest.mark.parametrize(
    ("version", "found"),
    [(14, ["martech.E021"]), (15, []), (18, []), (19, ["martech.W021"])],
)
def test_versions_of_postgresql_that_are_not_tested_are_found(version, found):
    assert ids(checks._version(version)) == found


def test_without_a_database_there_is_nothing_to_find():
    assert checks.postgresql() == []


def test_a_database_that_is_away_is_found(own_database, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "HOST", "/tmp/nobody")
    monkeypatch.delitem(connection.settings_dict["OPTIONS"], "pool")
    connections["default"].__dict__.pop("pg_version", None)
    [found] = checks.postgresql(databases=["default"])
    assert found.id == "martech.E020"
    assert found.msg.startswith("PostgreSQL cannot be asked: ")


@pytest.mark.parametrize(("wanted", "found"), [(8, []), (4, ["martech.E022"]), (16, ["martech.W022"])])
def test_another_number_of_partitions_is_found(own_database, settings, wanted, found):
    with psycopg.connect(own_database, autocommit=True) as writer:
        for log, count, day in (("redis:old", 32, 1), ("redis:new", 8, 2)):
            writer.execute(
                "INSERT INTO cdp_checkpoint (log, partition, position, events, updated_at)"
                " SELECT %s, number, '', 0, make_date(2026, 1, %s) FROM generate_series(0, %s) AS number",
                [log, day, count - 1],
            )
    settings.CONFIG = replace(configured.CONFIG, log_partitions=wanted)
    assert ids(checks.postgresql(databases=["default"])) == found


@pytest.mark.parametrize(
    ("setting", "value"), [("appendfsync", "everysec"), ("maxmemory-policy", "allkeys-lru"), ("appendonly", "no")]
)
def test_a_log_that_may_lose_events_is_found(setting, value):
    with redis.Redis.from_url(configured.CONFIG.log_url) as server:
        before = server.config_get(setting)[setting]
        server.config_set(setting, value)
        try:
            [found] = checks.event_log()
        finally:
            server.config_set(setting, before)
    assert found.id == "martech.E030"
    assert f"{setting} {value}" in found.msg


def test_servers_that_are_away(settings):
    settings.CONFIG = replace(
        configured.CONFIG, log_url="unix:///tmp/nobody.sock", broker_url="unix:///tmp/nobody.sock"
    )
    assert ids(checks.event_log()) == ["martech.E031"]
    # Worker and beat wait for their broker.
    assert checks.redis_broker() == []


def test_a_broker_that_evicts_is_found():
    with redis.Redis.from_url(configured.CONFIG.broker_url) as server:
        server.config_set("maxmemory-policy", "volatile-lru")
        try:
            assert ids(checks.redis_broker()) == ["martech.E032"]
        finally:
            server.config_set("maxmemory-policy", "noeviction")


@pytest.mark.django_db
def test_a_key_that_would_let_erased_people_back_is_an_error(settings):
    with transaction.atomic():
        suppressions.add([Identifier("user_id", "ann-1")], None)
    assert ids(checks.postgresql(databases=["default"])) == []
    settings.CONFIG = replace(settings.CONFIG, privacy_key=b"another")
    assert ids(checks.postgresql(databases=["default"])) == ["martech.E023"]


def test_an_archive_that_cannot_be_written_is_found(settings, monkeypatch):
    assert checks.archive() == []
    settings.ARCHIVE_EVENTS = True
    assert checks.archive() == []
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    assert ids(checks.archive()) == ["martech.E005"]
    settings.STORAGES = settings.STORAGES | {"archive": {"BACKEND": "nowhere.Storage"}}
    assert ids(checks.archive()) == ["martech.E005", "martech.E006"]
    settings.STORAGES = settings.STORAGES | {
        "archive": {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"bucket": "x"}}
    }
    assert ids(checks.archive()) == ["martech.E005", "martech.E006"]
