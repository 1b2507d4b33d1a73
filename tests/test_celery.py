"""What becomes of tasks: counted, tried again, delivered again after a kill, ended when they are poison."""

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import redis
from django.db import connection
from django_celery_beat.models import PeriodicTask
from psycopg import sql

from cdp import task_locks, task_runs
from cdp.models import TaskRun
from martech.beat import SlotScheduler
from martech.celery import app
from martech.lib.errors import PermanentError
from tests import celery_tasks as tasks
from tests.celery_fleet import Fleet, counted, open_runs
from tests.running import wait_until
from tests.valkey import own_valkey

TOO_LONG = "It ran for longer than it may. Let it do less at a time, or raise TASK_SECONDS."
ID = "6b1f0f4c-0000-4000-8000-000000000001"


@contextmanager
def process(database_url, role, *options, stderr=None):
    """Run a real worker or beat on the test's database and broker."""
    limits = {"TASK_SECONDS": "1", "TASK_REDELIVERY_SECONDS": "2"}
    environment = os.environ | {"DATABASE_URL": database_url, "REMAP_SIGTERM": "SIGQUIT", **limits}
    command = [sys.executable, "-m", "celery", "-A", "martech.celery", role, *options]
    running = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
    )
    try:
        yield running
    finally:
        if running.poll() is None:
            running.terminate()
            try:
                running.wait(8)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()


def worker(database_url):
    options = ["-I", "tests.celery_tasks", "--concurrency", "1"]
    return process(database_url, "worker", *options, "--without-gossip", "--without-mingle", "--without-heartbeat")


@pytest.fixture
def running(own_database, monkeypatch, tmp_path):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with worker(own_database) as process:
        yield process


@pytest.fixture(autouse=True)
def broker():
    """Return a client of the broker, which is empty."""
    with redis.Redis.from_url(os.environ["BROKER_URL"]) as client:
        client.flushall()
        yield client


