"""The archive of closed partitions: Parquet files that stand alone, whole or not there."""

import json
import sys
from datetime import UTC, date, datetime

import duckdb
import pandas as pd
import pytest
from django.core.files.storage import storages
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from cdp import archive, parquet, partitions, redaction, tasks
from cdp.models import ArchiveFile, Identifier
from cdp.processing.identity import Identifier as Named
from martech.lib.errors import ConfigurationError
from tests.factories import make_event, make_profile, make_source

DAY = date(2026, 3, 2)
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
TABLE = "event_stream_20260302"
NASTY = {"quote": 'say "hi", \\ and \n', "null": "\\N", "emoji": "😀\t,", "exact": 12345678901234567890.0, "empty": ""}


@pytest.fixture(autouse=True)
def _own(own_database, settings, tmp_path):
    settings.ARCHIVE_EVENTS = True
    settings.ARCHIVE_BUCKETS = 4
    settings.STORAGES = settings.STORAGES | {
        "archive": {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": tmp_path / "a"}}
    }
    connection.ensure_connection()
    partitions.ensure(connection.connection, partitions.EVENTS, days=1, today=DAY, ahead=0)


def on_disk():
    return sorted(storages["archive"].listdir("")[1])


def fill(people=6, events=5):
    """Make some people's events in the closed partition; return the source."""
    source = make_source("Shop")
    for person in range(people):
        profile = make_profile(("user_id", f"user-{person:04d}"))
        for number in range(events):
            make_event(profile, source, ingested_at=NOON, minute=-number, properties=NASTY | {"n": number})
    return source


def archived():
    return [row for file in archive.files() for table in archive.read(file) for row in table.to_pylist()]


def test_what_is_archived_is_what_was_in_the_table():
    fill()
    written = archive.archive_closed(now=timezone.now())
    assert written == [archive.Written(TABLE, 4, 30)]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(name for name in parquet.COLUMNS if name in _stored())} FROM event_stream")
        names = [column.name for column in cursor.description]
        rows = {row[0]: dict(zip(names, row, strict=True)) for row in cursor.fetchall()}
    found = archived()
    assert len(found) == len(rows) == 30
    for row in found:
        assert row["anchor_namespace"] == "user_id"
        assert row["anchor_value"] == Identifier.objects.get(pk=row["anchor_id"]).value
        assert row["source"] == "Shop"
        assert row["identifiers"] == [{"namespace": "user_id", "value": row["anchor_value"]}]
        expected = rows[row["event_id"]]
        row |= {"profile_id": expected["profile_id"], "identifiers": expected["identifiers"]}
        assert {name: row[name] for name in expected} == expected


def _stored():
    return parquet.COLUMNS.keys() - {"anchor_namespace", "anchor_value", "source"}


def test_a_file_has_its_bucket_by_anchor_and_time_and_its_row_tells_the_truth():
    fill()
    archive.archive_closed(now=timezone.now())
    files = list(ArchiveFile.objects.order_by("bucket"))
    assert [file.bucket for file in files] == [0, 1, 2, 3]
    assert on_disk() == sorted(file.path for file in files)
    for file in files:
        assert (file.table, file.buckets) == (TABLE, 4)
        assert (file.start, file.end) == (datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 3, tzinfo=UTC))
        rows = [row for table in archive.read(file) for row in table.to_pylist()]
        assert len(rows) == file.rows
        assert {row["anchor_id"] % 4 for row in rows} <= {file.bucket}
        order = [(row["anchor_id"], row["occurred_at"], row["event_id"]) for row in rows]
        assert order == sorted(order)
        with storages["archive"].open(file.path, "rb") as stored:
            assert archive._digest(stored) == (file.size, file.sha256)


def test_duckdb_and_pandas_read_it(tmp_path):
    fill()
    archive.archive_closed(now=timezone.now())
    pattern = str(tmp_path / "a" / "*.parquet")
    rows = duckdb.sql(
        f"SELECT source, count(*), min(received_at)::varchar, count(DISTINCT identifiers[1].value),"
        f" sum((properties->>'n')::int), min(properties->>'quote') FROM '{pattern}' GROUP BY source"
    ).fetchall()
    assert rows == [("Shop", 30, "2026-11-01 11:56:00+00", 6, 60, NASTY["quote"])]
    frame = pd.concat(pd.read_parquet(tmp_path / "a" / name) for name in on_disk())
    assert len(frame) == 30
    assert str(frame["occurred_at"].dtype) == "datetime64[us, UTC]"
    assert sorted(frame["anchor_value"].unique()) == [f"user-{person:04d}" for person in range(6)]
    assert json.loads(frame["properties"].iloc[0])["emoji"] == NASTY["emoji"]


def test_only_partitions_that_take_no_more_are_archived():
    fill()
    assert archive.archive_closed(now=datetime(2026, 3, 3, 0, 59, tzinfo=UTC)) == []
    assert [one.table for one in archive.archive_closed(now=datetime(2026, 3, 3, 1, tzinfo=UTC))] == [TABLE]
    assert archive.archive_closed(now=timezone.now()) == []


