"""The demo: reading the file, telling it with the stock SDK, and comparing, over a collector and a processor."""

import io
import os
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal

import httpx
import psycopg
import pytest
import redis
from django.conf import settings

from cdp import replay
from cdp.engines.local import LocalEngine
from cdp.log import open_log
from martech.demo import cdnow, play, report, story
from martech.demo.cdnow import Purchase
from martech.demo.play import Stage
from martech.demo.screen import Screen
from martech.lib.errors import ConfigurationError, PermanentError, RetryableError
from tests.running import ROOT, free_port, wait_until

LINES = """ customer_id  date number_of_cds  dollar_value\r
 00001 19970101  1   11.77\r
 00002 19970112  1   12.00\r
 00002 19970112  5   77.00\r
 00003 19970102  2   20.76\r
 00003 19970330  2   20.76\r
 00003 19980616  1    0.00\r
""".splitlines()
PURCHASES = cdnow.parse(LINES)
WHEEL = "Lifetimes-0.11.3-py3-none-any.whl"


def test_a_line_is_a_purchase_and_each_customers_are_numbered():
    assert [
        Purchase("00001", 1, date(1997, 1, 1), 1, Decimal("11.77")),
        Purchase("00002", 1, date(1997, 1, 12), 1, Decimal("12.00")),
        Purchase("00002", 2, date(1997, 1, 12), 5, Decimal("77.00")),
        Purchase("00003", 1, date(1997, 1, 2), 2, Decimal("20.76")),
        Purchase("00003", 2, date(1997, 3, 30), 2, Decimal("20.76")),
        Purchase("00003", 3, date(1998, 6, 16), 1, Decimal("0.00")),
    ] == PURCHASES


@pytest.mark.parametrize(
    "line", ["00004 19970101 1", "00004 19971301 1 2.00", "00004 19970101 x 2.00", "4 19970101 1 x"]
)
def test_a_line_that_is_no_purchase_is_named(line):
    with pytest.raises(PermanentError, match=r"Line 8 of .* is no purchase: '0*4 "):
        cdnow.parse([*LINES, line])


def test_the_file_is_read_out_of_the_wheel(tmp_path):
    with zipfile.ZipFile(tmp_path / WHEEL, "w") as archive:
        archive.writestr(cdnow.FILE, "\r\n".join(LINES))
    assert cdnow.read(tmp_path / WHEEL) == PURCHASES


def test_a_wheel_that_is_not_the_published_one_is_refused(tmp_path):
    (tmp_path / WHEEL).write_bytes(b"something else")
    with pytest.raises(ConfigurationError, match=f"{WHEEL} is not the published lifetimes==0.11.3"):
        cdnow.fetch(tmp_path)


def test_without_a_package_index_the_next_step_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(
        ConfigurationError, match=r"No matching distribution found.* put the wheel of lifetimes==0.11.3"
    ):
        cdnow.fetch(tmp_path / "demo")


def test_the_story_is_told_in_the_order_of_time():
    told = [(call.at, call.method, call.customer) for call in story.calls(PURCHASES)]
    assert told == [
        (datetime(1997, 1, 1, 11, 55, tzinfo=UTC), "page", "00001"),
        (datetime(1997, 1, 1, 11, 59, tzinfo=UTC), "identify", "00001"),
        (datetime(1997, 1, 1, 12, 0, 0, tzinfo=UTC), "track", "00001"),
        (datetime(1997, 1, 2, 11, 55, tzinfo=UTC), "page", "00003"),
        (datetime(1997, 1, 2, 11, 59, tzinfo=UTC), "identify", "00003"),
        (datetime(1997, 1, 2, 12, 0, 0, tzinfo=UTC), "track", "00003"),
        (datetime(1997, 1, 12, 11, 55, tzinfo=UTC), "page", "00002"),
        (datetime(1997, 1, 12, 11, 59, tzinfo=UTC), "identify", "00002"),
        (datetime(1997, 1, 12, 12, 0, 0, tzinfo=UTC), "track", "00002"),
        (datetime(1997, 1, 12, 12, 0, 1, tzinfo=UTC), "track", "00002"),
        (datetime(1997, 3, 30, 12, 0, 0, tzinfo=UTC), "track", "00003"),
        (datetime(1998, 6, 16, 12, 0, 0, tzinfo=UTC), "track", "00003"),
    ]


def test_the_story_is_the_same_each_time_and_its_message_ids_are_unique():
    first, second = list(story.calls(PURCHASES)), list(story.calls(PURCHASES))
    assert first == second
    assert len({call.arguments["message_id"] for call in first}) == len(first) == 12


@contextmanager
def serving(config, port):
    """Run the collector alone as a process."""
    environment = os.environ | {"DATABASE_URL": config.database_url, "LOG_URL": config.log_url}
    command = [
        sys.executable, "-m", "granian", "--interface", "asgi", "--port", str(port), "--workers-kill-timeout", "1",
        "cdp.collector.application:application",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _answers(port))
            yield
        finally:
            process.terminate()


