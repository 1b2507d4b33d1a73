"""What processes of their own do to a database while a test looks on; begun by spawning."""

import os
import random
from contextlib import closing

import django
import psycopg

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "martech.settings")
django.setup()

from cdp import repair  # noqa: E402 - Django has to be there first
from cdp.processing.store import Raced  # noqa: E402
from tests.platform import Core  # noqa: E402
from tests.playing import play  # noqa: E402


def process(url, seed, browser, stop):
    """Take events of the same people until told to stop."""
    chance = random.Random(seed)
    with closing(Core(url, has_source=True)) as core:
        while not stop.is_set():
            try:
                play(core, seed=chance.random(), events=20, browser=browser)
            except (Raced, psycopg.errors.DeadlockDetected):
                core.pipeline.forget()


def repair_slowly():
    """Repair, one profile in a transaction: to be killed."""
    repair.PROFILES = repair.LINKS = repair.PEOPLE = 1
    repair.repair(per_pass=5)
