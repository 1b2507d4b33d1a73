"""The archive while those who write it are killed: each event is read once, and what was erased is in no file.

ROUNDS says how often it is killed at random moments (twice as often), SEED at which ones.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from random import Random

import pytest
from django.conf import settings as django_settings
from django.core.files.storage import storages
from django.db import connection

from cdp import archive, history, partitions, privacy, replay
from cdp.engines.local import LocalEngine
from cdp.log import open_log
from cdp.models import ArchiveFile, Erasure
from tests.platform import Core, message
from tests.running import ROOT, wait_until
from tests.valkey import own_valkey

pytestmark = pytest.mark.faults

ROUNDS = int(os.environ.get("ROUNDS", "3"))
SEED = int(os.environ.get("SEED", "1"))
DAYS = (date(2026, 3, 2), date(2026, 3, 3), date(2026, 3, 4))
PEOPLE = 40
EVENTS = 30
BUCKETS = 8
# As many as take some seconds to write.
MANY_BUCKETS = 64
ANN = "quillfeather-7781"
SECONDS = 60
# At what the writer of the archive is killed: the function, and the side of it.
STEPS = [
    ("cdp.archive:_sweep", "after"),
    ("cdp.archive:_spool", "before"),
    ("cdp.archive:_put", "before"),
    ("django.core.files.storage:FileSystemStorage.save", "after"),
    ("cdp.archive:_settle", "before"),
    ("cdp.archive:_settle", "after"),
    ("cdp.models:ArchiveFile.save", "before"),
    ("cdp.models:ArchiveFile.save", "after"),
]
# A rewrite deletes the old file at last.
REWRITING = [
    *STEPS,
    ("django.core.files.storage:FileSystemStorage.delete", "before"),
    ("django.core.files.storage:FileSystemStorage.delete", "after"),
]
DROPPING = [("cdp.archive:may_drop", "after"), ("cdp.partitions:_drop", "before"), ("cdp.partitions:_drop", "after")]


class Past:
    """A platform whose events are of three closed days, in files or tables, and the processes that work on it."""

    def __init__(self, core, environment):
        self.core, self.environment = core, environment
        self.ids = sorted(row["message_id"] for row in core.events())
        others = core.rows(
            "SELECT message_id FROM event_stream WHERE anchor_id IN"
            " (SELECT id FROM cdp_identifier WHERE profile_id <> %s)", core.profile(f"user_id:{ANN}")["id"],
        )  # fmt: skip
        self.others = {row["message_id"] for row in others}

    def run(self, *arguments, **more):
        """Start a process of the archive."""
        command = [sys.executable, "-m", "tests.faults.dying", *map(str, arguments)]
        return subprocess.Popen(command, cwd=ROOT, env=self.environment | more, stdout=subprocess.DEVNULL)

    def end(self, *arguments, status=0, **more):
        """Run a process of the archive to its end."""
        running = self.run(*arguments, **more)
        assert running.wait(SECONDS) == status

    def die(self, step, number, *arguments):
        """Have a process kill itself at a step; False where it never came there."""
        running = self.run(*step, number, "--", *arguments)
        left = running.wait(SECONDS)
        assert left in {0, -signal.SIGKILL}
        return left != 0

    def read(self):
        """Return how often each event is there for readers: in its table where that stands, else in the archive."""
        with history.snapshot() as reading:
            batches = history.rows(reading, -1, 2**63 - 1, history.Filter())
            return Counter(row.message.message_id for some, _ in batches for row in some)

    def archived(self):
        """Return how often each event is in a file."""
        return Counter(name for file in archive.files() for table in archive.read(file)
                       for name in table["message_id"].to_pylist())  # fmt: skip

    def whole(self, wanted):
        """Fail where an event is read otherwise than once, or a replay does not come to what there is."""
        assert self.read() == Counter(wanted)
        report = replay.verify()
        assert (report.examples, report.events, report.not_comparable) == ([], len(wanted), 0)


@pytest.fixture
def past(own_database, settings, tmp_path):
    settings.ARCHIVE_EVENTS, settings.ARCHIVE_BUCKETS, settings.EVENT_RETENTION_DAYS = True, BUCKETS, 30
    settings.STORAGES = settings.STORAGES | {
        "archive": {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": tmp_path / "a"}}
    }
    environment = os.environ | {
        "DATABASE_URL": own_database, "ARCHIVE_EVENTS": "1", "ARCHIVE_BUCKETS": str(BUCKETS),
        "ARCHIVE_DIR": str(tmp_path / "a"), "EVENT_RETENTION_DAYS": "30", "LOG_PARTITIONS": "2",
    }  # fmt: skip
    with own_valkey("log") as log, own_valkey("cache") as cache, closing(Core(own_database)) as core:
        settings.CONFIG = replace(
            settings.CONFIG, log_url=log.url, cache_url=cache.url, database_url=own_database, log_partitions=2
        )
        live(core)
        yield Past(core, environment | {"LOG_URL": log.url, "CACHE_URL": cache.url})


def live(core):
    """Have people do things on three days of the past: some of them are joined, and one is named by others."""
    connection.ensure_connection()
    for day in DAYS:
        partitions.ensure(connection.connection, partitions.EVENTS, days=1, today=day, ahead=0)
    for person in range(PEOPLE):
        user = ANN if person == 0 else f"person-{person:03}"
        cookie = f"cookie-{person // 2:03}"
        core.apply(
            message(
                "identify", userId=user, anonymousId=f"device-{person:03}", traits={"email": f"{user}@example.com"}
            ),
            # Two people at one machine: the second one is refused it.
            message(userId=user, anonymousId=cookie, properties={"total": person}),
            *(message(userId=user, event="Order Completed", properties={"total": one / 4}) for one in range(EVENTS)),
        )
    core.apply(*(message(anonymousId="device-000", properties={"total": one}) for one in range(EVENTS)))
    # What another's event says of her is in her neighbours' events.
    core.apply(message("identify", userId="person-001", anonymousId="device-000", traits={"friend": ANN}))
    at = [datetime(day.year, day.month, day.day, 12, tzinfo=UTC) for day in DAYS]
    core.connection.execute("UPDATE event_stream SET ingested_at = (%s::timestamptz[])[1 + event_id %% 3]", [at])


def on_disk():
    return sorted(storages["archive"].listdir("")[1])


def tidy(past, wanted):
    """Fail where a file is left over or missing, or the files hold an event otherwise than once."""
    assert on_disk() == sorted(ArchiveFile.objects.values_list("path", flat=True))
    assert archive.damaged() == []
    assert past.archived() == Counter(wanted)


def standing():
    return [one.name for one in partitions.existing(connection.connection, partitions.EVENTS) if one.start in DAYS]


def test_killed_at_each_of_its_steps_the_archive_has_each_event_once(past):
    for number, step in enumerate(STEPS):
        # One step in a table's first file, the next in its second or in the next table's.
        assert past.die(step, 1 + number % 2, "archive"), step
        past.whole(past.ids)
        assert set(past.archived().values()) <= {1}
    past.end("archive")
    tidy(past, past.ids)


def test_retention_that_is_killed_drops_what_is_archived_and_costs_no_event(past):
    past.end("archive")
    for step in DROPPING:
        assert past.die(step, 1, "drop"), step
        past.whole(past.ids)
    past.end("drop")
    assert standing() == []
    past.whole(past.ids)
    tidy(past, past.ids)


def busy():
    """Tell whether a process holds the archive."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND granted"
                       " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                       [archive.LOCK])  # fmt: skip
        return cursor.fetchone()[0] > 0


