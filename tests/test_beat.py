"""The slots of the schedule: each is run once, whichever beat sends it, whatever the clock is turned to."""

import json
import os
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import redis
from celery.schedules import crontab, schedule
from django.db import IntegrityError
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask
from django_celery_beat.tzcrontab import TzAwareCrontab

from cdp import task_runs
from cdp.models import TaskRun
from martech import slots
from martech.beat import SlotScheduler
from martech.celery import app

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def utc(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def berlin(**when):
    return TzAwareCrontab(**when, tz=BERLIN)


def runs(of, begin, end):
    """Return the slots between two times, as one who looks each minute sees them."""
    minutes = int((utc(end) - utc(begin)).total_seconds()) // 60
    seen = [slots.present(of, utc(begin) + timedelta(minutes=minute)) for minute in range(minutes)]
    return [f"{slot:%d %H:%M}" for slot in sorted(set(seen)) if slot >= utc(begin)]


@pytest.mark.parametrize(
    ("seconds", "now", "slot"),
    [
        (30, "2026-11-20 12:00:29.999999", "2026-11-20 12:00:00"),
        (30, "2026-11-20 12:00:30", "2026-11-20 12:00:30"),
        (7, "1970-01-01 00:00:20", "1970-01-01 00:00:14"),
        (86400, "2026-11-20 12:00:00", "2026-11-20 00:00:00"),
        (0.5, "2026-11-20 12:00:00.7", "2026-11-20 12:00:00.5"),
    ],
)
def test_the_slot_of_an_interval_is_counted_from_1970(seconds, now, slot):
    assert slots.present(schedule(seconds), utc(now)) == utc(slot)


@pytest.mark.parametrize(
    ("when", "now", "slot"),
    [
        ({"minute": "7"}, "2026-11-20 12:06:59", "2026-11-20 11:07:00"),
        ({"minute": "7"}, "2026-11-20 12:07:00", "2026-11-20 12:07:00"),
        ({"minute": "20", "hour": "3"}, "2026-11-20 03:19:00", "2026-11-19 03:20:00"),
        ({"minute": "0", "hour": "0", "day_of_week": "sun"}, "2026-11-20 12:00:00", "2026-11-15 00:00:00"),
        ({"minute": "0", "hour": "0", "day_of_month": "1", "month_of_year": "2"}, "2026-01-31", "2025-02-01"),
        ({"minute": "0", "hour": "0", "day_of_month": "29", "month_of_year": "2"}, "2026-01-31", "2024-02-29"),
    ],
)
def test_the_slot_of_a_crontab_is_its_latest_time(when, now, slot):
    assert slots.present(crontab(**when, app=app), utc(now)) == utc(slot)


def test_a_crontab_that_did_not_come_for_long_has_no_slot():
    rare = crontab(day_of_month="29", month_of_year="2", day_of_week="sun", app=app)
    assert slots.present(rare, NOON) is None
    assert not slots.Slotted(rare).is_due(NOON).is_due


def test_a_crontab_follows_the_clock_of_its_zone():
    morning = berlin(minute="30", hour="8")
    assert slots.present(morning, utc("2026-07-01 12:00")) == utc("2026-07-01 06:30")
    assert slots.present(morning, utc("2026-12-01 12:00")) == utc("2026-12-01 07:30")
    kathmandu = TzAwareCrontab(minute="0", hour="0", tz=ZoneInfo("Asia/Kathmandu"))
    assert slots.present(kathmandu, utc("2026-07-01 18:14")) == utc("2026-06-30 18:15")
    assert slots.present(kathmandu, utc("2026-07-01 18:15")) == utc("2026-07-01 18:15")


def test_a_line_for_an_hour_runs_once_on_the_day_the_clock_is_put_forward():
    # On 29 March 2026 02:00 became 03:00 in Berlin, at 01:00 UTC.
    assert runs(berlin(minute="30", hour="2"), "2026-03-28 00:00", "2026-03-31 00:00") == [
        "28 01:30", "29 01:30", "30 00:30",
    ]  # fmt: skip
    assert runs(berlin(minute="30", hour="3"), "2026-03-28 00:00", "2026-03-31 00:00") == [
        "28 02:30", "29 01:30", "30 01:30",
    ]  # fmt: skip


def test_a_line_for_an_hour_runs_once_on_the_day_the_clock_is_put_back():
    # On 25 October 2026 03:00 became 02:00 in Berlin, at 01:00 UTC.
    assert runs(berlin(minute="30", hour="2"), "2026-10-24 00:00", "2026-10-27 00:00") == [
        "24 00:30", "25 00:30", "26 01:30",
    ]  # fmt: skip


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
def test_a_line_for_every_hour_runs_every_hour_whatever_the_clock_is_turned_to(day):
    assert runs(berlin(minute="0"), f"{day} 00:00", f"{day} 05:00") == [f"{day[-2:]} 0{hour}:00" for hour in range(5)]


def test_a_clocked_line_has_its_time_as_slot():
    assert slots.present(clocked(NOON), NOON + timedelta(days=1)) == NOON


def test_a_line_is_due_once_in_a_slot(monkeypatch):
    line = slots.Slotted(schedule(30))
    monkeypatch.setattr(line, "now", lambda: NOON + timedelta(seconds=40))
    assert line.is_due(NOON) == (True, 20.01)
    assert line.slot == NOON + timedelta(seconds=30)
    assert line.is_due(line.slot) == (False, 20.01)
    hourly = slots.Slotted(crontab(minute="0", app=app))
    monkeypatch.setattr(hourly, "now", lambda: NOON + timedelta(seconds=40))
    assert hourly.is_due(NOON) == (False, 20.01)
    assert hourly.is_due(NOON - timedelta(seconds=1)) == (True, 20.01)


def test_the_id_of_a_slot_stays_what_it_is():
    slot = slots.name("Heartbeat of worker and beat", NOON.astimezone(BERLIN))
    assert slot == "Heartbeat of worker and beat@2026-11-20T12:00:00+00:00"
    assert slots.task_id(slot) == "4121e97d-383b-58d6-b718-afdf56c1cb7e"


@pytest.fixture
def broker():
    with redis.Redis.from_url(os.environ["BROKER_URL"]) as client:
        client.flushall()
        yield client


def make_line(name, task, *, last_run_at, **when):
    return PeriodicTask.objects.create(name=name, task=task, last_run_at=last_run_at, **when)


def tick(beat):
    """Let a beat send all that is due."""
    while beat.tick() == 0:
        pass


def sent(broker):
    """Return the messages that wait: task, id and slot."""
    headers = [json.loads(message)["headers"] for message in broker.lrange("default", 0, -1)]
    return [(one["task"], one["id"], one["slot"]) for one in headers]


@pytest.fixture
def make_beat(own_database, broker, monkeypatch):
    """Return what makes a beat with no lines but those in the database."""
    monkeypatch.setitem(app.conf, "beat_schedule", {})
    beats = []

    def make():
        beats.append(SlotScheduler(app=app))
        return beats[-1]

    yield make
    for beat in beats:
        # It would be called at the end of the process.
        beat._finalize.cancel()
        beat.close()


def test_two_beats_send_one_id_a_slot(make_beat, broker):
    every_day, _ = IntervalSchedule.objects.get_or_create(every=1, period="days")
    nightly, _ = CrontabSchedule.objects.get_or_create(minute="0", hour="5", timezone="Europe/Berlin")
    old = datetime.now(UTC) - timedelta(days=2)
    make_line("Each day", "cdp.tasks.heartbeat", last_run_at=old, interval=every_day)
    make_line("Each night", "cdp.tasks.heartbeat", last_run_at=old, crontab=nightly)
    make_line("Of others", "others.task", last_run_at=old, interval=every_day)
    beats = [make_beat(), make_beat()]
    for beat in beats:
        tick(beat)
        tick(beat)
    messages = sent(broker)
    assert len(messages) == 6
    assert len(set(messages)) == 3
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0).isoformat()
    assert {slot for _, _, slot in messages} >= {f"Each day@{midnight}", f"Of others@{midnight}"}
    assert all(task_id == slots.task_id(slot) for _, task_id, slot in messages)
    # A beat that starts later knows from the rows what was sent.
    beats[0].sync()
    tick(make_beat())
    assert len(sent(broker)) == 6


