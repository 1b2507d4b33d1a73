"""Outgoing calls: where they may go, how long they may take, when they are tried again."""

import gzip
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trustme

from martech.lib.http import AddressRefused, Client, Guard, HttpRefused, HttpUnavailable, Limits

QUICK = Limits(connect=2.0, read=2.0, total=5.0, attempts=3, backoff=0.01, response_bytes=10_000)


class Server(ThreadingHTTPServer):
    """Answers as `script` says, request by request (its last line for ever), and notes what it was asked."""

    daemon_threads = True

    def __init__(self, *script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = list(script)
        self.seen = []

    @property
    def port(self):
        return self.server_address[1]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.seen.append((self.command, self.path, dict(self.headers), body))
        line = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        if callable(line):
            self.close_connection = True
            line(self.wfile)
            return
        status, headers, payload = line
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_):
        pass


@contextmanager
def serving(*script, tls=None):
    server = Server(*script)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def local_client(server, limits=QUICK, **options):
    return Client(server.url, guard=Guard(private_hosts=("127.0.0.1",)), limits=limits, **options)


class Names:
    """A name server that gives one answer after the other, the last for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.questions = []

    def __call__(self, host, port, *_):
        self.questions.append(host)
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]


OK = (200, {"X-Thing": "1"}, b'{"a": 1}')


def test_an_answer_has_its_status_headers_and_body():
    with serving(OK) as server, local_client(server, headers={"X-Key": "k"}) as client:
        answer = client.request("POST", "/things", params={"q": "ö"}, json={"b": 2})
    assert (answer.status, answer.headers["x-thing"], answer.json()) == (200, "1", {"a": 1})
    [(method, path, headers, body)] = server.seen
    assert (method, path, body) == ("POST", "/things?q=%C3%B6", b'{"b":2}')
    assert (headers["X-Key"], headers["User-Agent"]) == ("k", "martech")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/",
        "http://0.0.0.0/", "http://localhost/", "http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/", "http://[64:ff9b::7f00:1]/", "http://[64:ff9b:1::1]/", "http://[2002:7f00:1::]/",
        "http://10.1.2.3/", "http://172.16.0.1/", "http://192.168.1.1/", "http://169.254.169.254/latest/meta-data/",
        "http://100.64.0.1/", "http://100.100.100.200/", "http://192.0.2.1/", "http://198.18.0.1/", "http://224.0.0.1/",
        "http://255.255.255.255/", "http://[fe80::1]/", "http://[fd00::1]/", "http://[ff02::1]/", "http://[2001:db8::1]/",
        "http://127.0.0.1./", "http://①②⑦.0.0.1/", "http://user:secret@example.com/",
        "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "//example.com/", "http:///nothing",
        "http://93.184.215.14:22/", "https://93.184.215.14:6379/",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(url):
    with Client(limits=QUICK) as client, pytest.raises(AddressRefused) as refused:
        client.request("GET", url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.8", "169.254.169.254", "::1", "::ffff:10.0.0.8"])
def test_a_public_name_with_a_private_address_is_refused(address):
    with (
        Client(limits=QUICK, resolver=Names([address])) as client,
        pytest.raises(AddressRefused, match="OUTGOING_PRIV"),
    ):
        client.request("GET", "http://crm.example.com/")


def test_a_name_with_one_private_address_among_public_ones_is_refused():
    names = Names(["93.184.215.14", "127.0.0.1"])
    with Client(limits=QUICK, resolver=names) as client, pytest.raises(AddressRefused):
        client.request("GET", "http://crm.example.com/")


def test_a_name_is_checked_again_at_every_connection():
    guard = Guard(private_hosts=("127.0.0.1",), ports=(80,))
    with serving(OK) as server, Client(guard=guard, limits=QUICK, resolver=Names(["127.0.0.1"])) as client:
        assert client.request("GET", server.url).status == 200
        with pytest.raises(AddressRefused):
            client.request("GET", "http://crm.example.com/")


def test_the_connection_goes_to_the_address_that_was_checked():
    # A name that moves after its first answer: nobody listens on the second one.
    names = Names(["127.0.0.1"], ["127.0.0.99"])
    with serving(OK) as server:
        guard = Guard(private_hosts=(f"crm.test:{server.port}",))
        with Client(f"http://crm.test:{server.port}", guard=guard, limits=QUICK, resolver=names) as client:
            assert client.request("GET", "/").status == 200
    assert names.questions == ["crm.test"]
    assert server.seen[0][2]["Host"] == f"crm.test:{server.port}"


def test_a_private_host_may_be_named_with_its_port_alone():
    with serving(OK) as ours, serving(OK) as other:
        with Client(guard=Guard(private_hosts=(f"127.0.0.1:{ours.port}",)), limits=QUICK) as client:
            assert client.request("GET", ours.url).status == 200
            with pytest.raises(AddressRefused):
                client.request("GET", other.url)
    assert other.seen == []


def test_settings_give_the_guard():
    assert Guard.parse(["CRM.test", "[::1]:80"], ["443"]) == Guard(("crm.test", "[::1]:80"), (443,))


def test_redirects_are_not_followed():
    with serving(OK) as inside, serving((302, {"Location": inside.url}, b"")) as server:
        with local_client(server) as client, pytest.raises(HttpRefused, match="redirects are not followed") as refused:
            client.request("GET", "/")
    assert refused.value.status == 302
    assert inside.seen == []


def test_credentials_stay_with_their_origin():
    with serving(OK) as server, local_client(server, auth=("user", "secret")) as client:
        assert client.request("GET", server.url + "/page/2").status == 200
        with pytest.raises(AddressRefused, match="wrong credentials"):
            client.request("GET", f"http://127.0.0.1:{server.port + 1}/page/3")


def tls_server(authority, name):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return serving(OK, tls=context)


@pytest.mark.parametrize(("name", "trusted"), [("crm.test", True), ("other.test", False)])
def test_the_certificate_is_checked_against_the_name_and_not_the_address(name, trusted):
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with tls_server(authority, name) as server:
        url, guard = f"https://crm.test:{server.port}", Guard(private_hosts=("crm.test",))
        with Client(url, guard=guard, limits=QUICK, tls=context, resolver=Names(["127.0.0.1"])) as client:
            if trusted:
                assert client.request("GET", "/").status == 200
            else:
                with pytest.raises(AddressRefused, match="certificate that is not trusted"):
                    client.request("GET", "/")


LATER = (503, {}, b"come back")


def test_what_may_be_sent_twice_is_tried_again():
    with serving(LATER, LATER, OK) as server, local_client(server) as client:
        assert client.request("PUT", "/").status == 200
    assert len(server.seen) == 3


def test_tries_are_bounded():
    with serving(LATER) as server, local_client(server) as client:
        with pytest.raises(HttpUnavailable, match="answered 503: 'come back'") as failed:
            client.request("GET", "/")
    assert len(server.seen) == 3
    assert (failed.value.status, failed.value.excerpt, failed.value.retry_after) == (503, "come back", 0.01)


def test_what_must_not_be_sent_twice_is_sent_once():
    with serving(LATER) as server, local_client(server) as client, pytest.raises(HttpUnavailable):
        client.request("POST", "/")
    assert len(server.seen) == 1


def test_an_idempotency_key_allows_another_try_and_goes_along():
    with serving(LATER, OK) as server, local_client(server) as client:
        assert client.request("POST", "/", json={}, idempotency_key="k1").status == 200
    assert [seen[2]["Idempotency-Key"] for seen in server.seen] == ["k1", "k1"]
    assert [seen[3] for seen in server.seen] == [b"{}", b"{}"]


def test_a_server_that_says_when_is_obeyed():
    with serving((429, {"Retry-After": "1"}, b""), OK) as server, local_client(server) as client:
        begin = time.monotonic()
        assert client.request("GET", "/").status == 200
        assert 1.0 <= time.monotonic() - begin < 2.0


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_wait_that_is_too_long_is_left_to_the_caller(form):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=3600), usegmt=True)
    with serving((429, {"Retry-After": "3600" if form == "seconds" else date}, b"")) as server:
        with local_client(server) as client, pytest.raises(HttpUnavailable) as failed:
            client.request("GET", "/")
    assert len(server.seen) == 1
    assert 3590 < failed.value.retry_after <= 3600


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_final(status):
    with serving((status, {}, b"no\n\n  way")) as server, local_client(server) as client:
        with pytest.raises(HttpRefused) as refused:
            client.request("GET", "/")
    assert (refused.value.status, refused.value.excerpt, len(server.seen)) == (status, "no way", 1)


def test_a_status_that_the_caller_knows_is_an_answer():
    with serving((404, {}, b"")) as server, local_client(server) as client:
        assert client.request("GET", "/", accept=(404,)).status == 404


def test_a_body_that_is_no_json_is_refused():
    with serving((200, {}, b"<html>")) as server, local_client(server) as client:
        with pytest.raises(HttpRefused, match="not JSON: '<html>'"):
            client.request("GET", "/").json()


def drip(out, head=b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"):
    out.write(head)
    for _ in range(100):
        try:
            out.write(b"x")
            out.flush()
        except OSError:
            return
        time.sleep(0.1)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: "])
def test_a_server_that_drips_cannot_hold_us(head):
    limits = Limits(read=0.3, total=0.6, attempts=1)
    with serving(lambda out: drip(out, head)) as server, local_client(server, limits) as client:
        begin = time.monotonic()
        with pytest.raises(HttpUnavailable, match=r"the whole call is over|timed out"):
            client.request("GET", "/")
        assert time.monotonic() - begin < 2.0


def test_silence_ends_with_the_read_limit():
    limits = Limits(read=0.2, total=5.0, attempts=1)
    with serving(lambda out: time.sleep(0.5)) as server, local_client(server, limits) as client:
        with pytest.raises(HttpUnavailable, match="timed out"):
            client.request("GET", "/")


def test_a_name_server_that_is_silent_cannot_hold_us(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1.0))
    with Client(limits=Limits(total=0.3, attempts=1)) as client:
        with pytest.raises(HttpUnavailable, match="name server does not answer"):
            client.request("GET", "http://crm.example.com/")


def test_a_name_that_does_not_exist_may_exist_later():
    def nobody(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with Client(limits=QUICK, resolver=nobody) as client, pytest.raises(HttpUnavailable, match="Name or service"):
        client.request("GET", "http://nobody.invalid/")


def test_a_port_where_nobody_listens_is_tried_again_later():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Client(url, guard=Guard(("127.0.0.1",)), limits=QUICK) as client, pytest.raises(HttpUnavailable) as failed:
            client.request("GET", "/")
    assert failed.value.status == 0


@pytest.mark.parametrize(
    ("headers", "body"), [({}, b"x" * 50_000), ({"Content-Encoding": "gzip"}, gzip.compress(b"x" * 5_000_000))]
)
def test_a_body_that_is_too_large_is_cut_off(headers, body):
    with serving((200, headers, body)) as server, local_client(server) as client:
        with pytest.raises(HttpRefused, match="more than 10000 bytes"):
            client.request("GET", "/")
