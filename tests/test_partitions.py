"""The partitions of the big tables: made ahead, dropped when old, without holding anybody up."""

import threading
import time
from contextlib import closing
from datetime import date, timedelta

import psycopg
import pytest

from cdp import partitions
from cdp.partitions import EVENTS, Partition

TODAY = date(2027, 3, 10)


@pytest.fixture
def store(database_url):
    """Return a connection to a database whose big tables have no partitions yet."""
    with closing(psycopg.connect(database_url, autocommit=True)) as connection:
        partitions.drop_before(connection, EVENTS, date.max)
        yield connection


def names(store, table=EVENTS):
    return [partition.name for partition in partitions.existing(store, table)]


@pytest.mark.parametrize(
    ("days", "start", "end"),
    [(1, "2027-03-10", "2027-03-11"), (7, "2027-03-08", "2027-03-15"), (30, "2027-02-10", "2027-03-12")],
)
def test_a_partition_holds_whole_spans_of_days(days, start, end):
    found = partitions.partition_for(EVENTS, TODAY, days=days)
    assert found == Partition(
        f"event_stream_{start.replace('-', '')}", date.fromisoformat(start), date.fromisoformat(end)
    )
    assert partitions.partition_for(EVENTS, found.start, days=days) == found
    assert partitions.partition_for(EVENTS, found.end, days=days) != found


def test_a_week_is_made_ahead_once(store):
    made = partitions.make_ahead(store, event_days=1, today=TODAY)
    days = [f"{TODAY + timedelta(days=offset):%Y%m%d}" for offset in range(8)]
    assert made == [f"event_stream_{day}" for day in days]
    assert names(store) == made
    assert partitions.make_ahead(store, event_days=1, today=TODAY) == []
    tomorrow = TODAY + timedelta(days=1)
    assert partitions.make_ahead(store, event_days=1, today=tomorrow) == ["event_stream_20270318"]


def test_another_size_covers_only_the_days_that_nothing_holds(store):
    partitions.ensure(store, EVENTS, days=1, today=date(2027, 3, 12), ahead=0)
    assert partitions.ensure(store, EVENTS, days=7, today=TODAY, ahead=7) == [
        "event_stream_20270308", "event_stream_20270313", "event_stream_20270315",
    ]  # fmt: skip
    assert partitions.existing(store, EVENTS) == [
        Partition("event_stream_20270308", date(2027, 3, 8), date(2027, 3, 12)),
        Partition("event_stream_20270312", date(2027, 3, 12), date(2027, 3, 13)),
        Partition("event_stream_20270313", date(2027, 3, 13), date(2027, 3, 15)),
        Partition("event_stream_20270315", date(2027, 3, 15), date(2027, 3, 22)),
    ]
    assert partitions.ensure(store, EVENTS, days=1, today=TODAY, ahead=7) == []


def insert(connection, day):
    """Write an event of that day, with all that it refers to."""
    profile = connection.execute(
        "INSERT INTO customer_profiles (id, identity_graph, traits, computed_traits, version, timestamp, created_at,"
        " registers, trait_states) VALUES (gen_random_uuid(), '{}', '{}', '{}', 0, now(), now(), '{}', '{}')"
        " RETURNING id"
    ).fetchone()[0]
    connection.execute(
        "INSERT INTO event_stream (ingested_at, profile_id, anchor_id, identifiers, event_type, source_id, message_id,"
        " occurred_at, received_at) VALUES (%s, %s, 1, '{}', 'track', 1, 'm', now(), now())",
        [day, profile],
    )


def test_a_partition_has_the_keys_and_the_defaults_of_its_table(store):
    [name] = partitions.ensure(store, EVENTS, days=1, today=TODAY, ahead=0)
    insert(store, TODAY)
    assert store.execute(f"SELECT name, properties, flags, event_id > 0 FROM {name}").fetchall() == [("", {}, [], True)]
    constraints = store.execute(
        "SELECT contype FROM pg_constraint WHERE conrelid = %s::regclass AND contype IN ('p', 'f') ORDER BY contype",
        [name],
    ).fetchall()
    assert constraints == [("f",), ("p",)]
    indexes = store.execute("SELECT count(*) FROM pg_indexes WHERE tablename = %s", [name]).fetchone()
    # The key, the timelines of people and accounts, and the times of ingestion.
    assert indexes == (4,)


