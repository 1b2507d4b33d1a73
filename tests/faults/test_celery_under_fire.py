"""Celery while its processes and its broker are killed: every task ends, its effect comes once, no slot runs twice.

ROUNDS says for how long (default 3; 30 is the full measure: twenty restarts of the broker, ten minutes of two
beats), SEED at which moments.
"""

import os
import random
import time
from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from django.utils import timezone

from cdp import task_runs
from cdp.models import TaskRun
from tests import celery_tasks as tasks
from tests.celery_fleet import Fleet, counted, open_runs
from tests.running import wait_until
from tests.valkey import own_valkey

pytestmark = pytest.mark.faults

ROUNDS = int(os.environ.get("ROUNDS", "3"))
SEED = int(os.environ.get("SEED", "1"))
AGAIN_SECONDS = 30.0
LONG_SECONDS = 60.0 + ROUNDS
TICK_SECONDS = 2
BEATS_SECONDS = 20 * ROUNDS


@pytest.fixture
def chance():
    print(f"SEED={SEED} ROUNDS={ROUNDS}")
    return random.Random(SEED)


@pytest.fixture
def fleet(own_database, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with own_valkey("broker") as broker:
        fleet = Fleet(own_database, broker, logs=tmp_path)
        try:
            yield fleet
        finally:
            fleet.end()


def end_of(fleet):
    """Wait until all work is done, and close the books."""
    wait_until(lambda: fleet.done() == fleet.sent, LONG_SECONDS)
    wait_until(_no_open_run, LONG_SECONDS)
    assert fleet.effects() == Counter(str(number) for number in range(fleet.sent))


def _no_open_run():
    # A delivery comes within seconds here.
    task_runs.close_lost(before=timezone.now() - timedelta(seconds=10))
    return not open_runs()


def test_whatever_is_killed_of_a_worker_every_task_ends_and_its_effect_comes_once(fleet, chance):
    fleet.schedule("Find work", "find_work", seconds=2)
    fleet.beat()
    worker = fleet.worker()
    for number in range(2 * ROUNDS):
        # What the last kill left is done before the next one comes, but for a few.
        wait_until(lambda: fleet.done() >= fleet.sent - 5, AGAIN_SECONDS)
        fleet.send_work(15)
        done = fleet.done()
        wait_until(lambda done=done: fleet.done() > done, AGAIN_SECONDS)
        time.sleep(chance.uniform(0.0, 0.5))
        if number % 2:
            fleet.kill(worker)
            worker = fleet.worker()
        else:
            chance.choice(fleet.children(worker)).kill()
    end_of(fleet)
    # What a kill ended was begun again, and nothing was given up.
    failed = TaskRun.objects.filter(task="tests.celery_tasks.work", status="failed").exclude(error=task_runs.LOST)
    assert list(failed.values_list("error", flat=True)) == []


def test_a_broker_that_is_killed_again_and_again_is_worked_for_again_within_30_seconds(fleet, chance):
    fleet.schedule("Find work", "find_work", seconds=2)
    fleet.beat()
    fleet.worker()
    for _ in range(max(2, 2 * ROUNDS // 3)):
        fleet.send_work(15)
        done = fleet.done()
        wait_until(lambda done=done: fleet.done() > done, AGAIN_SECONDS)
        fleet.broker.kill()
        fleet.send_work(5, told=False)
        time.sleep(chance.uniform(0.1, 1.5))
        done = fleet.done()
        fleet.broker.start()
        wait_until(lambda done=done: fleet.done() > done, AGAIN_SECONDS)
    end_of(fleet)


def test_what_was_lost_with_an_emptied_broker_is_found_and_the_schedule_goes_on(fleet, chance):
    fleet.schedule("Find work", "find_work", seconds=2)
    fleet.schedule("Tick", "tick", seconds=TICK_SECONDS)
    fleet.beat()
    fleet.worker()
    for _ in range(max(1, ROUNDS // 3)):
        fleet.send_work(30)
        done = fleet.done()
        wait_until(lambda done=done: fleet.done() > done, AGAIN_SECONDS)
        time.sleep(chance.uniform(0.0, 0.5))
        fleet.client.flushall()
        ticks = TaskRun.objects.filter(task="tests.celery_tasks.tick").count()
        wait_until(
            lambda ticks=ticks: TaskRun.objects.filter(task="tests.celery_tasks.tick").count() > ticks, AGAIN_SECONDS
        )
    wait_until(lambda: fleet.done() == fleet.sent, LONG_SECONDS)
    wait_until(_no_open_run, LONG_SECONDS)
    effects = fleet.effects()
    assert set(effects.values()) == {1}
    assert effects.keys() >= {str(number) for number in range(fleet.sent)}


def test_messages_that_all_come_twice_have_one_effect_each(fleet):
    keys = [str(number) for number in range(10 * ROUNDS)]
    for key in keys:
        sent = fleet.send(tasks.leave_effect, key)
        if int(key) % 2:
            fleet.send(tasks.leave_effect, key, task_id=sent.id)
        else:
            fleet.client.lpush("default", fleet.client.lindex("default", 0))
    assert fleet.waiting() == 2 * len(keys)
    for _ in range(2):
        fleet.worker()
    wait_until(lambda: fleet.waiting() == 0, LONG_SECONDS)
    assert fleet.effects() == Counter(keys)
    runs = TaskRun.objects.filter(task="tests.celery_tasks.leave_effect")
    assert Counter(runs.values_list("status", "attempts")) == {("succeeded", 1): len(keys)}
    # Nothing gathers in the broker.
    assert {key.partition(b".")[0] for key in fleet.client.scan_iter()} <= {b"_kombu", b"unacked_mutex"}


def test_two_beats_have_each_slot_run_once(fleet, chance):
    fleet.schedule("Tick", "tick", seconds=TICK_SECONDS)
    fleet.worker()
    beats = [fleet.beat(), fleet.beat()]
    begin = time.monotonic()
    time.sleep(BEATS_SECONDS * chance.uniform(0.3, 0.6))
    fleet.kill(beats[0])
    time.sleep(chance.uniform(0.0, 3.0))
    fleet.beat()
    time.sleep(max(0.0, begin + BEATS_SECONDS - time.monotonic()))
    wait_until(lambda: counted("martech_task_runs_total", "state").get(("tick", "twice")), AGAIN_SECONDS)
    effects = fleet.effects()
    slots = sorted(datetime.fromisoformat(key.partition("@")[2]) for key in effects)
    steps = {later - earlier for earlier, later in pairwise(slots)}
    # One beat lives all the time: no slot is left out.
    assert steps == {timedelta(seconds=TICK_SECONDS)}
    assert set(effects.values()) == {1}
    assert len(slots) >= BEATS_SECONDS / TICK_SECONDS - AGAIN_SECONDS / TICK_SECONDS
