"""What the watchdog makes of worker and beat that live without doing their work."""

import io
import os
import time
from dataclasses import replace

import psycopg
import pytest
import redis
from django.conf import settings as configured

from cdp import task_locks, tasks
from cdp.models import TaskRun
from martech import vitals
from martech.embedded import watchdog
from martech.embedded.supervisor import Program, Supervisor
from tests.running import wait_until

SLEEP = ["sleep", "300"]
NOWHERE = "unix:///tmp/nobody-listens-here.sock"


@pytest.fixture
def broker():
    with redis.Redis.from_url(os.environ["BROKER_URL"]) as client:
        client.flushall()
        yield client


@pytest.fixture
def output():
    return io.StringIO()


@pytest.fixture
def supervisor(tmp_path, output, own_database, broker, settings, monkeypatch):
    """Return a supervisor of a worker and a beat that do nothing, on a database that no heartbeat came to."""
    settings.CONFIG = replace(configured.CONFIG, database_url=own_database)
    monkeypatch.setattr(watchdog, "SILENT_SECONDS", 0.2)
    with Supervisor(pids=tmp_path, environment=os.environ, cwd=tmp_path, output=output) as running:
        for name in ("worker", "beat"):
            running.start(Program(name=name, command=SLEEP, stage=0))
        yield running


def silent(supervisor):
    return watchdog.silent_program(supervisor, vitals.gather(5.0), concurrency=2)


def wait_for_age(supervisor):
    wait_until(lambda: min(map(supervisor.uptime, ("worker", "beat"))) > watchdog.SILENT_SECONDS)


def test_a_worker_that_takes_no_tasks_is_started_again_and_that_is_said(supervisor, output, broker, monkeypatch):
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.05)
    broker.rpush("default", "a task")
    first = wait_until(lambda: supervisor.pid("worker"))
    beat = wait_until(lambda: supervisor.pid("beat"))
    watchdog.start(supervisor, concurrency=2)
    wait_until(lambda: supervisor.pid("worker") not in (None, first))
    assert "worker is started again: no heartbeat of beat and worker for 0 s" in output.getvalue()
    assert supervisor.pid("beat") == beat


def test_a_beat_that_sends_nothing_is_the_silent_one(supervisor):
    wait_for_age(supervisor)
    assert silent(supervisor) == "beat"


def test_a_worker_is_well_while_heartbeats_come_to_an_end(supervisor, broker, monkeypatch):
    monkeypatch.setattr(watchdog, "SILENT_SECONDS", 5.0)
    monkeypatch.setattr(supervisor, "uptime", lambda name: 100.0)
    broker.rpush("default", "a task")
    tasks.heartbeat.apply(throw=True)
    assert silent(supervisor) is None
    TaskRun.objects.all().delete()
    assert silent(supervisor) == "worker"


def test_a_process_that_is_young_has_time(supervisor, broker, monkeypatch):
    monkeypatch.setattr(watchdog, "SILENT_SECONDS", 60.0)
    broker.rpush("default", "a task")
    assert silent(supervisor) is None


def test_a_worker_that_is_busy_with_long_tasks_is_left_alone(supervisor, own_database, broker):
    wait_for_age(supervisor)
    broker.rpush("default", "a task")
    with psycopg.connect(own_database, autocommit=True) as children:
        children.execute("SELECT pg_advisory_lock(%s, 1)", [task_locks.LOCK_CLASS])
        assert silent(supervisor) == "worker"
        children.execute("SELECT pg_advisory_lock(%s, 2)", [task_locks.LOCK_CLASS])
        assert silent(supervisor) is None


def test_a_worker_that_has_many_tasks_before_the_heartbeat_is_left_alone(supervisor, broker, monkeypatch):
    monkeypatch.setattr(supervisor, "uptime", lambda name: 100.0)
    monkeypatch.setattr(watchdog, "SILENT_SECONDS", 30.0)
    broker.rpush("default", "a task")
    assert silent(supervisor) == "worker"
    tasks.publish_keys.apply(throw=True)
    assert silent(supervisor) is None


def test_nobody_is_blamed_while_a_server_is_away(supervisor, broker, settings, monkeypatch):
    wait_for_age(supervisor)
    settings.CONFIG = replace(settings.CONFIG, broker_url=NOWHERE)
    assert silent(supervisor) is None
    settings.CONFIG = configured.CONFIG
    monkeypatch.setattr(vitals, "read_database", lambda: 1 / 0)
    assert silent(supervisor) is None


def test_a_program_that_clings_on_is_killed(tmp_path, output):
    with Supervisor(pids=tmp_path, environment=os.environ, cwd=tmp_path, output=output) as running:
        script = "trap '' TERM; echo runs; while :; do sleep 0.02; done"
        running.start(Program(name="worker", command=["sh", "-c", script], stage=0, grace=0.3))
        wait_until(lambda: "runs" in output.getvalue())
        first, began = running.pid("worker"), time.monotonic()
        running.restart("worker", "no heartbeat")
        wait_until(lambda: running.pid("worker") not in (None, first))
        assert time.monotonic() - began > 0.3
        assert "worker was ended by SIGKILL" in output.getvalue()
