"""The platform's own chores; `martech.celery` says when. Each may run twice, and at the same time as itself."""

from contextlib import suppress
from datetime import timedelta
from uuid import UUID

import psycopg
from celery import shared_task
from django.conf import settings
from django.db import connection
from django.utils import timezone

from cdp import archive, falling, identity_rules, integrity, keys, partitions, privacy, rule_drafts, showing, task_runs
from cdp.imports import uploads
from cdp.imports.ledger import ImportBusy

# How far clocks, queues and a wait between two tries may move the end of a task's last delivery.
LOST_MARGIN_SECONDS = 600


@shared_task
def heartbeat() -> None:
    """Do nothing: that its run ended well is how worker and beat show that they are alive."""


@shared_task
def publish_keys() -> None:
    """Write all keys to the collector's store again, since that may have lost them."""
    keys.publish_keys()


@shared_task
def show_edits() -> None:
    """Let the cache show what people changed of late, where it was away when they did."""
    showing.show_edits(now=timezone.now())


@shared_task
def let_traits_fall() -> None:
    """Compute anew what time alone has changed: windows that events have left, days that have passed."""
    falling.fall(seconds=settings.TASK_SECONDS / 4)


@shared_task
def make_partitions() -> None:
    """Make the coming week's table partitions."""
    partitions.make_ahead(_psycopg(), event_days=settings.CONFIG.event_partition_days, today=timezone.now().date())


@shared_task
def drop_partitions() -> None:
    """Drop the table partitions that retention has passed, once they are archived where that is on."""
    partitions.drop_old(
        _psycopg(),
        event_days=settings.EVENT_RETENTION_DAYS,
        today=timezone.now().date(),
        may_drop=archive.may_drop,
    )


@shared_task
def archive_events() -> None:
    """Archive the table partitions that take no more events, where that is on."""
    if settings.ARCHIVE_EVENTS:
        archive.archive_closed(now=timezone.now())


@shared_task
def apply_identity_rules() -> None:
    """Bring published rules of who is who upon the past."""
    identity_rules.apply()


@shared_task
def try_identity_rules(version: int) -> None:
    """Find what a draft of the rules of who is who would do."""
    rule_drafts.rehearse(version, seconds=None)


@shared_task
def prove_events() -> None:
    """Have each partition of events proven by a task of its own."""
    for partition in partitions.existing(_psycopg(), partitions.EVENTS):
        prove_partition.delay(partition.name)


@shared_task
def prove_partition(name: str) -> None:
    """Prove that every event of a partition has its profile."""
    integrity.count_orphans(_psycopg(), name)


@shared_task
def close_lost_task_runs() -> None:
    """Close the runs whose worker died and whose message cannot come any more."""
    seconds = settings.TASK_SECONDS + settings.TASK_REDELIVERY_SECONDS + LOST_MARGIN_SECONDS
    task_runs.close_lost(before=timezone.now() - timedelta(seconds=seconds))


@shared_task
def prune_task_runs() -> None:
    """Forget old runs of tasks."""
    task_runs.prune(days=settings.TASK_RUN_DAYS, now=timezone.now())


@shared_task
def run_import(import_id: int) -> None:
    """Carry an uploaded import on; when its time is over it sends itself again."""
    with suppress(ImportBusy):
        if uploads.carry_on(import_id, seconds=settings.TASK_SECONDS / 3):
            run_import.delay(import_id)


@shared_task
def carry_on_imports() -> None:
    """Find the imports whose task was lost."""
    for import_id in uploads.lost(now=timezone.now()):
        run_import.delay(import_id)


@shared_task
def prune_imports() -> None:
    """Remove old uploads and their errors."""
    uploads.prune(now=timezone.now())


@shared_task
def erase_person(erasure_id: str) -> None:
    """Go on with an erasure; where it has to wait for long, `finish_erasures` has it go on later."""
    with suppress(privacy.ErasureWaits):
        privacy.run(UUID(erasure_id))


@shared_task
def finish_erasures() -> None:
    """Have every erasure go on that is not done."""
    for erasure_id in privacy.unfinished():
        erase_person.delay(str(erasure_id))


def _psycopg() -> psycopg.Connection:
    """Return Django's connection as its driver's, which the parts that know no Django take."""
    connection.ensure_connection()
    return connection.connection
