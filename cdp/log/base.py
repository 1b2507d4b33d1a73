"""The log's port and the format of its entries.

A log is `partitions` ordered sequences of entries. The collector appends; one processor reads each
partition; PostgreSQL keeps how far it got. The broker is never asked to agree on a position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

import msgspec

from martech.lib.errors import PermanentError, RetryableError

FORMAT_VERSION = b"\x02"


class LogUnavailable(RetryableError):
    """The log cannot be reached or cannot write now; nothing of the call was acknowledged."""

    code = "log_unavailable"


class LogFull(RetryableError):
    """The log has no room: the sender should slow down."""

    code = "log_full"


class LogTruncated(PermanentError):
    """Entries after the asked position are gone: reading on would skip events silently."""

    code = "log_truncated"


class Event(msgspec.Struct, array_like=True, frozen=True):
    """One event as it came: `body` is the sender's own bytes (a JSON object).

    `kind` is the call of the endpoint for single calls, or "" where the body's `type` tells.
    `message_id` is set only where the sender gave none. `skew_us` is what the clock correction
    adds to the sender's time, in microseconds.
    """

    kind: str
    message_id: str
    skew_us: int
    body: bytes


class Delivery(msgspec.Struct, array_like=True, frozen=True):
    """The events of one request that fall into one partition, with what the request says of all of them.

    `received_us` is our clock in microseconds since 1970, `context` and `integrations` the
    batch's own JSON objects or b"", `ip` the sender's address or "". `trace` is the request's W3C
    trace context (`traceparent`), or "". `letter_id` is the dead letter that was given back, else 0.
    """

    source_id: int
    received_us: int
    ip: str
    context: bytes
    integrations: bytes
    events: list[Event]
    trace: str = ""
    letter_id: int = 0


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """What one flush appends to one partition."""

    deliveries: list[Delivery]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def encode_entry(entry: Entry) -> bytes:
    """Return an entry's bytes: one version byte, then MessagePack."""
    return FORMAT_VERSION + _encoder.encode(entry)


def decode_entry(payload: bytes) -> Entry:
    """Return the entry in `payload`; PermanentError where its format is unknown."""
    if payload[:1] != FORMAT_VERSION:
        raise PermanentError(
            f"Log entry format {payload[:1]!r} is not known here; it was written by another version. "
            "Let that one drain the log.",
            code="log_format",
        )
    try:
        return _decoder.decode(memoryview(payload)[1:])
    except msgspec.DecodeError as error:
        raise PermanentError(f"Log entry cannot be read: {error}.", code="log_format") from error


def partition_of(anchor: str, partitions: int) -> int:
    """Return the partition that keeps the order of `anchor` ("namespace:value")."""
    return int.from_bytes(blake2b(anchor.encode("utf-8", "surrogatepass"), digest_size=8).digest()) % partitions


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry in the log: its position (opaque text, ordered by `Log.order`) and its bytes."""

    position: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Load:
    """How near the log is to where it can take no more.

    `memory` and `disk` are ratios from 0 to 1, 0 where there is no ceiling or none can be seen. `disk` is 0.7
    where three times the reserve is free and 0.9 where the reserve is. `waiting` is how many seconds the oldest
    event waits to be processed, 0 where none does or nobody knows.
    """

    memory: float = 0.0
    disk: float = 0.0
    waiting: float = 0.0


class Waits:
    """How long the oldest event of a log waits, from what is seen of its partitions again and again."""

    def __init__(self) -> None:
        self._emptied: dict[int, int] = {}

    def oldest(self, lengths: dict[int, int], done: dict[int, int], now_us: int) -> float:
        """Return seconds; `lengths` are entries by partition, `done` what `Log.done` was last told."""
        # One entry is the checkpoint's own: `trim` leaves it. Whatever came later than it was alone waits no longer.
        self._emptied |= dict.fromkeys((one for one, length in lengths.items() if length <= 1), now_us)
        since = [
            max(done[one], self._emptied.get(one, 0)) for one, length in lengths.items() if length > 1 and one in done
        ]
        return max(0.0, (now_us - min(since, default=now_us)) / 1e6)


class Log(ABC):
    """The port. Adapters know no Django; positions are texts that only `order` may interpret.

    `supports_trim` is False where the server drops entries by age alone. `block_bytes` is how large an entry has to be
    so that what is trimmed before it shares no block of the server's with it, 0 for any size.
    """

    supports_trim: ClassVar[bool] = True
    block_bytes: ClassVar[int] = 0

    def __init__(self, url: str, *, partitions: int) -> None:
        self.url = url
        self.partitions = partitions

    @property
    @abstractmethod
    def name(self) -> str:
        """What identifies this log in checkpoints: changes when positions would no longer mean the same."""

    @abstractmethod
    async def append(self, entries: Sequence[tuple[int, bytes]]) -> list[str]:
        """Append (partition, payload) pairs and return their positions, in order.

        Called by the collector, once a flush. Returns only when all are durable. LogFull when
        there is no room, LogUnavailable otherwise; after either, some may have been written.
        """

    @abstractmethod
    def read(self, after: dict[int, str], *, limit: int, wait: float) -> dict[int, list[Stored]]:
        """Return up to `limit` entries of each partition in `after` that follow its position ("" = from the start).

        Called by the processor, from one thread. Waits up to `wait` seconds for a first entry.
        LogUnavailable when away.
        """

    @abstractmethod
    def verify(self, partition: int, position: str) -> None:
        """Raise LogTruncated when reading on from `position` would skip events silently.

        Called by the processor once, when it takes a partition.
        """

    @abstractmethod
    def trim(self, partition: int, below: str) -> None:
        """Forget entries before `below`, which stays: `verify` knows by it that nothing is missing.

        Called only with positions that PostgreSQL has flushed.
        """

    @abstractmethod
    def newest(self, partition: int) -> str:
        """Return the position of the newest entry ever appended to the partition, "" for none."""

    @abstractmethod
    def order(self, position: str) -> tuple[int, ...]:
        """Return a key by which positions of one partition compare; () for ""."""

    @abstractmethod
    def lag(self, partition: int, position: str) -> int:
        """Return how many entries follow `position`, counted by id and not from the server's own estimate."""

    @abstractmethod
    def done(self, times: dict[int, int]) -> None:
        """Note, by partition, that everything received before that time (µs since 1970) has been processed.

        Called by the processor about once a second. A hint for `load`: a log without room for it drops it.
        LogUnavailable when away.
        """

    @abstractmethod
    async def load(self, *, disk_reserve: int) -> Load:
        """Return how full the log is; `disk_reserve` is the space, in bytes, that has to stay free on its disk.

        Called by the collector about twice a second, so it reads no entries. 0 as a reserve leaves the disk out.
        LogUnavailable when away.
        """

    @abstractmethod
    def compact(self, *, seconds: float) -> bool:
        """Have nothing on the server's disk of what was trimmed; False where the server cannot, or may not be asked.

        Called by an erasure, once `trim` has forgotten the person's entries up to one of `block_bytes`: what was
        trimmed after the call may stay. LogUnavailable when away, or when it takes longer than `seconds`: then call
        it again.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise ConfigurationError when the server is set up so that it may lose events, LogUnavailable when away."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the connections used for reading."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of the connections used for appending."""
