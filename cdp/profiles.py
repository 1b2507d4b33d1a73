"""A profile as readers get it: one JSON document, from the cache first and PostgreSQL behind it.

Plain Python without Django: the collector serves it, the processor writes it, Django builds the same.
Cache keys: `i:{namespace}:{value}` → profile id, `p:{id}` → document after its epoch and version (of a merged one
no document), `at:{partition}` → the position whose effects the cache shows, `epoch` → a number that a processor
raises when it starts or takes over from a dead one, so that entries which may be older than the truth count for
nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import psycopg
import redis
import redis.asyncio
from msgspec import Raw
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from cdp.processing.identity import USER_ID, Identifier, clean
from martech.lib.errors import PermanentError, RetryableError

EPOCH_KEY = "epoch"
# How long a document that a reader put there stays: the processor's own are always newer.
FILLED_SECONDS = 60
POLL_SECONDS = 0.01
# A connection that broke unnoticed answers nothing, and would have readers wait for ever.
DATABASE_SECONDS = 4.0
# A younger change may not be on PostgreSQL's disk, and a crash would take it back: three times the most that
# its `wal_writer_delay` can be. The processor itself puts changes into the cache as soon as they are.
SETTLED = timedelta(seconds=30)
# A merged profile must not come back by a processor that comes late with what it was before.
MERGED_SECONDS = 3600
# The version of an erased profile's empty entry: none comes after it.
LAST = 2**53 - 1
# Documents written by one call of the script, during which the cache answers nobody: about a millisecond.
TOGETHER = 500
# Two processors may change one profile, and the later change may come here first: the newer document stays, and so
# does one of a later epoch. Arguments: epoch, seconds to keep (0: no end), then a version and an entry for each key.
WRITE = """
local epoch, seconds = tonumber(ARGV[1]), tonumber(ARGV[2])
for number, key in ipairs(KEYS) do
    local version, entry = tonumber(ARGV[2 * number + 1]), ARGV[2 * number + 2]
    local held, before = string.match(redis.call('GETRANGE', key, 0, 40), '^(%d+) (%d+) ')
    if not held or tonumber(held) < epoch or tonumber(before) < version then
        redis.call('SET', key, entry)
        if seconds > 0 then redis.call('EXPIRE', key, seconds) end
    end
end
"""
# Positions only go on, whoever comes late with one. They are whole numbers separated by dashes, of any length.
ADVANCE = """
local function later(one, other)
    local right = string.gmatch(other, '%d+')
    for left in string.gmatch(one, '%d+') do
        local with = right() or ''
        if #left ~= #with then return #left > #with end
        if left ~= with then return left > with end
    end
    return false
end
for number, key in ipairs(KEYS) do
    local held = redis.call('GET', key)
    if not held or later(ARGV[number], held) then redis.call('SET', key, ARGV[number]) end
end
"""
_encode = msgspec.json.Encoder().encode
_AWAY = (redis.exceptions.RedisError, OSError)


class ProfilesUnavailable(RetryableError):
    """Neither the cache nor PostgreSQL answers."""

    code = "profiles_unavailable"


class Document(NamedTuple):
    """What a document is built from; `graph`, `traits`, `computed` and `consent` are JSON objects as bytes."""

    id: UUID
    graph: bytes
    traits: bytes
    computed: bytes
    consent: bytes
    version: int
    as_of: str
    created_at: str
    updated_at: str


def document(parts: Document) -> bytes:
    """Return a profile's JSON document."""
    return _encode(
        {
            "id": parts.id,
            "identifiers": identifiers_of(msgspec.json.decode(parts.graph)),
            "traits": Raw(parts.traits),
            "computed_traits": Raw(parts.computed),
            "consent": Raw(parts.consent),
            "version": parts.version,
            "as_of": parts.as_of,
            "created_at": parts.created_at,
            "updated_at": parts.updated_at,
        }
    )


