"""Errors of our own: a few are put aside, many halt the processor, and what kills it is found and put aside."""

import json
import os
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace

import pytest
import redis

from cdp import config as cdp_config
from cdp.engines import careful, local
from cdp.engines.local import LocalEngine
from cdp.log import open_log
from cdp.log.base import Delivery, Entry, Event, encode_entry
from cdp.processing import kinds
from cdp.processing.failures import Failures, Halted
from martech.lib import clock
from tests.platform import append, message
from tests.running import ROOT, wait_until


class Breaking(kinds.Count):
    """A kind of trait with a bug: it cannot take events called Bug, and dies of those called Death."""

    def lift(self, event, value):
        if event.name == "Bug":
            raise ZeroDivisionError("a bug")
        return super().lift(event, value)


@pytest.fixture
def buggy(core, monkeypatch):
    """Return the core with a definition whose kind has a bug."""
    monkeypatch.setitem(kinds.KINDS, "breaking", Breaking())
    define(core, "breaking")
    return core


def define(core, kind):
    core.rows(
        "INSERT INTO cdp_traitdefinition (name, kind, event_type, event_name, options, version, enabled, description)"
        " VALUES ('broken', %s, '', '', '{}', 1, true, '') RETURNING id",
        kind,
    )
    core.rows("UPDATE cdp_definitionversion SET version = version + 1 RETURNING id")


def test_a_few_errors_of_our_own_are_put_aside_and_the_rest_is_stored(buggy):
    good = [message(userId=f"u{number % 9}") for number in range(1000)]
    applied = buggy.apply(*good[:500], message(userId="u1", event="Bug"), *good[500:])
    assert (applied.events, applied.rejections) == (1000, {"processing_error": 1})
    letter = buggy.rows("SELECT reason, detail FROM cdp_deadletter")[0]
    assert letter["reason"] == "processing_error"
    assert letter["detail"].startswith("ZeroDivisionError: a bug.")


def test_too_many_errors_of_our_own_put_nothing_aside(buggy):
    sent = [message(userId="u1", event="Bug" if number % 8 == 0 else "Clicked") for number in range(200)]
    with pytest.raises(Halted, match=r"failed by an error of our own, the last with ZeroDivisionError: a bug\."):
        buggy.apply(*sent)
    assert (buggy.events(), buggy.letters()) == ([], [])


def test_a_schema_that_the_code_does_not_know_halts(core):
    core.connection.execute("ALTER TABLE cdp_identifier ADD COLUMN surprise integer NOT NULL DEFAULT 1")
    core.connection.execute("ALTER TABLE cdp_identifier ALTER COLUMN surprise DROP DEFAULT")
    with pytest.raises(Halted, match="NotNullViolation"):
        core.apply(*[message(userId=f"u{number}") for number in range(50)])
    assert core.letters() == []


def test_bad_input_never_halts(core):
    applied = core.apply(*[b'{"type": "trakc"}'] * 300, *[b'{"type":"page","userId":"u","properties":{"a":1e400000}}'])
    assert applied.rejections == {"unknown_type": 300, "poison": 1}


def test_errors_of_earlier_batches_count_within_the_window():
    failures = Failures()
    for _ in range(10):
        failures.begin(1)
        failures.note(ValueError("x"))
        failures.commit()
    failures.begin(1)
    with pytest.raises(Halted, match="11 of the last 11 events"):
        failures.note(ValueError("x"))
    # A batch that was not committed counts for nothing, and a thousand good ones make up for bad ones.
    failures.begin(990)
    failures.commit()
    failures.begin(1)
    failures.note(ValueError("x"))
    failures.commit()
    failures.begin(5000)
    failures.commit()
    failures.begin(12)
    for _ in range(10):
        failures.note(ValueError("x"))


@pytest.fixture
def config(database_url, core):
    for role in ("LOG_URL", "CACHE_URL"):
        redis.Redis.from_url(os.environ[role]).flushdb()
    return replace(cdp_config.load(), database_url=database_url, log_partitions=1, processor_poll_seconds=0.01)


@pytest.fixture
def log(config):
    with closing(open_log(config.log_url, partitions=1)) as opened:
        yield opened


def send(log, *messages):
    """Append messages as one entry."""
    events = [Event("", "", 0, json.dumps(one).encode()) for one in messages]
    append(log, [(0, encode_entry(Entry([Delivery(1, clock.now_us(), "", b"", b"", events)])))])


