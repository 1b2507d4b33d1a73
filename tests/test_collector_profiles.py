"""The fast profile read: who may, which addresses it takes, and waiting for a position."""

import time
from urllib.parse import quote

import pytest

from cdp.collector.keys import ApiKey
from cdp.collector.reads import Address, address
from cdp.profiles import ProfileCache
from tests.collecting import BROWSER, CACHE_URL, KEYS, SERVER, basic, collecting
from tests.platform import message

pytestmark = pytest.mark.anyio

BEARER = {"Authorization": "Bearer mk_reader"}
ODD = "a/b:c d?é%2F#"


@pytest.fixture
async def reading(core, database_url):
    """Return a collector beside a database with one profile of two identifiers."""
    core.apply(message("identify", userId=ODD, anonymousId="anon", traits={"email": "ann@example.com", "plan": "pro"}))
    async with collecting(database_url=database_url) as collector:
        yield collector


async def test_a_profile_is_found_by_each_of_its_identifiers(reading):
    found = []
    for name in (
        "anonymous_id:anon",
        "email:ann@example.com",
        f"user_id:{quote(ODD, safe='')}",
        "email%3Aann%40example.com",
    ):
        answer = await reading.client.get(f"/v1/profiles/{name}", headers=BEARER)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        found.append(answer.json())
    assert all(one["id"] == found[0]["id"] for one in found)
    assert found[0]["traits"]["plan"] == "pro"
    assert {"namespace": "user_id", "value": ODD} in found[0]["identifiers"]
    by_id = await reading.client.get(f"/v1/profiles/{found[0]['id'].upper()}/", headers=BEARER)
    assert by_id.json()["id"] == found[0]["id"]
    assert by_id.headers["etag"] == f'"{found[0]["version"]}"'


@pytest.mark.parametrize(
    "name", ["email:nobody@example.com", "odd:", ":x", "a:%00", "00000000-0000-0000-0000-000000000000"]
)
async def test_no_such_profile_is_404(reading, name):
    answer = await reading.client.get(f"/v1/profiles/{name}", headers=BEARER)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer"}, {"Authorization": "Bearer wrong"}, basic("mk_reader"), basic(SERVER),
                {"Authorization": f"Bearer {BROWSER}"}]
)  # fmt: skip
async def test_only_an_api_key_reads(collector, headers):
    answer = await collector.client.get("/v1/profiles/email:a@b.c", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_keys_scope_and_life_count(core, database_url):
    hour = 3600 * 1_000_000
    now = time.time_ns() // 1000
    keys = {
        "mk_all": ApiKey(key_id=1, scopes=["all"]),
        "mk_live": ApiKey(key_id=2, scopes=["profiles:read"], expires_at=now + hour),
        "mk_dead": ApiKey(key_id=3, scopes=["profiles:read"], expires_at=now - hour),
        "mk_other": ApiKey(key_id=4, scopes=["sources:read"]),
    }
    async with collecting(keys=KEYS | keys, database_url=database_url) as collector:
        statuses = {}
        for key in keys:
            answer = await collector.client.get("/v1/profiles/a:b", headers={"Authorization": f"Bearer {key}"})
            statuses[key] = (answer.status_code, answer.json()["code"])
    refused = (403, "permission_denied")
    missing = (404, "not_found")
    assert statuses == {
        "mk_all": missing,
        "mk_live": missing,
        "mk_dead": (401, "not_authenticated"),
        "mk_other": refused,
    }


async def test_a_read_waits_for_its_position(reading):
    cache = ProfileCache(CACHE_URL)
    cache.write([], [], [], {0: "7-0", 1: "3-5"})
    for token in ("0.7-0", "0.6-9,1.3-5"):
        answer = await reading.client.get(f"/v1/profiles/anonymous_id:anon?min_position={token}", headers=BEARER)
        assert answer.status_code == 200
    cache.close()


async def test_a_position_that_is_not_reached_is_504_after_a_while(reading, monkeypatch):
    monkeypatch.setattr("cdp.collector.reads.WAIT_SECONDS", 0.1)
    answer = await reading.client.get("/v1/profiles/anonymous_id:anon?min_position=2.99999999999999-0", headers=BEARER)
    assert (answer.status_code, answer.json()["code"]) == (504, "position_not_reached")
    assert "2.99999999999999-0" in answer.json()["message"]


@pytest.mark.parametrize("token", ["nonsense", "a.b", "1.x-0"])
async def test_what_is_no_position_is_400(reading, token):
    answer = await reading.client.get(f"/v1/profiles/anonymous_id:anon?min_position={token}", headers=BEARER)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_position")


async def test_without_cache_and_database_the_answer_is_503(short_home):
    away = {"cache_url": f"unix://{short_home}/no", "database_url": f"postgresql://martech@/x?host={short_home}"}
    async with collecting(**away) as collector:
        answer = await collector.client.get("/v1/profiles/email:a@b.c", headers=BEARER)
        assert (answer.status_code, answer.json()["code"]) == (503, "profiles_unavailable")
        assert 1 <= int(answer.headers["retry-after"]) <= 300


@pytest.fixture
def short_home(tmp_path_factory):
    """Return an empty directory."""
    return tmp_path_factory.mktemp("s")


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (b"/v1/profiles/user_id:a%2Fb%3Ac", Address("user_id", "a/b:c")),
        (b"/v1/profiles/email:a@b.c/", Address("email", "a@b.c")),
        (b"/v1/profiles/0F8FAD5B-d9cb-469f-a165-70867728950e", Address("", "0f8fad5b-d9cb-469f-a165-70867728950e")),
        (b"/v1/profiles/email:a@b.c/events", None),
        (b"/v1/profiles/email:a/b", None),
        (b"/v1/profiles/", None),
        (b"/v1/profiles", None),
        (b"/v1/profiles/search", None),
        (b"/v1/sources/a:b", None),
    ],
)
def test_which_paths_are_profiles(path, wanted):
    assert address(path) == wanted


async def test_the_document_is_the_one_of_the_database(reading, core):
    [row] = core.rows("SELECT id, version, computed_traits FROM customer_profiles")
    answer = (await reading.client.get("/v1/profiles/anonymous_id:anon", headers=BEARER)).json()
    assert (answer["id"], answer["version"]) == (str(row["id"]), row["version"])
    assert answer["computed_traits"]["event_count"] == row["computed_traits"]["event_count"] == 1
