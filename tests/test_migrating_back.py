"""Migrations go back, and forward again, with all that is remembered."""

import os
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg

from cdp.processing import duplicates
from cdp.processing.pipeline import Pipeline
from tests.platform import message
from tests.running import ROOT

OLD = datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)
KEYS = "SELECT encode(id_hash, 'hex'), payload_hash, received_at FROM event_duplicate ORDER BY received_at"


def migrate(url, *target):
    command = [sys.executable, str(ROOT / "manage.py"), "migrate", "--verbosity=0", *target]
    subprocess.run(command, check=True, env=os.environ | {"DATABASE_URL": url})


def test_keys_and_letters_survive_the_way_back_and_forward_again(core):
    old, new = message(userId="u1"), message(userId="u1")
    core.apply(old)
    core.rows("UPDATE event_duplicate_1 SET ingested_at = %s RETURNING 1", OLD)
    with closing(psycopg.connect(core.url, autocommit=True)) as keeper:
        duplicates.seal(keeper, older_than=timedelta(0))
        core.apply(new)
        keys = keeper.execute(
            "SELECT replace(id_hash::text, '-', ''), payload_hash, ingested_at FROM event_duplicate"
            " ORDER BY ingested_at"
        ).fetchall()
        keeper.execute(
            "INSERT INTO cdp_deadletter (status, reason, detail, message_id, source_id, delivery, received_at,"
            " created_at) VALUES ('replaying', 'poison', '', 'm', 1, '', now(), now())"
        )

    migrate(core.url, "cdp", "0004")
    with closing(psycopg.connect(core.url)) as store:
        assert store.execute(KEYS).fetchall() == keys
        assert keys[0][2] == OLD
        tables = store.execute(
            "SELECT relname::text FROM pg_class WHERE relname LIKE 'event_duplicate%' AND relkind IN ('r', 'p')"
            " ORDER BY relname"
        ).fetchall()
        [today] = store.execute("SELECT (now() AT TIME ZONE 'UTC')::date").fetchone()
        days = [OLD.date(), *(today + timedelta(days=number) for number in range(8))]
        assert [name for (name,) in tables] == ["event_duplicate", *(f"event_duplicate_{day:%Y%m%d}" for day in days)]
        assert store.execute("SELECT status FROM cdp_deadletter").fetchall() == [("new",)]

    migrate(core.url)
    core.pipeline = Pipeline()
    applied = core.apply(old, new, message(userId="u1"))
    assert (applied.events, applied.duplicates) == (1, 2)
    [generation] = core.rows("SELECT id, opened_at, sealed_at FROM cdp_duplicategeneration")
    assert generation == {"id": 1, "opened_at": OLD, "sealed_at": None}


def test_a_platform_without_data_can_be_taken_back_to_nothing(database_url):
    migrate(database_url, "cdp", "zero")
    with closing(psycopg.connect(database_url)) as store:
        left = store.execute(
            "SELECT relname FROM pg_class WHERE relname LIKE 'cdp_%' OR relname LIKE 'event_%'"
        ).fetchall()
    assert left == []
    migrate(database_url)
