"""Messages that come again: however late, however often, by whichever process."""

import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from cdp.processing import duplicates
from cdp.processing.duplicates import Generation, Window
from cdp.processing.pipeline import Pipeline
from tests.platform import message

HOUR = timedelta(hours=1)


def apply_at(core, hours, *messages):
    """Apply a batch as if it were so many hours later: everything kept so far is that much older."""
    age(core, hours)
    return core.apply(*messages)


def age(core, hours):
    """Let the time pass, for all that is kept."""
    core.rows(
        "UPDATE cdp_duplicategeneration SET opened_at = opened_at - %s, sealed_at = sealed_at - %s RETURNING id",
        timedelta(hours=hours), timedelta(hours=hours),
    )  # fmt: skip
    with closing(psycopg.connect(core.url, autocommit=True)) as keeper:
        duplicates.seal(keeper)
        duplicates.count(keeper)
        held = duplicates.generations(keeper)
        before = datetime.now(UTC) - timedelta(days=3)
        duplicates.forget(keeper, duplicates.past(held, before=before, most=500_000_000))
        duplicates.sweep(keeper)
        while core.pipeline.window.learn(keeper):
            pass


@pytest.mark.parametrize("hours", [1 / 60, 23, 25, 70])
def test_a_retry_within_the_window_is_dropped(core, hours):
    one, two = message(userId="u1"), message(userId="u1")
    core.apply(one)
    applied = apply_at(core, hours, one, two)
    assert (applied.events, applied.duplicates) == (1, 1)
    assert core.profile("user_id:u1")["computed_traits"]["event_count"] == 2


def test_what_the_window_has_passed_counts_again(core):
    one = message(userId="u1")
    core.apply(one)
    age(core, 7)
    assert [row["n"] for row in core.rows("SELECT count(*) AS n FROM event_duplicate")] == [1]
    assert apply_at(core, 73, one).events == 1
    assert [row["n"] for row in core.rows("SELECT count(*) AS n FROM event_duplicate")] == [1]
    assert len(core.events()) == 2


@pytest.mark.parametrize("hours", [0, 7])
def test_a_batch_with_what_was_seen_and_what_comes_twice(core, hours):
    a, b, c = message(userId="u1"), message(userId="u1"), message(userId="u2")
    core.apply(a)
    applied = apply_at(core, hours, a, b, c, c)
    assert (applied.events, applied.duplicates) == (2, 2)
    assert len(core.events()) == 3


@pytest.mark.parametrize("hours", [0, 7, 30])
def test_a_reused_id_is_kept_under_an_id_made_of_both_and_counted(core, hours):
    core.apply(message(userId="u1", messageId="same", event="A"))
    applied = apply_at(core, hours, message(userId="u1", messageId="same", event="B"))
    assert (applied.events, applied.duplicates, applied.reused) == (1, 0, 1)
    again = apply_at(core, hours, message(userId="u1", messageId="same", event="B"))
    assert (again.events, again.duplicates, again.reused) == (0, 1, 0)
    assert [row["flags"] for row in core.events()] == [[], ["reused_message_id"]]


def test_another_process_without_filters_finds_the_same(core):
    sent = [message(userId=f"u{number}") for number in range(50)]
    core.apply(*sent[:25])
    age(core, 7)
    core.apply(*sent[25:40])
    core.pipeline = Pipeline()
    applied = core.apply(*sent)
    assert (applied.events, applied.duplicates) == (10, 40)


def test_two_processes_that_take_one_message_in_at_once_keep_it_once(core):
    one = message(userId="u1")
    with closing(psycopg.connect(core.url, autocommit=True)) as other:
        with other.transaction():
            Pipeline().apply(other, core.arrivals(one))
            outcome = []
            racing = threading.Thread(target=lambda: outcome.append(_outcome(core, one)), daemon=True)
            racing.start()
            racing.join(0.5)
            assert racing.is_alive()
        racing.join(10)
    assert outcome == ["Another process took one of the batch's messages in."]
    assert core.apply(one).duplicates == 1
    assert len(core.events()) == 1


