"""The one way out: HTTP calls with time limits, bounded retries and a guard against private addresses.

Addresses come from people (webhooks, a connection's `base_url`), so a call must not reach what only this
machine can: `ssrfguard` resolves a name once, checks every answer and connects to the very address it
checked, beneath httpx, so that TLS and `Host` still see the name. It was chosen over code of our own after
reading it: its table is made from IANA's registries, wrapped IPv4 (mapped, NAT64, 6to4) is unwrapped, and
nothing after the check can resolve again. Redirects are not followed.
"""

from __future__ import annotations

import json as jsonlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpcore
import httpx
from prometheus_client import Counter
from ssrfguard import Policy, Resolver, SSRFGuardError
from ssrfguard.httpx import SafeBackend, SafeTransport

from martech.lib.errors import ConfigurationError, PermanentError, RetryableError

REQUESTS = Counter("martech_outgoing_requests_total", "Outgoing HTTP requests", ["method", "outcome"])
# What may be sent twice: the second time changes nothing.
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
TRY_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
ANY_ADDRESS = ("0.0.0.0/0", "::/0")
EXCERPT = 300


class HttpUnavailable(RetryableError):
    """No usable answer came, or one that says to try later; `status` is 0 where none came."""

    code = "http_unavailable"

    def __init__(self, message: str, *, status: int = 0, excerpt: str = "", retry_after: float = 1.0) -> None:
        super().__init__(message, retry_after=retry_after)
        self.status = status
        self.excerpt = excerpt