def identifiers_of(graph: dict[str, list[str]]) -> list[dict[str, str]]:
    """Return an identity graph as a list of identifiers, user ids first."""
    namespaces = sorted(graph, key=lambda namespace: (namespace != USER_ID, namespace))
    return [{"namespace": namespace, "value": value} for namespace in namespaces for value in graph[namespace]]


def timestamp(instant: datetime) -> str:
    """Return an instant as documents show it."""
    return instant.isoformat().replace("+00:00", "Z")


SELECT = """
SELECT p.id, p.identity_graph::text, p.traits::text, p.computed_traits::text, p.version, now(), p.created_at,
       p.timestamp, p.consent::text, p.merged_into_id
FROM customer_profiles p
"""


def from_row(row: Sequence[Any]) -> bytes:
    """Return the document of a row of `SELECT`."""
    profile_id, graph, traits, computed, version, as_of, created_at, updated_at, consent, _ = row
    return document(
        Document(
            profile_id, graph.encode(), traits.encode(), computed.encode(), consent.encode(), version,
            timestamp(as_of), timestamp(created_at), timestamp(updated_at),
        )
    )  # fmt: skip


class ProfileCache:
    """The processor's side: writes what a committed batch changed. Losing it costs speed only."""

    def __init__(self, url: str, *, starts_epochs: bool = True) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
        # Who only adds what it changed itself has no say in what older entries are worth.
        self._starts_epochs = starts_epochs
        self._epoch: bytes | None = None
        # Positions that could not be written yet.
        self._unwritten: dict[int, str] = {}

    def start_epoch(self) -> None:
        """Make every older entry count for nothing; called when a processor takes partitions over."""
        try:
            # Never a number that entries had before the cache was emptied.
            self._redis.set(EPOCH_KEY, time.time_ns() // 1_000_000, nx=True)
            self._epoch = str(self._redis.incr(EPOCH_KEY)).encode()
        except _AWAY:
            self._epoch = None

    def heal(self) -> bool:
        """Make good what the cache missed while it was away; called when there is time. False while it is away."""
        return self._epoch is not None or self.write([], [], [], {})

    def set_positions(self, positions: dict[int, str]) -> None:
        """Say where partitions stand that were just taken over, whatever was said before."""
        self._unwritten = dict(positions)
        try:
            if positions:
                self._redis.mset({f"at:{partition}": position for partition, position in positions.items()})
            self._unwritten = {}
        except _AWAY:
            self._epoch = None

    def write(
        self,
        documents: Iterable[tuple[UUID, int, bytes]],
        identifiers: Iterable[tuple[Identifier, UUID]],
        gone: Sequence[tuple[UUID, int]],
        positions: dict[int, str],
    ) -> bool:
        """Write (profile, version, document), pointers and positions in one round trip; False when the cache was away.

        `gone` are profiles that became part of others, with their versions: an unmerge may give them back later.

        After a failure the next success starts a new epoch first, since older entries may be behind.
        """
        self._unwritten |= positions
        try:
            self._renew()
            if self._epoch is None:  # nothing is there that could be behind
                return True
            epoch = self._epoch
            pipeline = self._redis.pipeline(transaction=False)
            # One command for many: a command each took as long as writing the rows. The server evicts, so none expires.
            entries = [(f"p:{one}", version, b"%b %d %b" % (epoch, version, body)) for one, version, body in documents]
            for start in range(0, len(entries), TOGETHER):
                part = entries[start : start + TOGETHER]
                values = [value for _, version, entry in part for value in (version, entry)]
                pipeline.eval(WRITE, len(part), *(key for key, _, _ in part), epoch, 0, *values)
            if tombs := [value for one, at in gone for value in (at, b"%b %d " % (epoch, at))]:
                pipeline.eval(WRITE, len(tombs) // 2, *(f"p:{one}" for one, _ in gone), epoch, MERGED_SECONDS, *tombs)
            pointers = {f"i:{identifier}": str(profile_id) for identifier, profile_id in identifiers}
            if pointers:
                pipeline.mset(pointers)
            keys = [f"at:{partition}" for partition in self._unwritten]
            if keys:
                pipeline.eval(ADVANCE, len(keys), *keys, *self._unwritten.values())
            pipeline.execute()
            self._unwritten = {}
            return True
        except _AWAY:
            self._epoch = None
            return False

    def _renew(self) -> None:
        """Start an epoch if the cache was away, or lost what it had."""
        current = self._redis.get(EPOCH_KEY)
        if self._starts_epochs and (self._epoch is None or current is None):
            self.start_epoch()
            if self._epoch is None:
                raise redis.exceptions.ConnectionError("the cache does not answer")
        else:
            # Another processor may have raised it: what we write is as true as what it writes.
            self._epoch = current  # type: ignore[assignment]

    def erase(self, identifiers: Iterable[Identifier], gone: Iterable[UUID], stale: Iterable[UUID]) -> int:
        """Delete pointers and documents, and return how many there were; ProfilesUnavailable when the cache is away.

        Those of `gone` do not come back by whoever is late with one; those of `stale` are read anew.
        """
        try:
            epoch: Any = self._redis.get(EPOCH_KEY)
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.delete(*(f"i:{one}" for one in identifiers), *(f"p:{one}" for one in stale), "p:")
            for profile_id in gone:
                pipeline.get(f"p:{profile_id}")
                # Without an epoch no entry counts, and the key would only stand there.
                if epoch is not None:
                    pipeline.set(f"p:{profile_id}", b"%b %d " % (epoch, LAST), ex=MERGED_SECONDS)
            deleted, *before = pipeline.execute()
        except _AWAY as error:
            raise ProfilesUnavailable(f"The cache does not answer: {error}. Try again.", retry_after=5) from error
        return int(deleted) + sum(b"{" in one for one in before if isinstance(one, bytes))

    def close(self) -> None:
        """Let go of the connection."""
        self._redis.close()


def parse_token(token: str) -> dict[int, tuple[int, ...]]:
    """Return the partitions and comparable positions of a position token; PermanentError if it is none."""
    try:
        pairs = (part.partition(".") for part in token.split(","))
        return {int(partition): tuple(map(int, position.split("-"))) for partition, _, position in pairs}
    except ValueError as error:
        raise PermanentError(
            f"'{token[:80]}' is no position token. Take it from the header X-Martech-Position.", code="bad_position"
        ) from error


def _comparable(position: str) -> tuple[int, ...]:
    """Order a position: redis ids and offsets are numbers, separated by dashes."""
    return tuple(int(part) for part in position.split("-")) if position else ()


class ProfileReader:
    """The readers' side, for one event loop."""

    def __init__(self, cache_url: str, database_url: str) -> None:
        self._redis: Any = redis.asyncio.Redis.from_url(cache_url, socket_timeout=1, socket_connect_timeout=1)
        self._database_url = database_url
        self._pool: AsyncConnectionPool | None = None

    async def by_identifier(self, namespace: str, value: str) -> bytes | None:
        """Return the document of the profile with this identifier, None where there is none."""
        value = clean(namespace, value)
        try:
            epoch, pointer = await self._redis.mget(EPOCH_KEY, f"i:{namespace}:{value}")
            if pointer is not None:
                body = _current(await self._redis.get(b"p:" + pointer), epoch)
                if body is not None and _holds(body, namespace, value):
                    return body
        except _AWAY:
            epoch = None
        return await self._from_database(
            "JOIN cdp_identifier i ON i.profile_id = p.id WHERE i.namespace = %s AND i.value = %s",
            [namespace, value],
            epoch,
            f"i:{namespace}:{value}",
        )

    async def by_id(self, profile_id: str) -> bytes | None:
        """Return the document of a profile; of a merged one, that of the profile it became part of."""
        try:
            epoch, cached = await self._redis.mget(EPOCH_KEY, f"p:{profile_id}")
            body = _current(cached, epoch)
            if body is not None:
                return body
        except _AWAY:
            epoch = None
        return await self._from_database("WHERE p.id = %s", [profile_id], epoch, "")

    async def _from_database(self, where: str, values: list[str], epoch: bytes | None, pointer: str) -> bytes | None:
        try:
            row = await self._row(where, values)
            while row is not None and row[-1] is not None:
                row = await self._row("WHERE p.id = %s", [row[-1]])
        except (psycopg.OperationalError, PoolTimeout, TimeoutError) as error:
            raise ProfilesUnavailable(f"The database does not answer: {error}. Try again.", retry_after=1) from error
        except psycopg.DataError:
            return None
        if row is None:
            return None
        body = from_row(row)
        as_of, updated_at = row[5], row[7]
        if epoch is not None and as_of - updated_at >= SETTLED:
            await self._fill(row[0], epoch, row[4], body, pointer)
        return body

    async def _row(self, where: str, values: list[Any]) -> Sequence[Any] | None:
        pool = await self._opened()
        async with asyncio.timeout(DATABASE_SECONDS), pool.connection(timeout=2) as connection:
            cursor = await connection.execute((SELECT + where).encode(), values)
            return await cursor.fetchone()

    async def _opened(self) -> AsyncConnectionPool:
        if self._pool is None:
            self._pool = AsyncConnectionPool(
                self._database_url, min_size=0, max_size=4, open=False, kwargs={"autocommit": True}
            )
            await self._pool.open()
        return self._pool

    async def _fill(self, profile_id: UUID, epoch: bytes, version: int, body: bytes, pointer: str) -> None:
        """Put a document that was read into the cache, unless the processor was quicker."""
        entry = b"%b %d %b" % (epoch, version, body)
        try:
            await self._redis.eval(WRITE, 1, f"p:{profile_id}", epoch, FILLED_SECONDS, version, entry)
            if pointer:
                await self._redis.set(pointer, str(profile_id), ex=FILLED_SECONDS, nx=True)
        except _AWAY:
            return

    async def wait_for(self, token: str, timeout_seconds: float) -> bool:
        """Wait until the effects of a position can be read; False after `timeout_seconds`."""
        wanted = parse_token(token)
        deadline = time.monotonic() + timeout_seconds
        while wanted:
            reached = await self._reached(list(wanted))
            wanted = {one: at for one, at in wanted.items() if _comparable(reached.get(one, "")) < at}
            if wanted and time.monotonic() > deadline:
                return False
            if wanted:
                await asyncio.sleep(POLL_SECONDS)
        return True

    async def _reached(self, partitions: list[int]) -> dict[int, str]:
        try:
            found = await self._redis.mget([f"at:{partition}" for partition in partitions])
            if None not in found:
                return {one: at.decode() for one, at in zip(partitions, found, strict=True)}
        except _AWAY:
            pass
        try:
            return await self._checkpoints(partitions)
        except (psycopg.OperationalError, PoolTimeout, TimeoutError) as error:
            raise ProfilesUnavailable(f"The database does not answer: {error}. Try again.", retry_after=1) from error

    async def _checkpoints(self, partitions: list[int]) -> dict[int, str]:
        pool = await self._opened()
        async with asyncio.timeout(DATABASE_SECONDS), pool.connection(timeout=2) as connection:
            cursor = await connection.execute(
                "SELECT partition, position FROM (SELECT DISTINCT ON (partition) partition, position"
                " FROM cdp_checkpoint WHERE partition = ANY(%s) ORDER BY partition, updated_at DESC) newest",
                [partitions],
            )
            return dict(await cursor.fetchall())

    async def aclose(self) -> None:
        """Let go of the connections."""
        await self._redis.aclose()
        if self._pool is not None:
            await self._pool.close()


def _current(cached: bytes | None, epoch: bytes | None) -> bytes | None:
    """Return the document of a cache entry of the current epoch."""
    if cached is None or epoch is None:
        return None
    written, _, body = cached.split(b" ", 2)
    return body if written == epoch and body else None


def _holds(body: bytes, namespace: str, value: str) -> bool:
    """Tell whether a document has an identifier: a pointer may be older than an unmerge."""
    # Inside a JSON string the quotes would be escaped, so this is where the identifiers end.
    head = body[: body.index(b'],"traits":')]
    return _encode({"namespace": namespace, "value": value}) in head