def kill_within(running, seconds):
    """Kill a process so long after it has taken the archive; tell whether it was at it still."""
    wait_until(lambda: busy() or running.poll() is not None, SECONDS)
    time.sleep(seconds)
    running.kill()
    left = running.wait(SECONDS)
    # One that was quicker has done all of it; one that ended with an error of its own was not killed.
    assert left in {0, -signal.SIGKILL}
    return left != 0


def tell_of(kills):
    """Have it said where a fast machine left nothing to kill: all else held."""
    if kills == 0:
        pytest.skip("Every process was quicker than its kill.")


def test_killed_at_random_moments_the_archive_has_each_event_once(past, settings):
    chance, kills = Random(SEED), 0
    more = {"ARCHIVE_BUCKETS": str(MANY_BUCKETS)}
    for _ in range(2 * ROUNDS):
        kills += kill_within(past.run("archive", **more), chance.uniform(0.0, 0.3))
        wait_until(lambda: not busy())
        past.whole(past.ids)
    past.end("archive", **more)
    tidy(past, past.ids)
    past.end("drop")
    assert standing() == []
    past.whole(past.ids)
    tell_of(kills)


def asked(past):
    """Ask for Ann's erasure, and bring it to where the log has been read."""
    erasure = privacy.request(reference=f"user_id:{ANN}", actor="command:test", enqueue=False)
    with suppress(privacy.ErasureWaits):
        privacy.run(erasure.pk, patience=0)
    config = django_settings.CONFIG
    with closing(open_log(config.log_url, partitions=config.log_partitions)) as log:
        LocalEngine(config, log).drain()
    return erasure


def forgotten(past, erasure, tmp_path):
    """Fail where something of Ann is left in the archive, or something of others is not."""
    erasure.refresh_from_db()
    assert (erasure.status, erasure.work) == (Erasure.Status.DONE, {})
    assert set(erasure.receipts) == {"suppression", *privacy.STEPS}
    tidy(past, past.others)
    past.whole(past.others)
    assert [path for path in (tmp_path / "a").iterdir() if ANN.encode() in path.read_bytes()] == []
    said = [row for file in archive.files() for table in archive.read(file) for row in table.to_pylist()]
    assert ANN not in repr(said)


def test_an_erasure_killed_at_each_step_of_the_archive_leaves_nothing_and_costs_nobody_else(past, tmp_path):
    past.end("archive")
    past.end("drop")
    erasure = asked(past)
    for step in REWRITING:
        assert past.die(step, 1, "erase", erasure.pk), step
        assert set(past.read()) >= past.others
        assert set(past.read().values()) == {1}
    past.end("erase", erasure.pk)
    forgotten(past, erasure, tmp_path)


def test_an_erasure_killed_at_random_moments_leaves_nothing_in_the_archive(past, tmp_path):
    chance, kills = Random(SEED), 0
    past.end("archive", ARCHIVE_BUCKETS=str(MANY_BUCKETS))
    past.end("drop")
    erasure = asked(past)
    for _ in range(2 * ROUNDS):
        kills += kill_within(past.run("erase", erasure.pk), chance.uniform(0.0, 0.05))
        wait_until(lambda: not busy())
    past.end("erase", erasure.pk)
    forgotten(past, erasure, tmp_path)
    tell_of(kills)
