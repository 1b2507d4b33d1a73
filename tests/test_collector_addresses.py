"""Whose address an event gets, and through which proxies it is seen."""

import pytest

from cdp.collector.addresses import Proxies
from tests.collecting import BROWSER, SERVER, collecting

pytestmark = pytest.mark.anyio

EVENT = {"type": "track", "event": "Signed Up", "userId": "u1"}


def ips(collector):
    return {one.message["event"]: one.delivery.ip for one in collector.logged()}


async def test_browsers_events_get_the_address_and_servers_do_not(collector):
    await collector.post("/v1/batch", {"batch": [EVENT | {"event": "browser"}]}, key=BROWSER)
    await collector.post("/v1/track", EVENT | {"event": "server"}, key=SERVER)
    assert ips(collector) == {"browser": "192.0.2.7", "server": ""}


async def test_a_server_may_ask_for_it(collector):
    asked = {"context": {"direct": True}}
    items = [
        EVENT | {"event": "asked"} | asked,
        EVENT | {"event": "not asked"},
        EVENT | {"event": "denied", "context": {"direct": False}},
        EVENT | {"event": "odd", "context": {"direct": "true"}},
        EVENT | {"event": "elsewhere", "properties": {"direct": True}},
    ]
    await collector.post("/v1/batch", {"batch": items})
    await collector.post("/v1/track", EVENT | {"event": "single"} | asked)
    await collector.post("/v1/batch", {"batch": [EVENT | {"event": "whole"}, items[2] | {"event": "but one"}]} | asked)
    assert ips(collector) == {
        "asked": "192.0.2.7", "not asked": "", "denied": "", "odd": "", "elsewhere": "",
        "single": "192.0.2.7", "whole": "192.0.2.7", "but one": "",
    }  # fmt: skip


async def test_forwarded_addresses_count_from_trusted_proxies_only():
    forwarded = {"X-Forwarded-For": "203.0.113.9"}
    async with collecting(peer="10.0.0.1") as collector:
        await collector.post("/v1/track", EVENT, key=BROWSER, headers=forwarded)
        assert ips(collector) == {"Signed Up": "10.0.0.1"}
    async with collecting(peer="10.0.0.1", collector_trusted_proxies=("10.0.0.0/8",)) as collector:
        await collector.post("/v1/track", EVENT, key=BROWSER, headers=forwarded)
        assert ips(collector) == {"Signed Up": "203.0.113.9"}


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ([], "10.0.0.1"),
        (["203.0.113.9"], "203.0.113.9"),
        (["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
        (["1.1.1.1", "203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["203.0.113.9:5678"], "203.0.113.9"),
        (["[2001:db8::1]:443"], "2001:db8::1"),
        (["2001:db8::1"], "2001:db8::1"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
        (["unknown"], "10.0.0.1"),
        (["203.0.113.9, nonsense, 10.0.0.2"], "10.0.0.2"),
    ],
)
def test_the_client_is_the_first_that_no_trusted_proxy_vouches_for(forwarded, client):
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    assert Proxies(["10.0.0.0/8", "192.0.2.1"]).client({"client": ("10.0.0.1", 1), "headers": headers}) == client


def test_a_peer_without_an_address_is_nobody():
    assert Proxies(["10.0.0.0/8"]).client({"client": None, "headers": []}) == ""