def test_old_partitions_go_whole_and_younger_ones_stay(store):
    for offset in range(-6, 1):
        day = TODAY + timedelta(days=offset)
        partitions.ensure(store, EVENTS, days=1, today=day, ahead=0)
        insert(store, day)
    dropped = partitions.drop_old(store, event_days=2, today=TODAY)
    assert dropped == [
        "event_stream_20270304", "event_stream_20270305", "event_stream_20270306", "event_stream_20270307",
    ]  # fmt: skip
    assert names(store) == ["event_stream_20270308", "event_stream_20270309", "event_stream_20270310"]
    assert store.execute("SELECT count(*) FROM event_stream").fetchone() == (3,)
    assert partitions.drop_old(store, event_days=2, today=TODAY) == []


def test_events_are_kept_for_ever_unless_told_otherwise(store):
    partitions.ensure(store, EVENTS, days=1, today=date(2001, 1, 1), ahead=0)
    assert partitions.drop_old(store, event_days=0, today=TODAY) == []
    assert names(store) == ["event_stream_20010101"]


def test_many_makers_at_once_make_each_partition_once(store, database_url):
    made, errors = [], []

    def make(days):
        try:
            with closing(psycopg.connect(database_url, autocommit=True)) as own:
                made.extend(partitions.ensure(own, EVENTS, days=days, today=TODAY, ahead=5))
        except Exception as error:
            errors.append(error)

    makers = [threading.Thread(target=make, args=(days,), daemon=True) for days in (1, 1, 2, 7)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert errors == []
    held = partitions.existing(store, EVENTS)
    assert sorted(made) == [partition.name for partition in held]
    days = [TODAY + timedelta(days=offset) for offset in range(6)]
    assert [sum(one.start <= day < one.end for one in held) for day in days] == [1] * 6


def wait_for_waiters(store, count):
    """Wait until so many statements wait for a lock."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        [waiting] = store.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone()
        if waiting >= count:
            return
        time.sleep(0.01)
    raise AssertionError("nobody waits")


@pytest.mark.parametrize("change", ["make", "drop"])
def test_a_change_that_meets_a_long_batch_gives_way_and_tries_again(store, database_url, change, monkeypatch):
    monkeypatch.setattr(partitions, "TRIES", (0.2,) * 50)
    old = TODAY - timedelta(days=30)
    partitions.ensure(store, EVENTS, days=1, today=TODAY, ahead=0)
    partitions.ensure(store, EVENTS, days=1, today=old, ahead=0)
    changes = {
        "make": lambda own: partitions.ensure(own, EVENTS, days=1, today=TODAY, ahead=1),
        "drop": lambda own: partitions.drop_before(own, EVENTS, TODAY),
    }
    done = []

    def alter():
        with closing(psycopg.connect(database_url, autocommit=True)) as own:
            done.extend(changes[change](own))

    with closing(psycopg.connect(database_url)) as batch:
        insert(batch, TODAY)
        thread = threading.Thread(target=alter, daemon=True)
        thread.start()
        wait_for_waiters(store, 1)
        # Another batch that comes behind the waiting change is held up for one try at the most.
        begin = time.monotonic()
        insert(store, TODAY)
        assert time.monotonic() - begin < 1.0
        assert done == []
        batch.commit()
    thread.join()
    assert done == [f"event_stream_{TODAY + timedelta(days=1) if change == 'make' else old:%Y%m%d}"]


def test_a_change_that_never_gets_its_locks_says_so(store, database_url, monkeypatch):
    monkeypatch.setattr(partitions, "TRIES", (0.05, 0.05))
    partitions.ensure(store, EVENTS, days=1, today=TODAY, ahead=0)
    with closing(psycopg.connect(database_url)) as batch:
        insert(batch, TODAY)
        with pytest.raises(psycopg.OperationalError, match="lock timeout"):
            partitions.drop_before(store, EVENTS, date.max)
    assert names(store) == ["event_stream_20270310"]
