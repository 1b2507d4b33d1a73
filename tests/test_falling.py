"""Computed traits fall as time passes, without an event, and a replay says the same."""

import json

import pytest

from cdp import falling, replay
from cdp.models import Profile
from cdp.processing.kinds import DAY_US
from martech.lib import clock
from tests.conftest import pointed_at
from tests.platform import message


@pytest.fixture
def django(core, django_db_setup, django_db_blocker):
    """Point Django at the database of the core."""
    with pointed_at(core.url, django_db_blocker):
        yield


def define(core, name, kind, **options):
    core.rows(
        "INSERT INTO cdp_traitdefinition (name, kind, event_type, event_name, options, version, enabled, description)"
        " VALUES (%s, %s, 'track', '', %s, 1, true, '') RETURNING id",
        name, kind, json.dumps(options),
    )  # fmt: skip
    core.rows("UPDATE cdp_definitionversion SET version = version + 1 RETURNING id")


def ago(days):
    return clock.isoformat_us(clock.now_us() - int(days * DAY_US))


def pass_days(core, days):
    """Let so many days pass: all that was said and computed is that much older."""
    core.rows("UPDATE event_stream SET occurred_at = occurred_at - %s * interval '1 day' RETURNING 1", days)
    core.rows("UPDATE cdp_edge SET occurred_at = occurred_at - %s * interval '1 day' RETURNING 1", days)
    shift = (
        "(SELECT jsonb_object_agg(k, CASE jsonb_typeof(v) WHEN 'object' THEN (SELECT jsonb_object_agg(b::int - {0}, n)"
        " FROM jsonb_each(v) AS of (b, n)) WHEN 'number' THEN CASE WHEN v::bigint > 1e12 THEN"
        " to_jsonb(v::bigint - {0} * {1}::bigint) ELSE v END ELSE v END) FROM jsonb_each(trait_states) AS one (k, v))"
    )
    for table in ("customer_profiles", "cdp_identifier"):
        core.rows(
            f"UPDATE {table} SET trait_states = {shift.format(days, DAY_US)} WHERE trait_states <> '{{}}' RETURNING 1"
        )
    core.rows(
        "UPDATE customer_profiles SET due_at = due_at - %s * interval '1 day',"
        " computed_at = computed_at - %s * interval '1 day' RETURNING 1", days, days,
    )  # fmt: skip


@pytest.fixture
def shop(core, django):
    # Instants that are shown would not pass with the days.
    core.rows("UPDATE cdp_traitdefinition SET enabled = false WHERE kind IN ('first_time', 'last_time') RETURNING id")
    define(core, "orders_3d", "count", window="3d")
    define(core, "spent_3d", "sum", property="total", window="3d")
    define(core, "quiet_days", "days_since")
    core.apply(
        message(userId="ann", properties={"total": 10}, timestamp=ago(2)),
        message(userId="ann", properties={"total": 2.5}, timestamp=ago(1)),
        message(userId="bob", properties={"total": 1}, timestamp=ago(40)),
    )
    return core


def computed(core, identifier):
    row = core.profile(identifier)
    return {name: row["computed_traits"].get(name) for name in ("orders_3d", "spent_3d", "quiet_days")}


def test_what_leaves_its_window_is_gone_without_an_event(shop):
    assert computed(shop, "user_id:ann") == {"orders_3d": 2, "spent_3d": 12.5, "quiet_days": 1}
    version = shop.profile("user_id:ann")["version"]
    pass_days(shop, 1)
    assert falling.fall(seconds=60) == 2
    assert computed(shop, "user_id:ann") == {"orders_3d": 1, "spent_3d": 2.5, "quiet_days": 2}
    assert shop.profile("user_id:ann")["version"] == version + 1
    pass_days(shop, 1)
    falling.fall(seconds=60)
    assert computed(shop, "user_id:ann") == {"orders_3d": None, "spent_3d": None, "quiet_days": 3}
    assert computed(shop, "user_id:bob") == {"orders_3d": None, "spent_3d": None, "quiet_days": 42}


def test_nothing_falls_before_it_is_due_and_nothing_twice(shop):
    assert falling.fall(seconds=60) == 0
    pass_days(shop, 1)
    assert [falling.fall(seconds=60), falling.fall(seconds=60)] == [2, 0]


def test_a_profile_that_a_batch_holds_is_left_to_it(shop):
    pass_days(shop, 1)
    with shop.writer.transaction():
        shop.writer.execute('SELECT FROM customer_profiles WHERE identity_graph @> \'{"user_id": ["ann"]}\' FOR UPDATE')
        assert falling.fall(seconds=60) == 1
    shop.pipeline.forget()
    shop.apply(message(userId="ann", properties={"total": 1}))
    assert computed(shop, "user_id:ann") == {"orders_3d": 2, "spent_3d": 3.5, "quiet_days": 0}
    assert falling.fall(seconds=60) == 0


def test_a_replay_comes_to_what_has_fallen_and_to_what_is_due(shop):
    assert replay.verify().examples == []
    pass_days(shop, 1)
    # What is due was computed as of before, and is right for then.
    assert replay.verify().examples == []
    falling.fall(seconds=60)
    assert replay.verify().examples == []


def test_a_merge_adds_windows_up(shop):
    shop.apply(message(anonymousId="phone", properties={"total": 4}, timestamp=ago(2)))
    shop.apply(message(userId="ann", anonymousId="phone", properties={"total": 1}))
    assert computed(shop, "user_id:ann") == {"orders_3d": 4, "spent_3d": 17.5, "quiet_days": 0}
    pass_days(shop, 1)
    falling.fall(seconds=60)
    assert computed(shop, "user_id:ann") == {"orders_3d": 2, "spent_3d": 3.5, "quiet_days": 1}
    assert replay.verify().examples == []
    assert Profile.objects.get(pk=shop.profile("user_id:ann")["id"]).due_at > clock.now()
