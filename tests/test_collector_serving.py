"""The collector in a real server: what only Granian, sockets and signals show."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from tests.collecting import BROWSER, CACHE_URL, KEYS, LOG_URL, SERVER, Collecting, basic, config, publish
from tests.serving import PLATFORM, serving
from tests.valkey import own_valkey

BATCH = {"batch": [{"type": "track", "event": "Signed Up", "userId": "u1"}]}
ENVIRONMENT = {"LOG_URL": LOG_URL, "CACHE_URL": CACHE_URL}


def logged():
    return Collecting(None, config(), None).logged()


@pytest.fixture
def published():
    with redis.Redis.from_url(LOG_URL) as store:
        store.flushdb()
    publish(KEYS)


@pytest.fixture
def server(published):
    with serving(**ENVIRONMENT) as running:
        yield running


def post(server, path="/v1/batch", body=BATCH, **more):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.client.post(path, content=content, headers=basic(SERVER), **more)


def test_served_alone_it_takes_events_and_tells_its_health(server):
    answer = post(server)
    assert (answer.status_code, answer.content) == (200, b'{"success": true}')
    assert [one.message["userId"] for one in logged()] == ["u1"]
    assert server.client.get("/readyz").json() == {"status": "ready"}
    assert server.client.get("/v1/profiles/a:b").status_code == 401


def test_a_client_that_sends_too_much_gets_to_read_why(server):
    answer = post(server, body=bytes(5 * 2**20))
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")
    # curl asks before it sends so much.
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/batch HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_in_pieces_and_one_that_never_ends(server):
    def chunks():
        for start in range(0, len(content), 10):
            yield content[start : start + 10]

    content = json.dumps(BATCH).encode()
    headers = basic(SERVER)
    assert server.client.post("/v1/batch", content=chunks(), headers=headers).status_code == 200
    # A client that goes away in the middle leaves no trace, and nothing held.
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/batch HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
    assert post(server).status_code == 200
    assert len(logged()) == 2


def test_the_senders_address_is_seen(server):
    server.client.post("/v1/batch", json=BATCH, headers=basic(BROWSER))
    assert [one.delivery.ip for one in logged()] == ["127.0.0.1"]


def test_stopping_loses_nothing_that_was_acknowledged_and_cuts_off_no_request(published):
    statuses = []
    with serving(COLLECTOR_FLUSH_SECONDS="1", **ENVIRONMENT) as server:
        with ThreadPoolExecutor(20) as threads:
            for n in range(20):
                body = {"batch": [BATCH["batch"][0] | {"messageId": f"m{n}"}]}
                threads.submit(lambda body=body: statuses.append(post(server, body=body).status_code))
            time.sleep(0.5)
            output = server.stop()
    assert statuses == [200] * 20
    assert {one.message["messageId"] for one in logged()} == {f"m{n}" for n in range(20)}
    assert "rror" not in output


def test_several_workers_serve_one_log(published):
    with serving(workers=2, **ENVIRONMENT) as server:
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: post(server).status_code, range(100)))
    assert answers == [200] * 100
    assert len(logged()) == 100


def test_a_log_that_may_lose_events_stops_the_start(published):
    with own_valkey() as store:
        with redis.Redis.from_url(store.url) as client:
            client.config_set("appendonly", "no")
        with pytest.raises(RuntimeError, match="appendonly no"), serving(LOG_URL=store.url):
            pass


def test_a_log_server_that_is_killed_and_comes_back_loses_nothing_acknowledged():
    with own_valkey() as store:
        publish(KEYS, store.url)
        with serving(LOG_URL=store.url, CACHE_URL=CACHE_URL) as server:
            acknowledged, refused, done = [], [], threading.Event()

            def send():
                n = 0
                while not done.is_set():
                    n += 1
                    body = {"batch": [BATCH["batch"][0] | {"messageId": f"m{n}"}]}
                    answer = post(server, body=body, timeout=20)
                    (acknowledged if answer.status_code == 200 else refused).append((f"m{n}", answer))

            sender = threading.Thread(target=send, daemon=True)
            sender.start()
            time.sleep(0.5)
            store.kill()
            time.sleep(0.5)
            store.start()
            deadline = time.monotonic() + 15
            before = len(acknowledged)
            while len(acknowledged) < before + 5:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            done.set()
            sender.join()
            found = {one.message["messageId"] for one in Collecting(None, config(log_url=store.url), None).logged()}
    assert found >= {message_id for message_id, _ in acknowledged}
    assert {(answer.status_code, answer.json()["code"]) for _, answer in refused} <= {(503, "log_unavailable")}


def test_in_front_of_django_each_gets_what_is_its_own(published, database_url):
    with serving(PLATFORM, DATABASE_URL=database_url, **ENVIRONMENT) as server:
        assert post(server).status_code == 200
        assert server.client.get("/admin/login/").status_code == 200
        assert server.client.get("/v1/profiles/a:b").json()["code"] == "not_authenticated"
        missing = server.client.post("/v1/trackk", json={})
        assert missing.status_code == 404
    assert len(logged()) == 1
