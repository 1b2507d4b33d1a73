"""The endpoints of the tracking API: addresses, methods, answers."""

import pytest

from tests.collecting import collecting

pytestmark = pytest.mark.anyio

CALLS = {
    "track": {"event": "Signed Up"},
    "identify": {"traits": {"name": "Ann"}},
    "page": {"name": "Home"},
    "screen": {"name": "Start"},
    "group": {"groupId": "acme"},
    "alias": {"previousId": "a1"},
}


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("path", ["/v1/{}", "/v1/{}/", "/v1/{[0]}", "/v1/{[0]}/"])
async def test_a_call_is_acknowledged_and_logged_as_its_endpoint_says(collector, kind, path):
    sent = CALLS[kind] | {"userId": "u1", "messageId": "m1"}
    answer = await collector.post(path.format(kind), sent)
    assert (answer.status_code, answer.content) == (200, b'{"success": true}')
    assert answer.headers["content-type"] == "application/json"
    [logged] = collector.logged()
    assert (logged.event.kind, logged.message, logged.delivery.source_id) == (kind, sent, 1)


@pytest.mark.parametrize("path", ["/v1/batch", "/v1/b", "/v1/batch/", "/v1/import"])
async def test_items_of_a_batch_tell_their_type_themselves(collector, path):
    items = [{"type": kind, "userId": "u1"} | fields for kind, fields in CALLS.items()]
    answer = await collector.post(path, {"batch": items})
    assert (answer.status_code, answer.content) == (200, b'{"success": true}')
    logged = collector.logged()
    assert [one.event.kind for one in logged] == [""] * 6
    assert [one.message for one in logged] == items


async def test_events_of_one_anchor_keep_their_order_and_partition(collector):
    items = [{"type": "track", "event": f"e{n}", "userId": f"u{n % 3}"} for n in range(60)]
    await collector.post("/v1/batch", {"batch": items})
    for user in ("u0", "u1", "u2"):
        mine = [one for one in collector.logged() if one.message["userId"] == user]
        assert [one.message["event"] for one in mine] == [item["event"] for item in items if item["userId"] == user]
        assert len({one.partition for one in mine}) == 1


@pytest.mark.parametrize("path", ["/v1/track", "/v1/b", "/v1/import", "/v1/m", "/v1/projects/wk_server/settings"])
async def test_options_is_answered_for_every_origin(collector, path):
    answer = await collector.client.options(path, headers={"Origin": "https://shop.example"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert {"Authorization", "Content-Type", "X-Retry-Count"} <= set(allowed)


async def test_errors_may_be_read_by_every_origin_too(collector):
    for answer in (await collector.post("/v1/track", b"nonsense"), await collector.post("/v1/t", {}, key="unknown")):
        assert answer.status_code >= 400
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "Retry-After" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/v1/track", "POST, OPTIONS"), ("/v1/m", "POST, OPTIONS"), ("/v1/projects/wk_server/settings", "GET, OPTIONS")],
)
async def test_another_method_is_refused_with_what_is_allowed(collector, path, allowed):
    answer = await collector.client.put(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json()["code"] == "method_not_allowed"


async def test_errors_are_flat_and_problem_json(collector):
    answer = await collector.client.get("/v1/nothing")
    assert answer.headers["content-type"] == "application/problem+json"
    message = "There is nothing at /v1/nothing. See the tracking API's documentation."
    assert answer.json() == {
        "code": "not_found",
        "message": message,
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": message,
    }


async def test_reports_of_sdks_about_themselves_are_dropped(collector):
    answer = await collector.post("/v1/m", {"series": [{"type": "Counter"}]}, key=None)
    assert (answer.status_code, answer.content) == (200, b'{"success": true}')
    assert collector.logged() == []


async def test_a_position_is_told_on_request_only(collector):
    items = [{"type": "page", "userId": f"u{n}"} for n in range(40)]
    answer = await collector.post("/v1/batch?position=1", {"batch": items})
    assert answer.content == b'{"success": true}'
    reached = sorted({(one.partition, one.position) for one in collector.logged()})
    assert len(reached) == 8
    assert answer.headers["x-martech-position"] == ",".join(f"{one}.{position}" for one, position in reached)
    assert "x-martech-position" not in (await collector.post("/v1/batch", {"batch": items})).headers


async def test_what_is_not_the_collectors_goes_to_the_application_behind_it():
    async def behind(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    async with collecting(then=behind) as collector:
        for path in ("/", "/healthz", "/v1/profiles/email:a@b.c/events", "/v1/profiles", "/v1/profiles/", "/v1/other"):
            assert (await collector.client.get(path)).text == path
        assert (await collector.client.patch("/v1/profiles/email:a@b.c")).text == "/v1/profiles/email:a@b.c"
        assert (await collector.client.get("/v1/track")).status_code == 405


async def test_alone_it_answers_for_its_health(collector):
    assert (await collector.client.get("/healthz")).json() == {"status": "alive"}
    assert (await collector.client.get("/readyz")).json() == {"status": "ready"}