def test_a_halted_processor_says_why_and_goes_on_once_the_cause_is_mended(config, log, buggy, monkeypatch):
    monkeypatch.setattr(local, "HALT_SECONDS", 0.1)
    send(log, *[message(userId="u1", event="Bug") for _ in range(20)])
    engine = LocalEngine(config, log)
    running = threading.Thread(target=engine.run, daemon=True)
    running.start()
    try:
        wait_until(lambda: buggy.rows("SELECT halted FROM cdp_processor WHERE halted LIKE '11 of the last 20%%'"))
        assert local.HALTED._value.get() == 1
        assert (buggy.events(), buggy.letters()) == ([], [])
        buggy.rows("UPDATE cdp_traitdefinition SET enabled = false WHERE name = 'broken' RETURNING id")
        buggy.rows("UPDATE cdp_definitionversion SET version = version + 1 RETURNING id")
        wait_until(lambda: len(buggy.events()) == 20)
        wait_until(lambda: buggy.rows("SELECT FROM cdp_processor WHERE halted = ''"))
        assert local.HALTED._value.get() == 0
    finally:
        engine.stop()
        running.join(10)
    assert buggy.rows("SELECT * FROM cdp_processor") == []


# As the command is, without Django, which would take most of the time of each of its many starts.
PROCESSOR = """
import os
from contextlib import closing
from cdp import config
from cdp.engines.local import LocalEngine
from cdp.log import open_log
from cdp.processing import kinds

class Deadly(kinds.Count):
    def lift(self, event, value):
        if event.name == "Death":
            os._exit(1)
        return super().lift(event, value)

kinds.KINDS["deadly"] = Deadly()
found = config.load()
with closing(open_log(found.log_url, partitions=found.log_partitions)) as log:
    LocalEngine(found, log).drain()
"""


def test_events_that_kill_the_process_are_found_and_put_aside(config, log, core):
    define(core, "deadly")
    send(log, *[message(userId="u1") for _ in range(20)])
    send(log, message(userId="u1"), message(userId="u1", event="Death"), message(userId="u2"),
         message(userId="u2", event="Death"), message(userId="u1"))  # fmt: skip
    send(log, *[message(userId="u2") for _ in range(20)])
    environment = os.environ | {"DATABASE_URL": config.database_url, "LOG_PARTITIONS": "1"}
    deaths = 0
    while True:
        ended = subprocess.run([sys.executable, "-c", PROCESSOR], cwd=ROOT, env=environment, check=False,
                               capture_output=True)  # fmt: skip
        if ended.returncode == 0:
            break
        deaths += 1
        assert deaths <= 8, ended.stderr.decode()
    assert core.letters() == ["kills_processor"] * 2
    assert len(core.events()) == 43
    counts = core.rows("SELECT (computed_traits->>'event_count')::int AS n FROM customer_profiles ORDER BY n")
    assert [row["n"] for row in counts] == [21, 22]
    # Each is put aside after two deaths of all and three of its own.
    assert deaths == 8


def trials(config, log, core):
    """Try the next entry as a processor does that takes over, up to the end of the trial; return what is put aside."""
    position, crashes = core.rows("SELECT position, crashes FROM cdp_checkpoint")[0].values()
    batch = careful.tried(core.writer, core.pipeline, log, 0, position, event_bytes=2**15, crashes=crashes)
    return [arrival.event.message_id for arrival in batch.arrivals if careful.is_killer(arrival)]


def test_an_event_is_not_blamed_for_lost_connections_nor_for_deaths_after_its_trial(config, log, core):
    send(log, *[message(userId="u1") for _ in range(5)])
    with LocalEngine(config, log)._connected():
        # The connection is lost in the middle of the trial, again and again.
        core.rows('UPDATE cdp_checkpoint SET crashes = 2, trial = \'{"at": 3, "crashes": 2}\' RETURNING id')
        for _ in range(4):
            core.rows("UPDATE cdp_checkpoint SET trial = jsonb_set(trial, '{at}', '3') RETURNING id")
            assert trials(config, log, core) == []
        # Processors die after the trial.
        for _ in range(4):
            core.rows("UPDATE cdp_checkpoint SET crashes = crashes + 1 RETURNING id")
            assert trials(config, log, core) == []
        assert core.rows("SELECT trial->'at' AS at FROM cdp_checkpoint") == [{"at": 5}]