def test_a_line_whose_message_could_not_be_sent_is_due_again(make_beat, broker, monkeypatch):
    every_day, _ = IntervalSchedule.objects.get_or_create(every=1, period="days")
    old = datetime.now(UTC) - timedelta(days=2)
    make_line("Each day", "cdp.tasks.heartbeat", last_run_at=old, interval=every_day)
    beat = make_beat()
    with monkeypatch.context() as away:
        away.setattr(app.tasks["cdp.tasks.heartbeat"], "apply_async", lambda *_, **__: 1 / 0)
        tick(beat)
    assert sent(broker) == []
    beat.sync()
    assert PeriodicTask.objects.get().last_run_at == old
    beat.populate_heap()
    tick(beat)
    assert len(sent(broker)) == 1
    beat.sync()
    assert PeriodicTask.objects.get().total_run_count == 1


def test_a_line_far_from_its_hour_is_not_forgotten(make_beat, broker):
    hour = (datetime.now(UTC).hour - 6) % 24
    daily, _ = CrontabSchedule.objects.get_or_create(minute="0", hour=str(hour), timezone="UTC")
    make_line("Daily", "cdp.tasks.heartbeat", last_run_at=datetime.now(UTC) - timedelta(days=3), crontab=daily)
    tick(make_beat())
    assert len(sent(broker)) == 1


def test_the_run_of_a_slot_is_noted_under_its_name(own_database):
    slot = slots.name("Each day", NOON)
    starts = [task_runs.start(slots.task_id(slot), "some.task", slot).attempts for _ in range(2)]
    assert (starts, TaskRun.objects.get().slot) == ([1, 2], slot)
    with pytest.raises(IntegrityError, match="slot"):
        task_runs.start("6b1f0f4c-0000-4000-8000-000000000001", "some.task", slot)
