"""`manage.py import_events`: every row once in the event stream, however often it is started, stopped or killed."""

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from pathlib import Path

import psycopg
import pytest
import redis
from django.conf import settings
from django.core.management import CommandError, call_command
from psycopg.rows import dict_row

from cdp.engines.local import LocalEngine
from cdp.imports import ledger, portions
from cdp.log import open_log
from cdp.models import AuditEntry, EventImport
from martech.lib import clock
from tests.factories import make_source
from tests.running import ROOT, wait_until

HEADER = ["user_id", "event", "timestamp", "order_id", "total"]


@pytest.fixture(autouse=True)
def shop(own_database):
    for role in ("LOG_URL", "CACHE_URL"):
        redis.Redis.from_url(os.environ[role]).flushdb()
    return make_source("shop")


@pytest.fixture
def drained(own_database):
    """Return what processes what is in the log and returns the event rows."""

    def drain():
        config = replace(settings.CONFIG, database_url=own_database)
        with closing(open_log(config.log_url, partitions=config.log_partitions)) as log:
            LocalEngine(config, log).drain()
        with psycopg.connect(own_database, row_factory=dict_row) as connection:
            return connection.execute("SELECT * FROM event_stream ORDER BY message_id").fetchall()

    return drain


@pytest.fixture
def orders(tmp_path):
    """Return what writes a file of so many orders, and those rows that are given."""

    def write(count, *more, name="orders.csv"):
        path = tmp_path / name
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            for number in range(count):
                writer.writerow([f"u{number % 50}", "Order Completed", "2015-03-04T05:06:07Z", f"o{number}", "12.50"])
            writer.writerows(more)
        return path

    return write


def take(path, *arguments, status=0):
    """Run the command and return what it printed."""
    output = StringIO()
    try:
        call_command("import_events", str(path), "--source", "shop", *arguments, stdout=output)
        left = 0
    except SystemExit as end:
        left = end.code
    assert left == status
    return output.getvalue()


def errors_of(found):
    return [json.loads(line) for line in Path(found.errors_path).read_text().splitlines()]


TRACK = ("--set", "type=track")


def test_rows_become_events_of_their_time_with_ids_of_their_own(orders, drained):
    path = orders(3)
    assert take(path, *TRACK, "--types", "total=number").startswith("3 rows in the log")
    found = EventImport.objects.get()
    events = drained()
    assert [row["message_id"] for row in events] == [f"imp-{found.sha256[:16]}-{line}" for line in (2, 3, 4)]
    assert {str(row["occurred_at"]) for row in events} == {"2015-03-04 05:06:07+00:00"}
    assert events[0]["properties"] == {"order_id": "o0", "total": 12.5}
    assert (found.status, found.events, found.errors, found.lines, found.offset) == (
        "done",
        3,
        0,
        4,
        path.stat().st_size,
    )


def test_the_same_file_again_changes_nothing(orders, drained):
    path = orders(3)
    take(path, *TRACK)
    again = path.rename(path.with_name("renamed.csv"))
    assert "Already imported on" in take(again, *TRACK)
    assert json.loads(take(again, "--json"))["status"] == "done"
    assert len(drained()) == 3
    assert (EventImport.objects.count(), AuditEntry.objects.filter(action="import.start").count()) == (1, 1)


def test_another_source_takes_the_same_file(orders, drained):
    make_source("other")
    path = orders(2)
    take(path, *TRACK)
    call_command("import_events", str(path), "--source", "other", *TRACK, stdout=StringIO())
    assert len(drained()) == 4


def test_bad_lines_are_named_in_a_file_and_the_others_go_in(orders, drained):
    path = orders(2, ["", "Lost", "2015-03-04", "", ""], ["u1", "Early", "yesterday", "", ""], ["u1", "short"],
                  ["u1", "X" * 300, "", "", ""], ["u9", "Fine", "", "", ""])  # fmt: skip
    told = take(path, *TRACK, status=1)
    found = EventImport.objects.get()
    lines = errors_of(found)
    assert [(one["line"], one["reason"]) for one in lines] == [
        (4, "missing_id"), (5, "unusable_value"), (6, "unreadable_row"), (7, "name_too_long"),
    ]  # fmt: skip
    assert lines[1]["text"] == "u1,Early,yesterday,,"
    assert found.errors_path == f"{path}.{found.sha256[:8]}.errors.ndjson"
    assert f"4 could not be read: {found.errors_path}" in told
    assert os.stat(found.errors_path).st_mode & 0o777 == 0o600
    assert [row["name"] for row in drained()] == ["Order Completed", "Order Completed", "Fine"]


