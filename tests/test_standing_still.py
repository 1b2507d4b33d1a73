"""Who stands still within a transaction lets go of its locks, so that processing goes on."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import psycopg
import pytest
from django.db import connection

from cdp import dead_letters, partitions, rehearsal
from martech.settings import _database
from tests.factories import make_dead_letter, make_source
from tests.running import ROOT

HOLDS = """
import os, signal
from django.db import transaction
from cdp.models import Source
with transaction.atomic():
    Source.objects.update(name="held")
    print("holding", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_every_connection_of_django_has_a_bound(own_database):
    with connection.cursor() as cursor:
        cursor.execute("SHOW idle_in_transaction_session_timeout")
        assert cursor.fetchone() == ("1min",)


def test_options_in_the_address_are_kept_and_win():
    own = "-c idle_in_transaction_session_timeout=5s -c work_mem=8MB"
    options = _database(f"postgresql://u@h/d?options={own.replace(' ', '%20').replace('=', '%3D')}")["OPTIONS"]
    assert options["options"] == f"-c idle_in_transaction_session_timeout=60s {own}"
    assert _database("postgresql://u@h/d")["OPTIONS"]["options"] == "-c idle_in_transaction_session_timeout=60s"


@contextmanager
def stopped(url):
    """Start a command that stands still within a transaction, with a bound of half a second."""
    address = f"{url}&options=-c%20idle_in_transaction_session_timeout%3D500ms"
    command = [sys.executable, "manage.py", "shell", "--verbosity=0", "-c", HOLDS]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"DATABASE_URL": address}, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"holding\n"
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)


def test_a_stopped_process_holds_others_up_for_a_bounded_time(own_database):
    make_source("shop")
    with stopped(own_database), closing(psycopg.connect(own_database, autocommit=True)) as other:
        other.execute("SET lock_timeout = '10s'")
        other.execute("UPDATE cdp_source SET name = 'free'")
        assert other.execute("SELECT name FROM cdp_source").fetchall() == [("free",)]


@pytest.mark.usefixtures("own_database")
def test_a_dry_run_that_stood_still_is_to_be_tried_again(monkeypatch):
    shop = make_source("shop")
    make_dead_letter(shop, body=b'{"type":"track","userId":"u1","event":"Clicked","messageId":"m"}')
    apply = rehearsal.Pipeline.apply

    def stand_still(*arguments):
        time.sleep(0.5)
        return apply(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(rehearsal, "IDLE_SECONDS", 0.1)
        patched.setattr(rehearsal.Pipeline, "apply", stand_still)
        with pytest.raises(rehearsal.Busy, match="The letters cannot be tried now"):
            rehearsal.rehearse(dead_letters.matching())
    assert rehearsal.rehearse(dead_letters.matching()).would_store == 1


def test_a_change_of_tables_has_a_bound_of_its_own(database_url):
    with closing(psycopg.connect(database_url, autocommit=True)) as own:
        told = partitions._gently(own, lambda: own.execute("SHOW idle_in_transaction_session_timeout").fetchone())
        assert told == ("10s",)