class Stopped(Exception):
    pass


@pytest.mark.parametrize("step", ["_digest", "_settle", "_name", "_spool"])
@pytest.mark.parametrize("call", [1, 2, 4])
def test_what_a_stopped_run_left_is_mended_by_the_next(monkeypatch, step, call):
    fill()
    calls = 0
    real = getattr(archive, step)

    def stopping(*given, **named):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Stopped
        return real(*given, **named)

    monkeypatch.setattr(archive, step, stopping)
    with pytest.raises(Stopped):
        archive.archive_closed(now=timezone.now())
    monkeypatch.undo()
    assert [one.events for one in archive.archive_closed(now=timezone.now())][-1] <= 30
    assert len(archived()) == 30
    assert on_disk() == sorted(ArchiveFile.objects.values_list("path", flat=True))
    assert archive.missing(TABLE) == []


def test_a_row_that_was_not_written_for_a_whole_file_is_written_later(monkeypatch):
    fill()
    monkeypatch.setattr(ArchiveFile.objects, "create", lambda **fields: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        archive.archive_closed(now=timezone.now())
    monkeypatch.undo()
    assert len(on_disk()) == 1
    archive.archive_closed(now=timezone.now())
    assert on_disk() == sorted(ArchiveFile.objects.values_list("path", flat=True))
    assert len(archived()) == 30


def test_another_number_of_buckets_counts_for_the_next_table(settings):
    fill()
    archive.archive_closed(now=timezone.now())
    ArchiveFile.objects.filter(bucket=1).delete()
    settings.ARCHIVE_BUCKETS = 2
    archive.archive_closed(now=timezone.now())
    assert list(ArchiveFile.objects.order_by("bucket").values_list("bucket", "buckets")) == [
        (0, 4), (1, 4), (2, 4), (3, 4),
    ]  # fmt: skip
    assert len(archived()) == 30


def test_retention_drops_only_what_is_archived(settings, caplog):
    fill()
    settings.EVENT_RETENTION_DAYS = 30
    tasks.drop_partitions.apply(throw=True)
    assert TABLE in standing()
    assert "not archived" in caplog.text
    tasks.archive_events.apply(throw=True)
    tasks.drop_partitions.apply(throw=True)
    assert TABLE not in standing()
    assert len(archived()) == 30
    assert len(archive.files(dropped_only=True)) == 4


def standing():
    return [one.name for one in partitions.existing(connection.connection, partitions.EVENTS)]


def test_a_late_event_is_archived_before_its_table_is_dropped(settings):
    source = fill()
    settings.EVENT_RETENTION_DAYS = 30
    tasks.archive_events.apply(throw=True)
    make_event(make_profile(("user_id", "late")), source, ingested_at=NOON)
    tasks.drop_partitions.apply(throw=True)
    assert TABLE in standing()
    tasks.archive_events.apply(throw=True)
    tasks.drop_partitions.apply(throw=True)
    assert TABLE not in standing()
    assert len(archived()) == 31


def test_without_archiving_retention_drops_and_nothing_is_written(settings):
    fill()
    settings.ARCHIVE_EVENTS = False
    settings.EVENT_RETENTION_DAYS = 30
    tasks.archive_events.apply(throw=True)
    tasks.drop_partitions.apply(throw=True)
    assert TABLE not in standing()
    assert archive.files() == []


def test_the_events_of_some_anchors_are_read(monkeypatch):
    monkeypatch.setattr(parquet, "BLOCK_BYTES", 2000)
    fill()
    archive.archive_closed(now=timezone.now())
    wanted = list(Identifier.objects.filter(value__in=["user-0001", "user-0004"]).values_list("pk", flat=True))
    rows = list(archive.events(anchors=wanted))
    assert sorted(row["anchor_value"] for row in rows) == ["user-0001"] * 5 + ["user-0004"] * 5
    assert list(archive.events(anchors=wanted, dropped_only=True)) == []


def everything(tmp_path):
    return b"".join(path.read_bytes() for path in (tmp_path / "a").iterdir())


def test_another_namespaces_value_of_the_same_text_is_somebody_elses():
    source = make_source()
    bob = make_profile(("user_id", "bob-1"))
    make_event(bob, source, ingested_at=NOON, properties={"age": "42"},
               identifiers=[["user_id", "bob-1"], ["crm", "42"]])  # fmt: skip
    archive.archive_closed(now=timezone.now())
    assert archive.erase(anchors=[], identifiers=[Named("user_id", "42")]) == archive.Erased()
    assert archive.erase(anchors=[], identifiers=[Named("crm", "42")]).changed == 1


ANN = [Named("user_id", "ann-1"), Named("email", "ann@example.com")]


def test_an_erased_person_is_in_no_file(tmp_path):
    source = fill()
    ann = make_profile(("user_id", "ann-1"), ("email", "ann@example.com"))
    bob = make_profile(("user_id", "bob-1"))
    for anchor in ann.identifiers.all():
        make_event(ann, source, anchor=anchor, ingested_at=NOON, properties={"said": "I am Ann"})
    make_event(bob, source, ingested_at=NOON, name="Mailed Ann@Example.com",
               properties={"to": "ANN@example.com", "cc": ["joann@example.com", "ann-10"], "n": 1.50, "from": "ann-1"},
               identifiers=[["user_id", "bob-1"], ["email", "ann@example.com"]])  # fmt: skip
    make_event(bob, source, ingested_at=NOON, minute=1, properties={"to": "ann@example.com"})
    archive.archive_closed(now=timezone.now())
    before = on_disk()
    anchors = list(ann.identifiers.values_list("pk", flat=True))
    erased = archive.erase(anchors=anchors, identifiers=ANN)
    assert (erased.removed, erased.changed) == (2, 1)
    assert on_disk() == sorted(ArchiveFile.objects.values_list("path", flat=True))
    assert len(set(before) - set(on_disk())) == erased.files
    rows = archived()
    assert len(rows) == sum(file.rows for file in archive.files()) == 32
    theirs, other = [row for row in rows if row["anchor_value"] == "bob-1"]
    # It does not name her as who it is of: what Bob said of her is Bob's.
    assert json.loads(other["properties"]) == {"to": "ann@example.com"}
    assert theirs["name"] == "Mailed [erased]"
    assert theirs["identifiers"] == [{"namespace": "user_id", "value": "bob-1"}]
    assert json.loads(theirs["properties"]) == {
        "to": "[erased]", "cc": ["joann@example.com", "ann-10"], "n": 1.5, "from": "[erased]",
    }  # fmt: skip
    assert archive.erase(anchors=anchors, identifiers=ANN) == archive.Erased()
    # Not in what the files say of their columns' least and greatest values either.
    assert b"ann-1" not in everything(tmp_path)


def test_an_erasure_that_was_stopped_leaves_nothing_once_it_is_done_again(monkeypatch):
    fill()
    archive.archive_closed(now=timezone.now())
    anchors = list(Identifier.objects.filter(value="user-0001").values_list("pk", flat=True))
    monkeypatch.setattr(storages["archive"].__class__, "delete", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        archive.erase(anchors=anchors)
    monkeypatch.undo()
    assert len(on_disk()) == 5
    assert archive.erase(anchors=anchors) == archive.Erased()
    assert on_disk() == sorted(ArchiveFile.objects.values_list("path", flat=True))
    assert len(archived()) == 25


def test_a_reader_follows_a_file_that_is_written_anew():
    fill()
    archive.archive_closed(now=timezone.now())
    [file] = archive.files(anchors=[Identifier.objects.get(value="user-0001").pk])
    archive.erase(anchors=[Identifier.objects.get(value="user-0001").pk])
    assert sum(table.num_rows for table in archive.read(file)) == file.rows


def test_json_is_redacted_in_its_strings_alone():
    found = redaction.pattern(["ann@example.com", "7", 'a "quoted" name'])
    said = '{"7": 7, "n": 1.50, "a": ["7", "17", "Ann@example.com.", "to:ann@example.com.au", "a \\"quoted\\" name"]}'
    assert redaction.redact_json(said, found) == (
        '{"[erased]": 7, "n": 1.50, "a": ["[erased]", "17", "[erased].", "to:ann@example.com.au", "[erased]"]}'
    )
    assert redaction.redact("7", redaction.pattern([])) == "7"


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'martech\[archive\]'"):
        archive.archive_closed(now=timezone.now())


def test_a_damaged_file_is_named(tmp_path):
    fill()
    archive.archive_closed(now=timezone.now())
    path = tmp_path / "a" / archive.files()[0].path
    path.write_bytes(path.read_bytes()[:-9])
    [problem] = archive.damaged()
    assert problem == f"{path.name} is not as it was written. Restore it from a backup."
    path.unlink()
    assert archive.damaged() == [f"{path.name} is missing. Restore it from a backup."]


def test_the_command_archives_and_reports(capsys):
    fill()
    call_command("archive_events", "--json")
    assert json.loads(capsys.readouterr().out) == {
        "tables": [{"table": TABLE, "files": 4, "events": 30}], "files": 4, "events": 30, "damaged": [],
    }  # fmt: skip
    call_command("archive_events", "--verify")
    assert capsys.readouterr().out == "4 files hold 30 events\nall of them are as they were written\n"


def test_the_command_fails_on_a_damaged_file(tmp_path, capsys):
    fill()
    call_command("archive_events")
    assert capsys.readouterr().out == f"{TABLE}: 30 events in 4 files\n4 files hold 30 events\n"
    (tmp_path / "a" / archive.files()[2].path).unlink()
    with pytest.raises(SystemExit) as exit_:
        call_command("archive_events", "--verify")
    assert exit_.value.code == 1
