"""A client's clock is corrected by a formula on each request alone, above a threshold."""

from datetime import UTC, datetime, timedelta

import pytest

pytestmark = pytest.mark.anyio

EVENT = {"type": "track", "event": "Signed Up", "userId": "u1"}


def off(**delta):
    """Return what a clock shows that is off by so much."""
    return (datetime.now(UTC) + timedelta(**delta)).isoformat().replace("+00:00", "Z")


async def skews(collector, *items, path="/v1/batch", **batch):
    assert (await collector.post(path, {"batch": list(items)} | batch)).status_code == 200
    return [one.event.skew_us for one in collector.logged()]


async def test_a_clock_that_is_off_by_hours_is_corrected(collector):
    [slow] = await skews(collector, EVENT | {"timestamp": off(hours=-5)}, sentAt=off(hours=-5))
    assert slow == pytest.approx(5 * 3600e6, abs=10e6)


async def test_a_clock_that_is_ahead_is_corrected(collector):
    [fast] = await skews(collector, EVENT, sentAt=off(days=400))
    assert fast == pytest.approx(-400 * 86400e6, abs=10e6)


async def test_times_are_kept_below_the_threshold(collector):
    assert await skews(collector, EVENT, sentAt=off(seconds=-50)) == [0]


@pytest.mark.parametrize("sent_at", [None, "", "yesterday", {}, [], True, 1e400, "9" * 50])
async def test_times_are_kept_without_a_readable_sending_time(collector, sent_at):
    assert await skews(collector, EVENT, sentAt=sent_at) == [0]


async def test_what_is_stored_is_exact_and_relative_to_the_time_of_receipt(collector):
    await collector.post("/v1/batch", {"batch": [EVENT], "sentAt": "2020-01-01T00:00:00Z"})
    [logged] = collector.logged()
    assert logged.delivery.received_us - logged.event.skew_us == 1_577_836_800_000_000


async def test_a_single_call_says_itself_when_it_was_sent(collector):
    await collector.post("/v1/track", EVENT | {"sentAt": off(hours=-5)})
    assert [one.event.skew_us for one in collector.logged()] == [pytest.approx(5 * 3600e6, abs=10e6)]


async def test_senders_that_correct_by_themselves_are_believed(collector):
    both = EVENT | {"timestamp": off(), "originalTimestamp": off(hours=-5)}
    one = EVENT | {"originalTimestamp": off(hours=-5), "timestamp": None}
    found = await skews(collector, both, one, sentAt=off(hours=-5))
    assert found == [0, pytest.approx(5 * 3600e6, abs=10e6)]


async def test_history_is_not_corrected(collector):
    assert await skews(collector, EVENT, path="/v1/import", sentAt=off(hours=-5)) == [0]