def _outcome(core, one):
    with pytest.raises(duplicates.Raced) as raised:
        core.apply(one)
    return raised.value.message


def test_a_generation_is_not_sealed_under_a_batch(core):
    core.apply(message(userId="u1"))
    core.rows("UPDATE cdp_duplicategeneration SET opened_at = now() - interval '7 hours' RETURNING id")
    with closing(psycopg.connect(core.url, autocommit=True)) as keeper:
        with core.writer.transaction():
            duplicates.hold(core.writer)
            assert not duplicates.seal(keeper)
        assert duplicates.seal(keeper)
        assert not duplicates.seal(keeper)
        first, second = duplicates.generations(keeper)
    assert first.sealed_at is not None
    assert second.sealed_at is None


def test_a_large_generation_is_sealed_and_an_empty_one_is_not(core):
    with closing(psycopg.connect(core.url, autocommit=True)) as keeper:
        assert not duplicates.seal(keeper, larger_than=0)
        core.apply(message(userId="u1"))
        assert not duplicates.seal(keeper)
        assert duplicates.seal(keeper, larger_than=0)
        assert not duplicates.seal(keeper, older_than=timedelta(0))


def generation(number, *, age_hours, keys, now):
    sealed_at = None if keys is None else now - age_hours * HOUR
    return Generation(number, now - (age_hours + 6) * HOUR, sealed_at, keys)


def test_days_and_ids_bound_the_window_whichever_is_less():
    now = datetime(2026, 11, 24, tzinfo=UTC)
    held = [
        generation(1, age_hours=80, keys=10, now=now),
        generation(2, age_hours=50, keys=10, now=now),
        generation(3, age_hours=20, keys=10, now=now),
        generation(4, age_hours=0, keys=None, now=now),
    ]
    before = now - timedelta(days=3)
    assert [one.number for one in duplicates.past(held, before=before, most=100)] == [1]
    assert [one.number for one in duplicates.past(held, before=before, most=20)] == [1]
    assert [one.number for one in duplicates.past(held, before=before, most=11)] == [1]
    assert [one.number for one in duplicates.past(held, before=before, most=10)] == [1, 2]


def test_a_table_in_use_is_dropped_later(core):
    core.apply(message(userId="u1"))
    with closing(psycopg.connect(core.url, autocommit=True)) as keeper:
        duplicates.seal(keeper, larger_than=0)
        duplicates.forget(keeper, duplicates.generations(keeper)[:1])
        with core.writer.transaction():
            core.writer.execute("SELECT FROM event_duplicate_1")
            assert duplicates.sweep(keeper) == []
        assert duplicates.sweep(keeper) == ["event_duplicate_1"]
        assert [one.number for one in duplicates.generations(keeper)] == [2]


def test_a_filter_never_misses_a_key(core):
    sent = [message(userId=f"u{number % 10}") for number in range(500)]
    core.apply(*sent)
    with closing(psycopg.connect(core.url, autocommit=True)) as keeper:
        duplicates.seal(keeper, larger_than=0)
        duplicates.count(keeper)
        window = Window()
        assert window.learn(keeper)
        assert not window.learn(keeper)
        assert window.filtered == 1
        hashes = [row["id_hash"].bytes for row in core.rows("SELECT id_hash FROM event_duplicate")]
        with keeper.transaction():
            assert window.seen(keeper, hashes).keys() == set(hashes)


def test_a_filter_of_another_content_is_not_used(core):
    one = message(userId="u1")
    core.apply(message(userId="u1"))
    with closing(psycopg.connect(core.url, autocommit=True)) as keeper:
        duplicates.seal(keeper, larger_than=0)
        duplicates.count(keeper)
        assert core.pipeline.window.learn(keeper)
        # A failover to a server that did not come to know of the sealing.
        keeper.execute("DELETE FROM cdp_duplicategeneration WHERE id = 2")
        keeper.execute("DROP TABLE event_duplicate_2")
        keeper.execute("UPDATE cdp_duplicategeneration SET sealed_at = NULL, keys = NULL WHERE id = 1")
        core.apply(one)
        assert core.apply(one).duplicates == 1