class HttpRefused(PermanentError):
    """The other side refused the request, or answered what we cannot use."""

    code = "http_refused"

    def __init__(self, message: str, *, status: int = 0, excerpt: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.excerpt = excerpt


class AddressRefused(ConfigurationError):
    """The address may not be called: it is private, or its scheme, port or certificate is not acceptable."""

    code = "address_refused"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one call. Times are seconds; `total` covers all attempts with the waits between them.

    `retry_after` is the longest wait a server may ask for that we sit out ourselves.
    """

    connect: float = 5.0
    read: float = 20.0
    total: float = 60.0
    attempts: int = 3
    backoff: float = 0.5
    retry_after: float = 20.0
    response_bytes: int = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Guard:
    """Where calls may go: public addresses on `ports`, and `private_hosts` ("host" or "host:port") anywhere."""

    private_hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = (80, 443)

    @classmethod
    def parse(cls, private_hosts: Iterable[str], ports: Iterable[str]) -> Self:
        """Return the guard that texts from settings describe; ConfigurationError where a port is no number."""
        try:
            return cls(tuple(host.lower() for host in private_hosts), tuple(int(port) for port in ports))
        except ValueError as error:
            raise ConfigurationError(f"OUTGOING_PORTS must be numbers with commas between: {error}.") from error

    def allows_private(self, url: httpx.URL) -> bool:
        """Tell whether the URL's host was named as one of our own."""
        host = f"[{url.host}]" if ":" in url.host else url.host
        return bool({host, f"{host}:{_port(url)}"} & set(self.private_hosts))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the status, the headers (any case) and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body read as JSON; HttpRefused where it is none."""
        try:
            return jsonlib.loads(self.body)
        except ValueError as error:
            raise HttpRefused(
                f"The answer is not JSON: {_excerpt(self.body)!r}.", status=self.status, excerpt=_excerpt(self.body)
            ) from error


class Client:
    """Calls one service, from one thread at a time; use it in a `with`, or close it.

    With a `base_url`, addresses are relative to it, and absolute ones of another origin (a tampered
    "next page") are refused, since they would be sent the service's credentials.
    """

    def __init__(
        self,
        base_url: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        guard: Guard | None = None,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        self.guard = guard or Guard()
        self.limits = limits or Limits()
        context = tls or httpx.create_ssl_context()
        public = Policy(allowed_ports=frozenset(self.guard.ports), max_connection_attempts=2)
        self._public = self._client(base_url, headers, auth, _Transport(public, context, resolver))
        self._private = None
        if self.guard.private_hosts:
            ours = Policy(
                allowed_ports=frozenset(range(1, 65536)),
                allowed_networks=ANY_ADDRESS,  # type: ignore[arg-type]  # turned into networks by the class
                max_connection_attempts=2,
            )
            self._private = self._client(base_url, headers, auth, _Transport(ours, context, resolver))

    def _client(
        self,
        base_url: str,
        headers: Mapping[str, str] | None,
        auth: tuple[str, str] | None,
        transport: httpx.BaseTransport,
    ) -> httpx.Client:
        return httpx.Client(
            base_url=base_url,
            headers={"User-Agent": "martech", **(headers or {})},
            auth=auth,
            transport=transport,
            timeout=httpx.Timeout(self.limits.read, connect=self.limits.connect),
            trust_env=False,
        )

    def request(
        self,
        method: str,
        url: str = "",
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        content: bytes | None = None,
        data: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str = "",
        accept: Collection[int] = (),
    ) -> Answer:
        """Send a request and return its answer: one of status 2xx, or one of the statuses in `accept`.

        Tried again only when it may be sent twice: by its method, or by an `idempotency_key`, which
        goes along as a header. Raises HttpUnavailable when trying later may help, HttpRefused when
        it will not, AddressRefused when the address may not be called.
        """
        sent = dict(headers or {}) | ({"Idempotency-Key": idempotency_key} if idempotency_key else {})
        try:
            request = self._public.build_request(
                method, url, params=params, json=json, content=content, data=data, headers=sent
            )
        except httpx.InvalidURL as error:
            raise AddressRefused(f"{url!r} is no address: {error}.") from error
        self._same_origin(request.url)
        repeatable = request.method in IDEMPOTENT or idempotency_key != ""
        return self._send(request, self.limits.attempts if repeatable else 1, accept)

    def _same_origin(self, url: httpx.URL) -> None:
        base = self._public.base_url
        if base.host and (base.scheme, base.host, _port(base)) != (url.scheme, url.host, _port(url)):
            raise AddressRefused(f"{_shown(url)} is not at {_shown(base)}: it would be sent the wrong credentials.")

    def _send(self, request: httpx.Request, attempts: int, accept: Collection[int]) -> Answer:
        deadline = time.monotonic() + self.limits.total
        for attempt in range(1, attempts + 1):
            try:
                return self._attempt(request, deadline, accept)
            except HttpUnavailable as error:
                wait = self._wait(error, attempt)
                if attempt == attempts or wait > self.limits.retry_after or time.monotonic() + wait > deadline:
                    raise
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, error: HttpUnavailable, attempt: int) -> float:
        """Return how long to wait, with jitter so that callers do not come back all at once."""
        backoff = self.limits.backoff * 2.0 ** (attempt - 1)
        jitter = random.random()  # noqa: S311 - no secret
        return max(error.retry_after * (1 + jitter / 10), backoff * (0.5 + jitter / 2))

    def _attempt(self, request: httpx.Request, deadline: float, accept: Collection[int]) -> Answer:
        client = self._private if self._private and self.guard.allows_private(request.url) else self._public
        token = _deadline.set(deadline)
        try:
            response = client.send(request, stream=True)
            try:
                answer = Answer(response.status_code, response.headers, self._body(request, response))
            finally:
                response.close()
        except (SSRFGuardError, httpx.UnsupportedProtocol) as error:
            REQUESTS.labels(request.method, "blocked").inc()
            reason = getattr(error, "reason", str(error))
            # Without the cause: it quotes the whole address, secrets included.
            raise AddressRefused(
                f"{_shown(request.url)} may not be called: {reason}. If it is your own, name its host in "
                "OUTGOING_PRIVATE_HOSTS; for another port, see OUTGOING_PORTS."
            ) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            REQUESTS.labels(request.method, "no_answer").inc()
            raise _no_answer(request.url, error, self.limits) from error
        finally:
            _deadline.reset(token)
        REQUESTS.labels(request.method, f"{answer.status // 100}xx").inc()
        return self._checked(request, answer, accept)

    def _body(self, request: httpx.Request, response: httpx.Response) -> bytes:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > self.limits.response_bytes:
                raise HttpRefused(
                    f"{_shown(request.url)} answers more than {self.limits.response_bytes} bytes: ask for less.",
                    status=response.status_code,
                    excerpt=_excerpt(bytes(body[:EXCERPT])),
                )
        return bytes(body)

    def _checked(self, request: httpx.Request, answer: Answer, accept: Collection[int]) -> Answer:
        if 200 <= answer.status < 300 or answer.status in accept:
            return answer
        excerpt = _excerpt(answer.body)
        what = f"{request.method} {_shown(request.url)} answered {answer.status}"
        if answer.status in TRY_LATER:
            wait = _retry_after(answer.headers.get("retry-after", ""), datetime.now(UTC))
            raise HttpUnavailable(
                f"{what}: {excerpt!r}. It may work later.",
                status=answer.status,
                excerpt=excerpt,
                retry_after=self.limits.backoff if wait is None else wait,
            )
        if 300 <= answer.status < 400:
            what += f" to {answer.headers.get('location', 'nowhere')}, and redirects are not followed"
        raise HttpRefused(f"{what}: {excerpt!r}. Correct the request.", status=answer.status, excerpt=excerpt)

    def close(self) -> None:
        """Close the connections."""
        self._public.close()
        if self._private:
            self._private.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _no_answer(url: httpx.URL, error: Exception, limits: Limits) -> Exception:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return AddressRefused(f"{_shown(url)} shows a certificate that is not trusted: {cause.verify_message}.")
        cause = cause.__cause__ or cause.__context__
    words = str(error) or type(error).__name__
    return HttpUnavailable(f"No answer from {_shown(url)}: {words}. It may work later.", retry_after=limits.backoff)


def _retry_after(text: str, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number, or a date."""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError):
        return None


