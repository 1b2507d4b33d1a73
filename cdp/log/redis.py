"""The log in Redis Streams (Redis ≥ 7 or Valkey): one stream a partition, positions are entry ids.

No consumer group: PostgreSQL knows the position. Never XADD with MAXLEN, which drops what was not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import redis
import redis.asyncio
from redis import exceptions

from cdp.log.base import Load, Log, LogFull, LogTruncated, LogUnavailable, Stored, Waits
from martech.lib import clock
from martech.lib.errors import ConfigurationError

PREFIX = "martech:log"
DONE = f"{PREFIX}:done"
FIELD = b"e"
TIMEOUT = 5.0
# What the server must be set to, and why.
REQUIRED = {
    "maxmemory-policy": ("noeviction", "any other policy may delete the whole stream"),
    "appendonly": ("yes", "without it a restart forgets acknowledged events"),
    "appendfsync": ("always", "`everysec` loses acknowledged events on a plain kill of the server"),
}
# An append-only file this many times as large as the memory in use holds mostly what was trimmed.
STALE_FILE = 2
# From this `Load.disk` on the server is asked to write its file anew: by itself it does so only as the file grows.
TIGHT_DISK = 0.7
_AWAY = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.BusyLoadingError, OSError)


class RedisLog(Log):
    """Streams `martech:log:0` … in the database that the address names."""

    # Trimmed entries keep their bytes while another of their node lives; twice `stream-node-max-bytes` begins one anew.
    block_bytes = 8192

    def __init__(self, url: str, *, partitions: int) -> None:
        super().__init__(url, partitions=partitions)
        self._reader = redis.Redis.from_url(url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)
        self._async: Any = None
        self._name = ""
        self._waits = Waits()

    @property
    def name(self) -> str:
        if not self._name:
            # A server that lost its data, or another one, gets another name: its positions mean nothing to us.
            key = f"{PREFIX}:id"
            with _translated():
                # A full server takes no SET, though who empties it has to know the name.
                if not self._reader.exists(key):
                    self._reader.set(key, uuid4().hex, nx=True)
                self._name = "redis:" + self._reader.get(key).decode()  # type: ignore[union-attr]
        return self._name

    @staticmethod
    def key(partition: int) -> str:
        """Return the name of a partition's stream."""
        return f"{PREFIX}:{partition}"

    async def append(self, entries: Sequence[tuple[int, bytes]]) -> list[str]:
        with _translated():
            pipeline = self._writer().pipeline(transaction=False)
            for partition, payload in entries:
                pipeline.xadd(self.key(partition), {FIELD: payload})
            return [position.decode() for position in await pipeline.execute()]

    def _writer(self) -> Any:
        if self._async is None:
            self._async = redis.asyncio.Redis.from_url(
                self.url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, max_connections=8
            )
        return self._async

    def read(self, after: dict[int, str], *, limit: int, wait: float) -> dict[int, list[Stored]]:
        if not after:
            return {}
        streams: Any = {self.key(partition): position or "0-0" for partition, position in after.items()}
        with _translated():
            # BLOCK 0 would wait for ever.
            found: Any = self._reader.xread(streams, count=limit, block=max(1, int(wait * 1000)))
        partitions = {self.key(partition).encode(): partition for partition in after}
        items = found.items() if isinstance(found, dict) else found
        return {
            partitions[_bytes(key)]: [Stored(entry_id.decode(), fields[FIELD]) for entry_id, fields in entries]
            for key, entries in items
        }

    def verify(self, partition: int, position: str) -> None:
        if not position:
            return
        with _translated():
            there: Any = self._reader.xrange(self.key(partition), position, position)
        if not there:
            raise LogTruncated(
                f"Partition {partition} of the log no longer holds its checkpoint {position}: it was trimmed by "
                "others or its server lost data, so events may be missing. Restore the log, or accept the gap by "
                "deleting the checkpoint row."
            )

    def trim(self, partition: int, below: str) -> None:
        with _translated():
            self._reader.xtrim(self.key(partition), minid=below, approximate=False)

    def newest(self, partition: int) -> str:
        with _translated():
            try:
                info: Any = self._reader.xinfo_stream(self.key(partition))
            except exceptions.ResponseError as error:
                if "no such key" in str(error):
                    return ""
                raise
        return _text(info["last-generated-id"])

    def order(self, position: str) -> tuple[int, ...]:
        return tuple(int(part) for part in position.split("-")) if position else ()

    def lag(self, partition: int, position: str) -> int:
        key = self.key(partition)
        with _translated():
            if not position:
                return int(self._reader.xlen(key))
            done: Any = self._reader.xrange(key, "-", position)
            return int(self._reader.xlen(key)) - len(done)

    def done(self, times: dict[int, int]) -> None:
        with contextlib.suppress(LogFull), _translated():
            self._reader.hset(DONE, mapping=dict(times.items()))

    async def load(self, *, disk_reserve: int) -> Load:
        with _translated():
            pipeline = self._writer().pipeline(transaction=False)
            pipeline.info("memory").info("persistence").hgetall(DONE)
            for partition in range(self.partitions):
                pipeline.xlen(self.key(partition))
            memory, persistence, done, *lengths = await pipeline.execute()
            free = await self._free() if disk_reserve else None
            disk = 0.0 if free is None else max(0.0, 1 - free / (10 * disk_reserve))
            if free is not None and disk >= TIGHT_DISK and _is_stale(memory, persistence, free):
                # Refused while another one is under way.
                with contextlib.suppress(exceptions.ResponseError):
                    await self._writer().bgrewriteaof()
        ceiling = memory.get("maxmemory", 0)
        return Load(
            memory=min(1.0, memory["used_memory"] / ceiling) if ceiling else 0.0,
            disk=disk,
            waiting=self._waits.oldest(
                dict(enumerate(lengths)), {int(one): int(time) for one, time in done.items()}, clock.now_us()
            ),
        )

    async def _free(self) -> int | None:
        """Return the bytes free on the server's disk, None where it is another machine's or the server won't tell."""
        if not _is_local(self.url):
            return None
        try:
            directory = (await self._writer().config_get("dir"))["dir"]
            return (await asyncio.to_thread(shutil.disk_usage, directory)).free
        except (exceptions.ResponseError, KeyError, OSError):
            return None

    def compact(self, *, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        try:
            # One that is under way began before the last trim.
            self._rewritten(deadline)
            with _translated():
                self._reader.bgrewriteaof()
            return self._rewritten(deadline)
        except exceptions.ResponseError:
            # Managed servers forbid it, and rewrite when they like.
            return False

    def _rewritten(self, deadline: float) -> bool:
        """Wait until no rewriting of the append-only file is under way; tell whether the last one went well."""
        while True:
            with _translated():
                found: Any = self._reader.info("persistence")
            if not (found.get("aof_rewrite_in_progress") or found.get("aof_rewrite_scheduled")):
                return bool(found.get("aof_last_bgrewrite_status") == "ok")
            if time.monotonic() > deadline:
                raise LogUnavailable("The log's server is still writing its file anew. Try again.", retry_after=5)
            time.sleep(0.05)

    def check(self) -> None:
        with _translated():
            try:
                settings: Any = {name: self._reader.config_get(name).get(name) for name in REQUIRED}
            except exceptions.ResponseError:
                # Managed servers forbid CONFIG; INFO tells two of the three.
                info: Any = self._reader.info()
                settings = {
                    "maxmemory-policy": info.get("maxmemory_policy"),
                    "appendonly": "yes" if info.get("aof_enabled") else "no",
                }
        for name, value in settings.items():
            needed, why = REQUIRED[name]
            if value != needed:
                raise ConfigurationError(f"The log's server has {name} {value}: {why}. Set `{name} {needed}`.")

    def close(self) -> None:
        self._reader.close()

    async def aclose(self) -> None:
        if self._async is not None:
            await self._async.aclose()
            self._async = None


class _translated:
    """Turn the driver's errors into the log's."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, exceptions.OutOfMemoryError):
            raise LogFull("The log's server is out of memory. Send again later.", retry_after=5) from error
        if isinstance(error, (*_AWAY, exceptions.ReadOnlyError)) or "MISCONF" in str(error or ""):
            raise LogUnavailable(f"The log does not answer: {error}. Send again later.", retry_after=2) from error


def _is_local(url: str) -> bool:
    """Tell whether the server works on this machine's disk."""
    parts = urlsplit(url)
    if parts.scheme == "unix" or parts.hostname == "localhost":
        return True
    try:
        return ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _is_stale(memory: dict[str, Any], persistence: dict[str, Any], free: int) -> bool:
    """Tell whether most of the file is of entries that were trimmed, a new one has room, and nobody is at it yet."""
    busy = persistence.get("aof_rewrite_in_progress") or persistence.get("aof_rewrite_scheduled")
    used: int = memory["used_memory"]
    # Only the entries are written: what an empty server uses would forbid this on a disk that nothing else empties.
    entries: int = memory.get("used_memory_dataset", used)
    return not busy and free > entries and persistence.get("aof_current_size", 0) > STALE_FILE * used


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