def test_messages_of_an_export_go_in_as_they_are(tmp_path, drained):
    path = tmp_path / "export.jsonl.gz"
    messages = [
        {"type": "track", "event": "Old", "userId": "u1", "messageId": "m1", "timestamp": "2009-01-02T03:04:05.678Z"},
        {"type": "identify", "userId": "u1", "traits": {"plan": "gold"}, "originalTimestamp": "2010-01-01T00:00:00Z"},
        {"type": "track", "event": "Old", "userId": "u1", "timestamp": "never"},
        {"type": "track", "event": "Nobody"},
    ]
    path.write_bytes(gzip.compress(b"\n".join(json.dumps(one).encode() for one in messages) + b"\n{\n"))
    take(path, status=1)
    events = drained()
    assert [(row["message_id"][:4], row["event_type"], str(row["occurred_at"])) for row in events] == [
        ("imp-", "identify", "2010-01-01 00:00:00+00:00"),
        ("m1", "track", "2009-01-02 03:04:05.678000+00:00"),
    ]
    lines = errors_of(EventImport.objects.get())
    assert [(one["line"], one["reason"]) for one in lines] == [
        (3, "unreadable_time"), (4, "missing_id"), (5, "malformed"),
    ]  # fmt: skip


def test_a_preview_shows_what_would_be_and_writes_nothing(orders, drained):
    path = orders(3, ["", "Lost", "", "", ""])
    told = take(path, *TRACK, "--preview", "1")
    assert '"event": "Order Completed"' in told
    assert "total → properties, or traits (text)" in told
    assert "4 rows checked: 3 would go in" in told
    assert "1 would not: missing_id, as in line 5" in told
    assert "give --types total=number" in told
    found = json.loads(take(path, *TRACK, "--preview", "--json"))
    assert (len(found["messages"]), found["reasons"]) == (3, {"missing_id": 1})
    assert json.loads(take(path, "--preview", "--json"))["reasons"] == {"missing_type": 4}
    assert EventImport.objects.count() == 0
    assert drained() == []


def test_a_browser_s_source_may_not_import(orders):
    make_source("site", kind="browser")
    with pytest.raises(CommandError, match="The source site may not import: it is of kind browser"):
        call_command("import_events", str(orders(1)), "--source", "site", *TRACK)


@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [
        ("orders.csv", ["--source", "nobody"], "There is no source 'nobody'"),
        ("orders.csv", ["--source", "shop", "--map", "total=price"], "There is no field price"),
        ("orders.csv", ["--source", "shop", "--delimiter", "::"], "one character"),
        ("orders.xls", ["--source", "shop"], "say --format"),
        ("gone.csv", ["--source", "shop"], "gone.csv cannot be read: No such file"),
    ],
)
def test_what_cannot_begin_says_why(orders, name, arguments, complaint):
    path = orders(1, name="orders.xls" if "xls" in name else "orders.csv").with_name(name)
    with pytest.raises(CommandError, match=complaint):
        call_command("import_events", str(path), *arguments)
    assert EventImport.objects.count() == 0


def test_a_broken_archive_stops_and_says_so(tmp_path):
    path = tmp_path / "half.csv.gz"
    path.write_bytes(gzip.compress(b"user_id,event\n" + os.urandom(200_000).hex().encode())[:-5000])
    with pytest.raises(CommandError, match="cannot be read"):
        take(path, *TRACK)


def crash_after(monkeypatch, portions_taken):
    """Have the process end before the ledger moves for the so manieth time, its rows being in the log."""
    real, seen = ledger.advance, []

    def advance(*arguments, **options):
        seen.append(1)
        if len(seen) > portions_taken:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(ledger, "advance", advance)


def test_a_crash_before_the_ledger_moves_lets_no_row_in_twice(orders, drained, monkeypatch):
    bad = [["", "Lost", "", "", ""]] * 30
    notes = [["u7", "Noted", "", f"n{number}", "1\n2"] for number in range(40)]
    path = orders(60, *notes, *bad, *[["u7", "Late", "", f"l{number}", ""] for number in range(40)])
    monkeypatch.setattr(portions.portions, "__kwdefaults__", {"rows": 20})
    with monkeypatch.context() as patched:
        crash_after(patched, 6)
        with pytest.raises(KeyboardInterrupt):
            take(path, *TRACK)
    found = EventImport.objects.get()
    assert (found.status, found.events, found.errors, found.lines) == ("running", 100, 20, 161)
    assert len(errors_of(found)) == 30
    take(path, status=1)
    found.refresh_from_db()
    assert (found.status, found.events, found.errors, found.lines) == ("done", 140, 30, 211)
    assert [one["line"] for one in errors_of(found)] == list(range(142, 172))
    assert Counter(row["properties"]["order_id"] for row in drained()) == {
        **{f"o{number}": 1 for number in range(60)}, **{f"{one}{number}": 1 for one in "nl" for number in range(40)},
    }  # fmt: skip


