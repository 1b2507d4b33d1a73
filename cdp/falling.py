"""What falls as time passes: computed traits whose windows events have left, and days since something happened.

Each profile says when time alone changes it next (`due_at`); what is due is presented again as of now. The states
stay what events made of them, so nothing is lost when this comes late, twice or at the same time as itself.
"""

from __future__ import annotations

import time
from functools import partial

from django.db import connection, transaction

from cdp import showing
from cdp.processing import store
from cdp.processing.pipeline import Applied
from cdp.processing.presenting import document_of, row_of
from cdp.processing.rules import Rules
from martech.lib import clock

# Profiles in one transaction: they stay locked until it ends, and batches of events wait for them.
TOGETHER = 500
# Whoever is at work on a profile presents it as of now: it is left out.
_DUE = """
SELECT id FROM customer_profiles WHERE due_at <= %s ORDER BY due_at LIMIT %s FOR UPDATE SKIP LOCKED
"""


def fall(*, seconds: float) -> int:
    """Present all that is due again, for at most so many seconds; return how many profiles that were."""
    until, done = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        with transaction.atomic():
            connection.ensure_connection()
            applied = _some(connection.connection)
            transaction.on_commit(partial(showing.show, applied), robust=True)
        done += len(applied.documents)
        if len(applied.documents) < TOGETHER:
            break
    return done


def _some(driver: store.Connection) -> Applied:
    rules = Rules.load(driver, store.definition_version(driver))
    now_us = store.database_now_us(driver)
    now = clock.from_us(now_us)
    due = [row[0] for row in driver.execute(_DUE, [now, TOGETHER])]
    people = store.lock_people(driver, due)
    for person in people.values():
        person.states = rules.folder.live(person.states, now_us)
        person.version += 1
    rows = [row_of(person, rules.folder, now_us) for person in people.values()]
    if rows:
        store.update_people(driver, rows, now.isoformat())
    return Applied(documents=[document_of(row, now_us) for row in rows])
