"""The settings document of @segment/analytics-next: it must make the browser send to us and to nobody else."""

import pytest
import redis

from cdp.collector.sdksettings import write_key_of
from tests.collecting import BROWSER, LOG_URL, READER, collecting

pytestmark = pytest.mark.anyio


async def test_the_browser_is_told_to_send_here(collector):
    answer = await collector.client.get(f"/v1/projects/{BROWSER}/settings")
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    found = answer.json()
    assert list(found["integrations"]) == ["Segment.io"]
    segment = found["integrations"]["Segment.io"]
    assert (segment["apiKey"], segment["apiHost"], segment["protocol"]) == (BROWSER, "cdp.example:8000/v1", "http")
    assert found["metrics"] == {"sampleRate": 0, "host": "cdp.example:8000/v1"}


async def test_behind_a_trusted_proxy_the_outer_name_counts():
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "cdp.shop.example"}
    found = []
    for proxies in ((), ("192.0.2.0/24",)):
        async with collecting(collector_trusted_proxies=proxies) as collector:
            answer = await collector.client.get(f"/v1/projects/{BROWSER}/settings", headers=headers)
            segment = answer.json()["integrations"]["Segment.io"]
            found.append((segment["protocol"], segment["apiHost"]))
    assert found == [("http", "cdp.example:8000/v1"), ("https", "cdp.shop.example/v1")]


@pytest.mark.parametrize("key", ["unknown", READER])
async def test_an_unknown_key_has_no_settings(collector, key):
    answer = await collector.client.get(f"/v1/projects/{key}/settings")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_write_key")


async def test_while_nobody_can_be_asked_the_page_gets_its_settings(collector):
    with redis.Redis.from_url(LOG_URL) as store:
        store.delete("martech:keys")
    assert (await collector.client.get("/v1/projects/unknown/settings")).status_code == 200


async def test_a_host_that_is_none_is_not_repeated(collector):
    answer = await collector.client.get(f"/v1/projects/{BROWSER}/settings", headers={"Host": 'evil"/<x>'})
    assert answer.json()["integrations"]["Segment.io"]["apiHost"] == "localhost/v1"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/v1/projects/k/settings", "k"), ("/v1/projects/k/settings/", "k"), ("/v1/projects/a/b/settings", ""),
        ("/v1/projects//settings", ""), ("/v1/projects/k", ""), ("/v1/projects/k/other", ""), ("/v1/track", ""),
    ],
)  # fmt: skip
def test_which_paths_are_settings(path, key):
    assert write_key_of(path) == key