def test_going_on_beyond_the_window_of_duplicates_lets_no_row_in_twice(orders, own_database, drained, monkeypatch):
    path = orders(100)
    monkeypatch.setattr(portions.portions, "__kwdefaults__", {"rows": 20})
    with monkeypatch.context() as patched:
        crash_after(patched, 2)
        with pytest.raises(KeyboardInterrupt):
            take(path, *TRACK)
    assert len(drained()) == 60
    with psycopg.connect(own_database) as connection:
        connection.execute("DELETE FROM event_duplicate")
    EventImport.objects.update(updated_at=clock.now() - timedelta(days=4))
    take(path)
    assert EventImport.objects.get().events == 100
    assert Counter(row["properties"]["order_id"] for row in drained()) == {f"o{number}": 1 for number in range(100)}


def test_going_on_needs_the_mapping_it_began_with(orders, monkeypatch):
    path = orders(100)
    monkeypatch.setattr(portions.portions, "__kwdefaults__", {"rows": 20})
    with monkeypatch.context() as patched:
        crash_after(patched, 1)
        with pytest.raises(KeyboardInterrupt):
            take(path, *TRACK)
    with pytest.raises(CommandError, match="20 rows of this file went in by another mapping"):
        take(path, "--set", "type=identify")
    take(path, *TRACK)
    assert EventImport.objects.get().events == 100


def test_one_process_at_a_time(orders):
    path = orders(5)
    take(path, *TRACK)
    EventImport.objects.update(status="stopped", finished_at=None, offset=0, lines=0, events=0)
    with ledger.held(EventImport.objects.get()), pytest.raises(CommandError, match="by another process"):
        take(path, *TRACK)
    assert take(path, *TRACK).startswith("5 rows in the log")


def test_a_file_that_somebody_writes_to_is_no_import(orders, monkeypatch):
    path = orders(5)
    real = ledger.advance

    def advance(*arguments, **options):
        path.write_text(path.read_text() + "u1,More,,,\n")
        return real(*arguments, **options)

    monkeypatch.setattr(ledger, "advance", advance)
    with pytest.raises(CommandError, match="was changed while it was imported"):
        take(path, *TRACK)
    found = EventImport.objects.get()
    assert (found.status, "was changed while it was imported" in found.trouble) == ("stopped", True)


def command(path, own_database, **environment):
    arguments = [sys.executable, "manage.py", "import_events", str(path), "--source", "shop", *TRACK]
    return subprocess.Popen(
        arguments, cwd=ROOT, env=os.environ | {"DATABASE_URL": own_database} | environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def taken():
    return sum(EventImport.objects.values_list("events", flat=True))


def test_killed_again_and_again_every_row_is_there_once(orders, own_database, drained):
    path = orders(40_000)
    for part in (1, 10_000, 22_000):
        running = command(path, own_database)
        wait_until(lambda part=part: taken() >= part)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        assert EventImport.objects.get().status == "running"
    before = taken()
    running = command(path, own_database)
    assert (running.communicate(timeout=60)[0][:24], running.returncode) == ("40,000 rows in the log (", 0)
    assert 22_000 <= before < 40_000
    assert Counter(row["properties"]["order_id"] for row in drained()) == {f"o{number}": 1 for number in range(40_000)}


def test_asked_to_stop_it_ends_after_the_rows_under_way(orders, own_database):
    path = orders(40_000)
    running = command(path, own_database)
    wait_until(lambda: taken() >= 1)
    running.send_signal(signal.SIGINT)
    told, _ = running.communicate(timeout=20)
    assert (running.returncode, EventImport.objects.get().status) == (130, "stopped")
    assert "start it again to go on" in told
    assert take(path).startswith("40,000 rows in the log")


def test_while_the_log_is_filling_an_import_waits(orders, own_database):
    # A reserve that no disk has.
    running = command(orders(10), own_database, LOG_DISK_RESERVE_MB=str(2**30))
    assert "Waiting for the processor: of the log, its disk is at 100%" in running.stderr.readline()
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=20)
    assert (running.returncode, taken(), EventImport.objects.get().status) == (130, 0, "stopped")


def test_a_log_that_is_away_is_waited_for(orders, own_database):
    running = command(orders(10), own_database, LOG_URL="redis://127.0.0.1:1/0")
    assert "The log does not answer" in running.stderr.readline()
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=20)
    assert (running.returncode, taken()) == (130, 0)
