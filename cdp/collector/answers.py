"""What the collector says back: ready-made ASGI messages.

SDKs read `code` and `message` at the top level of an error; the members of RFC 9457 stand beside them.
"""

import random
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

from martech.lib.errors import RetryableError

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

CORS: list[Header] = [
    (b"access-control-allow-origin", b"*"),
    # Without this a browser hides both from the SDK.
    (b"access-control-expose-headers", b"Retry-After, X-Martech-Position"),
]
PREFLIGHT: list[Header] = [
    *CORS,
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    # RudderStack's browser SDK sends AnonymousId, pages that trace their requests traceparent.
    (
        b"access-control-allow-headers",
        b"Authorization, Content-Type, Content-Encoding, X-Retry-Count, AnonymousId, traceparent",
    ),
    (b"access-control-max-age", b"86400"),
]
LONGEST_RETRY = 300


class Answer(NamedTuple):
    """A whole response: the two messages that send it, and its status for the metrics."""

    status: int
    start: Message
    body: Message


class Refused(Exception):
    """The request is answered with an error: its status, stable code, message, and seconds until a retry helps."""

    def __init__(self, status: int, code: str, message: str, *, headers: Iterable[Header] = ()) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, tuple(headers)


def later(status: int, error: RetryableError) -> Refused:
    """Refuse for now: Retry-After is the error's delay in whole seconds, spread so that clients don't come at once."""
    seconds = max(1.0, error.retry_after) * random.uniform(1.0, 2.0)  # noqa: S311 - spreads load, keeps no secret
    return Refused(
        status, error.code, error.message, headers=[(b"retry-after", b"%d" % min(LONGEST_RETRY, round(seconds)))]
    )


def answer(
    status: int, content: bytes, *, content_type: bytes = b"application/json", headers: Iterable[Header] = ()
) -> Answer:
    """Make an answer that any origin may read."""
    head = [(b"content-type", content_type), (b"content-length", b"%d" % len(content)), *CORS, *headers]
    return Answer(
        status,
        {"type": "http.response.start", "status": status, "headers": head},
        {"type": "http.response.body", "body": content},
    )


def problem(refused: Refused) -> Answer:
    """Make the answer to a refused request."""
    content = msgspec.json.encode(
        {
            "code": refused.code,
            "message": refused.message,
            "type": "about:blank",
            "title": HTTPStatus(refused.status).phrase,
            "status": refused.status,
            "detail": refused.message,
        }
    )
    return answer(refused.status, content, content_type=b"application/problem+json", headers=refused.headers)


def _preflight() -> Answer:
    start = {"type": "http.response.start", "status": 204, "headers": PREFLIGHT}
    return Answer(204, start, {"type": "http.response.body", "body": b""})


SUCCESS_BODY = b'{"success": true}'
SUCCESS = answer(200, SUCCESS_BODY)
OPTIONS = _preflight()


def other_method(method: str, allowed: bytes) -> Answer:
    """Answer a method that an endpoint does not have: OPTIONS as browsers ask it, else 405."""
    if method == "OPTIONS":
        return OPTIONS
    refused = Refused(
        405, "method_not_allowed", f"Use {allowed.decode()} at this address.", headers=[(b"allow", allowed)]
    )
    return problem(refused)
