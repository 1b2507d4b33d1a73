"""The figures of the first page."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection

from cdp import figures, partitions
from cdp.models import Checkpoint
from tests.factories import NOON, make_dead_letter, make_event, make_profile, make_source

pytestmark = pytest.mark.django_db


def test_an_empty_platform_has_zeros():
    assert figures.read() == figures.Figures(0, False, 0, 0, None, 0, False)


def test_the_figures_of_a_small_platform_are_exact():
    shop, ann = make_source(), make_profile(("user_id", "user-1"))
    make_profile()
    for _ in range(3):
        make_event(ann, shop)
    for partition, events in enumerate([5, 7]):
        Checkpoint.objects.create(log="log", partition=partition, position="1-0", events=events, updated_at=NOON)
    make_dead_letter(shop)
    make_dead_letter(shop, status="replayed")
    assert figures.read() == figures.Figures(2, False, 3, 12, NOON, 1, False)


@pytest.mark.parametrize("hours", [0, 1, 2, 23, 25, 47, 100])
def test_events_since_an_instant_are_found_over_partitions(hours):
    now = datetime.now(UTC)
    shop, ann = make_source(), make_profile(("user_id", "user-1"))
    with connection.cursor() as cursor:
        today = now.date()
        partitions.ensure(cursor.connection, partitions.EVENTS, days=1, today=today - timedelta(days=3), ahead=3)
    for age in range(48, 0, -1):
        make_event(ann, shop, ingested_at=now - timedelta(hours=age, minutes=-1))
    assert figures.events_since(now - timedelta(hours=hours)) == min(hours, 48)