def _port(url: httpx.URL) -> int | None:
    return url.port or {"http": 80, "https": 443}.get(url.scheme)


def _shown(url: httpx.URL) -> str:
    """Return an address without its query and user, which may hold secrets."""
    parts = urlsplit(str(url))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _excerpt(body: bytes) -> str:
    return " ".join(body[:EXCERPT].decode("utf-8", "replace").split())


_deadline: ContextVar[float] = ContextVar("deadline")


def _left(timeout: float | None = None) -> float:
    """Return the seconds that one wait may take: `timeout`, or what is left of the whole call."""
    left = _deadline.get() - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time limit of the whole call is over")
    return left if timeout is None else min(timeout, left)


class _TimedStream(httpcore.NetworkStream):
    """A connection whose every wait ends with the call: a server that sends a byte now and then cannot hold us."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, _left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(SafeBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        return _TimedStream(super().connect_tcp(host, port, _left(timeout), local_address, socket_options))


class _Transport(SafeTransport):
    """The library's transport, with our own limits around its connections."""

    def __init__(self, policy: Policy, tls: ssl.SSLContext, resolver: Resolver | None) -> None:
        super().__init__(policy=policy, verify=tls, trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls,
            max_connections=10,
            keepalive_expiry=5.0,
            network_backend=_Backend(policy=policy, resolver=resolver or _look_up),
        )


def _look_up(*question: Any, **options: Any) -> Any:
    """Resolve a name as `socket.getaddrinfo` does, which has no time limit of its own."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(socket.getaddrinfo(*question, **options))
        except OSError as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="look-up")
    thread.start()
    thread.join(_left())
    if not answers:
        raise TimeoutError("the name server does not answer")
    if isinstance(answers[0], OSError):
        raise answers[0]
    return answers[0]