def _answers(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def processing(config):
    """Run the processor in a thread."""
    log = open_log(config.log_url, partitions=config.log_partitions)
    engine = LocalEngine(config, log, partitions=range(config.log_partitions))
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        engine.stop()
        thread.join(10)
        log.close()


@pytest.fixture
def config(own_database):
    for role in ("LOG_URL", "CACHE_URL"):
        redis.Redis.from_url(os.environ[role]).flushdb()
    return replace(settings.CONFIG, database_url=own_database)


@pytest.fixture
def stage(config):
    url = f"http://127.0.0.1:{free_port()}"
    return Stage(url=url, config=config, say=lambda line: None, screen=Screen(io.StringIO()))


def port_of(stage):
    return int(stage.url.rpartition(":")[2])


def unequal(played):
    return [line.what for line in played.lines if not line.equal]


def stored(stage):
    with psycopg.connect(stage.config.database_url) as connection:
        return connection.execute("SELECT count(*) FROM event_stream").fetchall()[0][0]


def change(stage, query):
    with psycopg.connect(stage.config.database_url) as connection:
        assert connection.execute(query).rowcount == 1


def test_what_was_sent_is_what_the_platform_says_and_sending_twice_changes_nothing(stage):
    with serving(stage.config, port_of(stage)), processing(stage.config):
        first, second = play.play(stage, PURCHASES), play.play(stage, PURCHASES)
    assert [(line.what, line.file) for line in first.lines] == [
        ("Customers", "3"),
        ("Purchases", "6"),
        ("Units (CDs)", "12"),
        ("Revenue, sum of events", "142.29"),
        ("Revenue, sum of profiles", "142.29"),
        ("First day", "1997-01-01"),
        ("Last day", "1998-06-16"),
        ("All events", "12"),
        ("Events put aside", "0"),
        ("Customers, one by one", "3"),
        ("1. by revenue", "00002  89.00  4 events"),
        ("2. by revenue", "00003  41.52  5 events"),
        ("3. by revenue", "00001  11.77  3 events"),
    ]
    assert unequal(first) == []
    assert first.equal
    assert first.events == 12
    assert second.lines == first.lines
    assert stored(stage) == 12
    replayed = replay.verify()
    assert (replayed.events, replayed.profiles, replayed.examples) == (12, 3, [])


def test_what_differs_is_found_and_shown(stage):
    with serving(stage.config, port_of(stage)), processing(stage.config):
        play.play(stage, PURCHASES)
        change(
            stage,
            "UPDATE customer_profiles SET computed_traits = computed_traits || '{\"total_spent\": 20.77}'"
            ' WHERE identity_graph @> \'{"user_id": ["00003"]}\'',
        )
        change(
            stage,
            "UPDATE event_stream SET properties = properties || '{\"quantity\": 6}' WHERE message_id = '00002-order-1'",
        )
        redis.Redis.from_url(stage.config.cache_url).flushdb()
        played = play.play(stage, PURCHASES)
    assert unequal(played) == [
        "Units (CDs)", "Revenue, sum of profiles", "Customers, one by one", "2. by revenue",
    ]  # fmt: skip
    assert not played.equal
    assert report.as_document(played)["equal"] is False
    shown = report.as_text(played, colours=False)
    assert "4 lines differ." in shown
    rows = {row.split("│")[1].strip(): row.split("│")[2:5] for row in shown.splitlines() if row.startswith("│")}
    assert [cell.strip() for cell in rows["Units (CDs)"]] == ["12", "17", "✗"]
    assert [cell.strip() for cell in rows["Purchases"]] == ["6", "6", "✓"]


def test_what_came_before_the_window_of_duplicates_is_compared_and_not_sent(stage):
    with serving(stage.config, port_of(stage)), processing(stage.config):
        play.play(stage, PURCHASES)
        with psycopg.connect(stage.config.database_url) as connection:
            connection.execute("UPDATE event_stream SET received_at = received_at - interval '3 days'")
        played = play.play(stage, PURCHASES)
    assert played.equal
    assert played.events == 0
    assert stored(stage) == 12


def test_a_web_process_that_comes_late_is_waited_for(stage):
    played = []
    playing = threading.Thread(target=lambda: played.append(play.play(stage, PURCHASES)), daemon=True)
    playing.start()
    time.sleep(0.5)
    with serving(stage.config, port_of(stage)), processing(stage.config):
        playing.join(30)
    assert unequal(played[0]) == []


def test_a_refusal_ends_the_demo_with_its_reason(stage):
    with serving(stage.config, port_of(stage)):
        play.keys.create_source(name=play.SOURCE)
        play.Source.objects.update(enabled=False)
        play.keys.publish_keys()
        with pytest.raises(PermanentError, match=r"The SDK gave up \d+ events \(.*unknown_write_key"):
            play.play(stage, PURCHASES)


def test_a_processor_that_does_not_run_is_named(stage, monkeypatch):
    monkeypatch.setattr(play, "PATIENCE_SECONDS", 1.0)
    with serving(stage.config, port_of(stage)):
        with pytest.raises(
            RetryableError, match=r"partitions of the log are not processed: \d \(up to \d+-\d\).*processor"
        ):
            play.play(stage, PURCHASES)


def test_where_there_is_no_terminal_progress_is_told_in_lines():
    said = []
    output = io.StringIO()
    screen = Screen(output)
    with screen.progress(["sent", "processed"], 1200, said.append) as show:
        show({"sent": 600, "processed": 0})
        show({"sent": 1200, "processed": 1200})
    print("a line", file=screen)
    assert said == ["of 1,200 events: 1,200 sent, 1,200 processed"]
    assert output.getvalue() == "a line\n"