def ended(result, seconds=25):
    """Wait for a task's end and return its row."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        run = TaskRun.objects.filter(id=result.id, status__in=["succeeded", "failed"]).first()
        if run:
            return run
        time.sleep(0.05)
    raise AssertionError(f"not ended after {seconds} s: {list(TaskRun.objects.values())}")


def test_tasks_end_as_their_errors_say_and_are_counted(running):
    sent = {
        task: task.delay()
        for task in (
            tasks.succeed, tasks.fail, tasks.break_down, tasks.come_later, tasks.come_much_later, tasks.come_too_late,
            tasks.run_for_long, tasks.run_for_ever, tasks.poison,
        )
    }  # fmt: skip
    runs = {task.__name__: ended(result) for task, result in sent.items()}
    assert {name: (run.status, run.attempts, run.error) for name, run in runs.items()} == {
        "succeed": ("succeeded", 1, ""),
        "fail": ("failed", 1, "This can never work."),
        "break_down": ("failed", 1, "ZeroDivisionError: a bug"),
        "come_later": ("failed", 3, "Not yet."),
        "come_much_later": ("failed", 1, "Not today."),
        "come_too_late": ("failed", 1, runs["come_too_late"].error),
        "run_for_long": ("failed", 1, TOO_LONG),
        "run_for_ever": ("failed", 1, TOO_LONG),
        "poison": (
            "failed",
            2,
            "It came to no end in 1 starts: its process died. Correct the cause, then send it again.",
        ),
    }
    assert "would wait 3600 s in the broker" in runs["come_too_late"].error
    assert {run.ended_at > run.started_at for run in runs.values()} == {True}
    assert counted("martech_task_runs_total", "state") == {
        ("succeed", "succeeded"): 1,
        ("fail", "failed"): 1,
        ("break_down", "failed"): 1,
        ("come_later", "retrying"): 2,
        ("come_later", "failed"): 1,
        ("come_much_later", "failed"): 1,
        ("come_too_late", "failed"): 1,
        ("run_for_long", "failed"): 1,
        ("run_for_ever", "failed"): 1,
        ("poison", "lost"): 1,
        ("poison", "failed"): 1,
    }
    starts = {(name,): float(run.attempts) for name, run in runs.items()}
    assert counted("martech_task_wait_seconds_count") == starts
    # Nothing stays in the broker, and what came after the worker's deaths is worked on.
    assert ended(tasks.succeed.delay(1, "two", [3])).status == "succeeded"


def test_a_task_whose_worker_was_killed_is_delivered_again(own_database, tmp_path):
    result = tasks.kill_the_worker_once.delay(str(tmp_path / "killed"))
    with worker(own_database) as first:
        assert first.wait(15) == -signal.SIGKILL
    with worker(own_database):
        run = ended(result)
    assert (run.status, run.attempts) == ("succeeded", 2)


@pytest.fixture
def fleet(own_database, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with own_valkey("broker") as server:
        fleet = Fleet(own_database, server, logs=tmp_path)
        try:
            yield fleet
        finally:
            fleet.end()


def test_a_task_that_is_delivered_again_while_it_runs_runs_once(fleet):
    fleet.worker()
    result = fleet.send(tasks.outlast_redelivery)
    run = ended(result)
    wait_until(lambda: fleet.waiting() == 0)
    assert (run.status, run.attempts) == ("succeeded", 1)
    assert fleet.effects() == {"outlasted": 1}
    assert counted("martech_task_runs_total", "state")["outlast_redelivery", "twice"] > 0


def test_a_worker_that_was_busy_to_its_limit_while_the_broker_was_away_takes_tasks_again(fleet):
    fleet.worker(concurrency=1)
    fleet.send(tasks.leave_effect, "before")
    wait_until(fleet.effects)
    fleet.broker.kill()
    # The task ends, and nobody can be told.
    wait_until(lambda: not open_runs())
    time.sleep(0.5)
    fleet.broker.start()
    fleet.send(tasks.leave_effect, "after")
    wait_until(lambda: fleet.effects() == {"before": 1, "after": 1})


def test_a_task_that_finds_postgresql_away_comes_again(own_database):
    with worker(own_database):
        assert ended(tasks.succeed.delay(1)).status == "succeeded"
        with closed(connection.settings_dict["NAME"]):
            result = tasks.succeed.delay(2)
            time.sleep(1)
        run = ended(result)
    assert (run.status, run.attempts) == ("succeeded", 1)


@contextmanager
def closed(database):
    """Let nobody into a database."""
    connection.close()
    connection.close_pool()
    name = sql.Identifier(database)
    with psycopg.connect(os.environ["DATABASE_URL"], dbname="postgres", autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database])
        try:
            yield
        finally:
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))


def test_worker_and_beat_refuse_a_broker_that_evicts(own_database, broker):
    broker.config_set("maxmemory-policy", "allkeys-lru")
    try:
        for role in ("worker", "beat"):
            with process(own_database, role, stderr=subprocess.PIPE) as refusing:
                _, told = refusing.communicate(timeout=20)
            assert refusing.returncode == os.EX_CONFIG
            assert b"(martech.E032) The broker's server has maxmemory-policy allkeys-lru" in told
    finally:
        broker.config_set("maxmemory-policy", "noeviction")


@pytest.mark.parametrize(
    "arguments",
    [(1, "u1", uuid.UUID(int=1)), ([1, 2, "three"],), (True,), ("x" * 128,), (list(range(100)),)],
)
def test_a_message_may_carry_ids(arguments, broker):
    tasks.succeed.delay(*arguments)
    assert broker.llen("default") == 1


@pytest.mark.parametrize(
    "argument",
    [{"email": "a@example.com"}, "x" * 129, list(range(101)), [[1]], [{"id": 1}], b"bytes", 1.5, None, object()],
)
def test_a_message_may_carry_nothing_else(argument, broker):
    with pytest.raises(PermanentError, match="carries ids alone") as refused:
        tasks.succeed.delay(argument)
    assert refused.value.code == "task_arguments"
    with pytest.raises(PermanentError, match="as argument name"):
        tasks.succeed.apply_async(kwargs={"name": argument})
    assert broker.llen("default") == 0


def test_a_message_that_got_round_that_is_refused_at_its_start(own_database):
    result = app.tasks["tests.celery_tasks.succeed"].apply(args=[{"a": "dict"}])
    assert result.state == "FAILURE"
    assert TaskRun.objects.get().error.startswith("tests.celery_tasks.succeed was given a dict as argument 1.")


@pytest.mark.parametrize("option", ["countdown", "eta"])
def test_a_message_may_not_wait_for_long(option, broker):
    late = {"countdown": 350, "eta": datetime.now(UTC) + timedelta(seconds=350)}
    with pytest.raises(PermanentError, match=r"would wait 3[45]\d s in the broker"):
        tasks.succeed.apply_async(**{option: late[option]})
    assert broker.llen("default") == 0


def test_a_message_may_wait_for_minutes(broker):
    tasks.succeed.apply_async(countdown=300)
    assert broker.llen("default") == 1


def test_a_message_that_comes_twice_runs_once(own_database):
    first = tasks.succeed.apply(args=[1])
    again = tasks.succeed.apply(args=[1], task_id=first.id)
    assert (first.state, again.state) == ("SUCCESS", "IGNORED")
    run = TaskRun.objects.get()
    assert (run.status, run.attempts) == ("succeeded", 1)


def test_a_message_of_a_task_that_runs_elsewhere_comes_again_until_that_is_over(running, own_database):
    with psycopg.connect(own_database, autocommit=True) as other:
        lock(other, ID)
        tasks.succeed.apply_async([1], task_id=ID)
        wait_until(lambda: counted("martech_task_runs_total", "state") == {("succeed", "twice"): 1})
        assert not TaskRun.objects.exists()
    # The other one died before it came to an end.
    run = ended(tasks.succeed.AsyncResult(ID))
    assert (run.status, run.attempts) == ("succeeded", 1)


def lock(session, task_id):
    """Hold a task, as a worker that runs it does."""
    session.execute("SELECT pg_advisory_lock(%s, %s)", task_locks._keys(task_id))


def test_a_lock_is_one_sessions_and_ends_with_it(own_database):
    with psycopg.connect(own_database, autocommit=True) as other:
        lock(other, ID)
        assert not task_locks.take(ID)
        assert not task_locks.holds(ID)
    assert wait_until(lambda: task_locks.take(ID))
    assert task_locks.take(ID)
    with psycopg.connect(own_database, autocommit=True) as other:
        taken = "SELECT pg_try_advisory_lock(%s, %s)"
        assert other.execute(taken, task_locks._keys(ID)).fetchone() == (False,)
        task_locks.release(ID)
        assert other.execute(taken, task_locks._keys(ID)).fetchone() == (True,)
    assert not task_locks.holds(ID)


def test_a_session_that_was_ended_meanwhile_is_replaced(own_database):
    assert task_locks.take(ID)
    with psycopg.connect(own_database, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s",
            [task_locks.LOCK_CLASS],
        )
    assert task_locks.take(str(uuid.UUID(int=1)))
    assert not task_locks.holds(ID)


@pytest.mark.parametrize("task", [tasks.succeed, tasks.fail, tasks.break_down, tasks.ignore])
def test_a_task_is_let_go_of_however_it_ends(task, own_database):
    result = task.apply(task_id=ID)
    assert TaskRun.objects.get().attempts == 1
    assert result.id == ID
    assert not task_locks.holds(ID)


def test_a_task_that_waits_to_run_again_is_not_over(own_database):
    started = task_runs.start(ID, "some.task")
    assert (started.attempts, started.before, started.over, started.lost) == (1, "", False, False)
    task_runs.end(ID, "retrying", "Not yet.")
    again = task_runs.start(ID, "some.task")
    assert (again.attempts, again.before, again.error, again.over, again.lost) == (
        2, "retrying", "Not yet.", False, False,
    )  # fmt: skip
    assert task_runs.start(ID, "some.task").lost


def test_the_schedule_is_written_for_the_admin_who_may_switch_lines_off(own_database):
    SlotScheduler(app=app)
    rows = {row.name: row for row in PeriodicTask.objects.all()}
    assert rows.keys() == app.conf.beat_schedule.keys()
    heartbeat = rows["Heartbeat of worker and beat"]
    assert (heartbeat.task, str(heartbeat.schedule), heartbeat.expire_seconds) == (
        "cdp.tasks.heartbeat", "<freq: 30.00 seconds>", 30,
    )  # fmt: skip
    PeriodicTask.objects.filter(id=heartbeat.id).update(enabled=False)
    SlotScheduler(app=app)
    assert not PeriodicTask.objects.get(id=heartbeat.id).enabled


def test_all_that_is_scheduled_exists():
    assert {line["task"] for line in app.conf.beat_schedule.values()} <= app.tasks.keys()


@pytest.mark.parametrize(
    ("task", "queue"),
    [
        ("cdp.tasks.heartbeat", "default"),
        ("cdp.tasks.recompute_trait", "traits"),
        ("crm.tasks.pull", "crm"),
        ("emails.tasks.send", "email"),
        ("emails.tasks.send_transactional", "email-transactional"),
        ("emails.tasks.train_send_time", "ml"),
    ],
)
def test_tasks_go_to_the_queue_of_their_kind(task, queue):
    assert app.amqp.router.route({}, task)["queue"].name == queue
