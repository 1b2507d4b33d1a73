"""The platform's own chores, as beat sends them."""

import uuid
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import redis
from django.conf import settings
from django.db import connection
from django.utils import timezone
from prometheus_client import REGISTRY

from cdp import integrity, partitions, task_locks, task_runs, tasks
from cdp.collector.keys import PUBLISHED, TABLE, keys_url
from cdp.models import Identifier, TaskRun
from tests.factories import make_event, make_profile, make_source

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _own(own_database):
    pass


def held():
    connection.ensure_connection()
    return [one.name for one in partitions.existing(connection.connection, partitions.EVENTS)]


def test_partitions_are_made_again_after_somebody_dropped_them():
    before = held()
    partitions.drop_before(connection.connection, partitions.EVENTS, datetime.max.date())
    tasks.make_partitions.apply(throw=True)
    assert held() == before
    tasks.make_partitions.apply(throw=True)
    assert held() == before


def test_old_events_are_dropped_only_when_retention_is_set(settings):
    tasks.make_partitions.apply(throw=True)
    partitions.ensure(connection.connection, partitions.EVENTS, days=1, today=NOW.date() - timedelta(days=900), ahead=0)
    before = held()
    tasks.drop_partitions.apply(throw=True)
    assert held() == before
    settings.EVENT_RETENTION_DAYS = 365
    tasks.drop_partitions.apply(throw=True)
    assert held() == before[1:]


def test_keys_are_published_again_after_the_store_lost_them():
    make_source()
    with redis.Redis.from_url(keys_url(settings.CONFIG)) as store:
        store.delete(TABLE)
        tasks.publish_keys.apply(throw=True)
        assert store.hexists(TABLE, PUBLISHED)
        assert store.hlen(TABLE) == 2


def orphans():
    return REGISTRY.get_sample_value("martech_integrity_orphans_total")


def test_an_event_without_its_profile_is_found(caplog):
    source = make_source()
    person = make_profile(("user_id", "u1"))
    make_event(person, source)
    connection.ensure_connection()
    found = [name for name in held() if integrity.count_orphans(connection.connection, name)]
    assert found == []
    before = orphans()
    # The key is declared, not enforced: only this proof would notice.
    Identifier.objects.filter(profile=person).update(profile=make_profile())
    person.delete()
    found = [name for name in held() if integrity.count_orphans(connection.connection, name)]
    assert found == [f"event_stream_{datetime.now(UTC):%Y%m%d}"]
    assert orphans() == before + 1
    assert "events without a profile" in caplog.text
    assert integrity.count_orphans(connection.connection, "event_stream_19990101") == 0


def test_each_partition_is_proven_by_a_task_of_its_own():
    with redis.Redis.from_url(settings.CONFIG.broker_url) as broker:
        broker.flushall()
        tasks.prove_events.apply(throw=True)
        assert broker.llen("default") == len(held())
        broker.flushall()
    tasks.prove_partition.apply([held()[0]], throw=True)
    assert TaskRun.objects.filter(task="cdp.tasks.prove_partition").get().status == "succeeded"


def make_run(status, *, days):
    started = NOW - timedelta(days=days)
    return TaskRun.objects.create(id=uuid.uuid4(), task="some.task", status=status, attempts=1, started_at=started)


def test_old_runs_are_forgotten():
    make_run("succeeded", days=8)
    young = make_run("succeeded", days=6)
    assert task_runs.prune(days=7, now=NOW) == 1
    assert TaskRun.objects.get().id == young.id


def lost(run):
    """Return what became of a run."""
    run.refresh_from_db()
    return run.status, run.error


def test_runs_that_nobody_runs_and_no_message_can_bring_back_are_closed(own_database):
    started, retrying, running = make_run("started", days=1), make_run("retrying", days=1), make_run("started", days=1)
    young, over = make_run("started", days=0), make_run("succeeded", days=1)
    with psycopg.connect(own_database, autocommit=True) as worker:
        worker.execute("SELECT pg_advisory_lock(%s, %s)", task_locks._keys(str(running.id)))
        assert task_runs.close_lost(before=NOW - timedelta(hours=1)) == 2
    words = "Its worker was lost, and the broker did not deliver it again."
    assert [lost(run) for run in (started, retrying, running, young, over)] == [
        ("failed", words), ("failed", words), ("started", ""), ("started", ""), ("succeeded", ""),
    ]  # fmt: skip
    assert not task_locks.holds(str(started.id))


def test_a_run_that_was_given_up_goes_on_when_its_message_comes_all_the_same():
    run = make_run("started", days=1)
    task_runs.close_lost(before=NOW)
    assert not task_runs.start(str(run.id), "some.task").over
    task_runs.end(str(run.id), "succeeded")
    assert lost(run) == ("succeeded", "")
    assert task_runs.start(str(run.id), "some.task").over


def test_a_run_that_was_given_up_while_it_went_on_ends_as_it_did():
    run = make_run("started", days=1)
    task_runs.close_lost(before=NOW)
    task_runs.end(str(run.id), "succeeded")
    assert lost(run) == ("succeeded", "")


def test_runs_are_closed_once_no_delivery_can_be_under_way(settings):
    times = settings.TASK_SECONDS + settings.TASK_REDELIVERY_SECONDS + tasks.LOST_MARGIN_SECONDS
    runs = [make_run("started", days=0) for _ in range(2)]
    for run, seconds in zip(runs, (times + 5, times - 60), strict=True):
        TaskRun.objects.filter(id=run.id).update(started_at=timezone.now() - timedelta(seconds=seconds))
    tasks.close_lost_task_runs.apply(throw=True)
    assert [lost(run)[0] for run in runs] == ["failed", "started"]


def test_a_heartbeat_is_a_run_that_ended_well():
    tasks.heartbeat.apply(throw=True)
    assert TaskRun.objects.get().status == "succeeded"
