"""Takes in a request's body: bounded in bytes, in time and in what all requests hold together."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from cdp.collector.answers import Refused, later
from martech.lib.errors import RetryableError

Receive = Callable[[], Awaitable[dict[str, Any]]]

# A refused body is read to its end, up to this many bytes and seconds: a client that still writes
# when the connection closes sees a broken pipe instead of the answer.
DRAIN_BYTES = 64 * 2**20
DRAIN_SECONDS = 10
SLOWEST_BODY_SECONDS = 60
# Members of one gzip body; stock SDKs send one.
MOST_MEMBERS = 64
_WINDOW = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


class Disconnected(Exception):
    """The client went away before its request was whole: there is nobody to answer."""


class QueueFull(RetryableError):
    """This process holds as many unacknowledged bytes as it may."""

    code = "queue_full"


class Room:
    """The bytes that all requests of this process hold, from their arrival to their answer.

    These are their bodies as they came, decompressed, and cut into events: what waits for the log in the flusher.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def take(self, size: int) -> None:
        """Hold `size` bytes more; 429 where there is no room."""
        if self.held + size > self.limit:
            raise later(429, QueueFull("Too many events are waiting to be stored. Send again later.", retry_after=2))
        self.held += size

    def give(self, size: int) -> None:
        """Let go of `size` bytes."""
        self.held -= size


class Body:
    """One request's body and the room it takes."""

    __slots__ = ("_data", "_limit", "_room", "_taken")

    def __init__(self, room: Room, limit: int) -> None:
        self._room, self._limit = room, limit
        self._taken = 0
        self._data = b""

    def hold(self, size: int) -> None:
        """Take room for `size` bytes more until the request is answered; 429 where there is none, 413 for good."""
        if self._taken + size > self._room.limit:
            raise Refused(413, "request_too_large", "This many events never fit in at once. Send smaller batches.")
        self._room.take(size)
        self._taken += size

    def release(self) -> None:
        """Give back the room; called once the request is answered."""
        self._room.give(self._taken)
        self._taken = 0

    async def read(self, receive: Receive, headers: Mapping[bytes, bytes]) -> bytes:
        """Return the whole body, decompressed; Refused (400, 413, 415, 429, 503) where it can't be taken."""
        expected = _expected(headers)
        if expected > self._limit:
            await pass_over(receive, headers)
            raise self._too_large()
        message = await receive()
        if message["type"] != "http.request":
            raise Disconnected
        data: bytes = message.get("body", b"")
        # Granian says that more may come even after the last byte; the usual body came in one piece.
        if message.get("more_body") and len(data) != expected:
            data = await self._rest(receive, data)
        else:
            self.hold(len(data))
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        return data if encoding in {b"identity", b""} else self._inflated(data, encoding)

    async def _rest(self, receive: Receive, first: bytes) -> bytes:
        try:
            async with asyncio.timeout(SLOWEST_BODY_SECONDS):
                return await self._joined(receive, first)
        except TimeoutError as error:
            # 408 would make rudder-python drop the events.
            raise later(503, RetryableError("The body came too slowly. Send it again.", code="slow_body")) from error

    async def _joined(self, receive: Receive, first: bytes) -> bytes:
        chunks, size, more, chunk = [first], 0, True, first
        try:
            while True:
                size += len(chunk)
                if size > self._limit:
                    raise self._too_large()
                self.hold(len(chunk))
                if not more:
                    return b"".join(chunks)
                message = await receive()
                if message["type"] != "http.request":
                    raise Disconnected
                chunk, more = message.get("body", b""), message.get("more_body", False)
                chunks.append(chunk)
        except Refused:
            if more:
                await _drain(receive, 0)
            raise

    def _inflated(self, data: bytes, encoding: bytes) -> bytes:
        if encoding not in _WINDOW:
            raise Refused(415, "unsupported_encoding", "Content-Encoding must be gzip, deflate or identity.")
        try:
            inflated = _inflate(data, _window(data, encoding), self._limit + 1)
        except zlib.error as error:
            raise Refused(
                400, "malformed", f"The body cannot be decompressed ({error}). Compress it again, or send it plain."
            ) from error
        if len(inflated) > self._limit:
            raise self._too_large()
        self.hold(len(inflated))
        return inflated

    def _too_large(self) -> Refused:
        return Refused(413, "request_too_large", f"A body may have {self._limit} bytes. Send smaller batches.")


def _window(data: bytes, encoding: bytes) -> int:
    # Some senders of "deflate" leave out zlib's two bytes of header.
    bare = encoding == b"deflate" and (len(data) < 2 or data[0] & 15 != 8 or int.from_bytes(data[:2]) % 31)
    return -15 if bare else _WINDOW[encoding]


def _inflate(data: bytes, window: int, limit: int) -> bytes:
    """Return what `data` holds, cut at `limit` bytes; zlib.error where it is damaged or ends too early."""
    whole = b""
    for _ in range(MOST_MEMBERS):
        inflater = zlib.decompressobj(window)
        whole += inflater.decompress(data, limit - len(whole))
        if len(whole) >= limit:
            return whole
        if not inflater.eof:
            raise zlib.error("it ends too early")
        data = inflater.unused_data.lstrip(b"\0")
        if not data:
            return whole
    raise zlib.error("it has too many members")


def _expected(headers: Mapping[bytes, bytes]) -> int:
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() else -1


async def pass_over(receive: Receive, headers: Mapping[bytes, bytes]) -> None:
    """Read a body that is refused unseen and keep nothing of it; a client that asked first has not sent it."""
    if headers.get(b"expect", b"").lower() != b"100-continue":
        await _drain(receive, _expected(headers))


async def _drain(receive: Receive, expected: int) -> None:
    """Read what still comes, so that the client gets to read the answer."""
    left = DRAIN_BYTES
    if expected > left:
        return
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
    except TimeoutError:
        return
