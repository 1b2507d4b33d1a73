"""The trace context of a request rides with its events, into the log and into the stream."""

import pytest

from cdp.collector.messages import read_trace
from cdp.log.base import Delivery, Event
from cdp.processing.pipeline import arrive
from martech.lib import clock

pytestmark = pytest.mark.anyio
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("path", ["/v1/track", "/v1/batch"])
async def test_a_valid_traceparent_goes_into_the_log(collector, path):
    item = {"type": "track", "event": "e", "userId": "u1"}
    body = {"batch": [item, {**item, "userId": "u2"}]} if path == "/v1/batch" else item
    await collector.post(path, body, headers={"traceparent": PARENT})
    assert {one.delivery.trace for one in collector.logged()} == {PARENT}


async def test_without_one_the_log_holds_none(collector):
    await collector.post("/v1/track", {"event": "e", "userId": "u1"})
    assert [one.delivery.trace for one in collector.logged()] == [""]


@pytest.mark.parametrize(
    "header",
    [
        "", "x", PARENT.upper(), PARENT + "-00", "01" + PARENT[2:], PARENT + "\n",
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
    ],
)  # fmt: skip
def test_what_is_none_is_passed_over(header):
    assert read_trace(header.encode()) == ""


async def test_browsers_may_send_it(collector):
    answer = await collector.client.options("/v1/track", headers={"Origin": "https://shop.example"})
    assert "traceparent" in answer.headers["access-control-allow-headers"].split(", ")


def test_it_is_kept_in_the_event_row(core):
    for trace in (PARENT, ""):
        delivery = Delivery(1, clock.now_us(), "", b"", b"", [], trace)
        body = b'{"type":"track","userId":"u1","event":"e","messageId":"m%d"}' % len(trace)
        with core.writer.transaction():
            core.pipeline.apply(core.writer, [arrive(Event("", "", 0, body), delivery)])
    assert [row["trace_parent"] for row in core.events()] == [PARENT, None]
