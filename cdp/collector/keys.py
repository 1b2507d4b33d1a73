"""Who may write and read: a table in memory, fed from one in Redis.

`cdp.keys` publishes the table into the hash `TABLE`: the SHA-256 of a key (hexadecimal) → what the key is,
and under `PUBLISHED` when that was. It announces a change on `CHANNEL`. Without `PUBLISHED` the store
was never filled, or lost what it held: then a key we don't know may well be good.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import msgspec
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from cdp.config import Config
from martech.lib.errors import RetryableError

TABLE = "martech:keys"
CHANNEL = "martech:keys"
PUBLISHED = "published"

REFRESH_SECONDS = 4.0
TIMEOUT_SECONDS = 2.0
RECONNECT_SECONDS = 0.25
MEMO_SIZE = 10_000
# Keys of browsers and apps are public: a call that rewrites history is not for them.
REFUSED_CALLS = {"browser": ["import"], "mobile": ["import"]}

log = logging.getLogger(__name__)


class KeysUnavailable(RetryableError):
    """The key store cannot be asked, and memory does not know the key."""

    code = "keys_unavailable"


class WriteKey(msgspec.Struct, frozen=True, tag_field="kind", tag="write"):
    """A source's key. `quota` is in events a second, None for that of the settings."""

    source_id: int
    source_kind: str = "server"
    rules: dict[str, Any] = {}
    quota: int | None = None

    @property
    def public(self) -> bool:
        """Whether the key is in the hands of everybody (browsers, apps)."""
        return self.source_kind != "server"

    def refuses(self, call: str) -> bool:
        """Tell whether the source may not make `call`."""
        return call in self.rules.get("refused_calls", REFUSED_CALLS.get(self.source_kind, ()))


class ApiKey(msgspec.Struct, frozen=True, tag_field="kind", tag="api"):
    """A key to the REST API. `expires_at` is in microseconds since 1970."""

    key_id: int
    scopes: list[str]
    expires_at: int | None = None

    def expired(self, now_us: int) -> bool:
        """Tell whether the key's time is over."""
        return self.expires_at is not None and now_us >= self.expires_at

    def allows(self, scope: str) -> bool:
        """Tell whether the key may do what `scope` names."""
        return "all" in self.scopes or scope in self.scopes


Key = WriteKey | ApiKey
_decode = msgspec.json.Decoder(Key).decode


def keys_url(config: Config) -> str:
    """Return the address of the Redis that holds the key table: the log's, else (Kafka, Kinesis) the broker's."""
    scheme = config.log_url.partition(":")[0]
    return config.log_url if scheme in {"redis", "rediss", "unix"} else config.broker_url


def hash_key(key: str) -> str:
    """Return what a key is found by."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def basic_user(authorization: bytes) -> str:
    """Return the user name of a Basic Authorization header, "" where there is none."""
    scheme, _, credentials = authorization.strip().partition(b" ")
    if scheme.lower() != b"basic":
        return ""
    try:
        decoded = base64.b64decode(credentials.strip() + b"==", validate=False)
    except binascii.Error:
        return ""
    return decoded.decode("utf-8", "replace").partition(":")[0]


class KeyTable:
    """The keys in memory. `start` feeds it in the background until `stop`."""

    def __init__(self, url: str) -> None:
        # One retry: the first command after the server restarted finds a dead connection.
        self._redis: Any = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 1),
        )
        self._keys: dict[str, Key] = {}
        self._quotas: dict[int, int | None] = {}
        self._memo: dict[bytes | str, Key] = {}
        self._published: bytes | None = None
        self._away = False
        self._feeder: asyncio.Task[None] | None = None
        self._asked: dict[str, asyncio.Future[Key | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    @property
    def filled(self) -> bool:
        """Whether the table was ever read."""
        return self._published is not None

    async def start(self) -> None:
        """Read the table once if the store answers, then follow its changes."""
        with contextlib.suppress(RedisError, OSError):
            await self._reload()
        self._feeder = asyncio.create_task(self._feed())

    async def stop(self) -> None:
        """End the background work and let go of the connections."""
        for task in (self._feeder, self._asking):
            # Once is not enough: the driver swallows a cancellation that meets a connection being made.
            while task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=0.1)
        await self._redis.aclose()

    def of_header(self, authorization: bytes) -> Key | None:
        """Return the key of a Basic Authorization header where memory knows it."""
        known = self._memo.get(authorization)
        return known if known is not None else self._remember(authorization, basic_user(authorization))

    def known(self, key: str) -> Key | None:
        """Return what `key` is where memory knows it."""
        known = self._memo.get(key)
        return known if known is not None else self._remember(key, key)

    def quota(self, source_id: int) -> int | None:
        """Return a source's quota where it has one of its own."""
        return self._quotas.get(source_id)

    def _remember(self, spelling: bytes | str, key: str) -> Key | None:
        found = self._keys.get(hash_key(key))
        if found is not None:
            if len(self._memo) >= MEMO_SIZE:
                self._memo.clear()
            self._memo[spelling] = found
        return found

    async def find(self, key: str) -> Key | None:
        """Return what `key` is, None where it is no key; asks the store once about what memory does not know.

        KeysUnavailable where the store is away or was never filled.
        """
        known = self.known(key)
        if known is not None:
            return known
        digest = hash_key(key)
        if digest not in self._asked:
            self._asked[digest] = asyncio.get_running_loop().create_future()
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask())
        # Shielded: several requests wait for one answer, and one of them may be cancelled.
        return await asyncio.shield(self._asked[digest])

    async def _ask(self) -> None:
        """Ask the store about all that is being waited for, in one command each round."""
        while self._asked:
            asked, self._asked = self._asked, {}
            try:
                published, *values = await self._redis.hmget(TABLE, [PUBLISHED, *asked])
            except (RedisError, OSError) as error:
                self._fail(asked, f"The key store cannot be reached ({error}).")
                continue
            await self._answer(asked, published, values)

    async def _answer(
        self, asked: dict[str, asyncio.Future[Key | None]], published: bytes | None, values: list[bytes | None]
    ) -> None:
        for (digest, waiting), value in zip(asked.items(), values, strict=True):
            if value is not None:
                waiting.set_result(_decode(value))
            elif published is None:
                self._fail({digest: waiting}, "The key store is empty; it is filled within a minute.")
            else:
                waiting.set_result(None)
        if any(values):
            # Not put into memory from here: it could be older than what a reload just took over.
            with contextlib.suppress(RedisError, OSError):
                await self._reload()

    @staticmethod
    def _fail(asked: Mapping[str, asyncio.Future[Key | None]], cause: str) -> None:
        for waiting in asked.values():
            waiting.set_exception(KeysUnavailable(f"{cause} Send again later.", retry_after=5))
            waiting.exception()  # Whoever asked may be gone: then nobody else looks at it.

    async def _feed(self) -> None:
        """Reload when a change is announced, and every few seconds, for ever."""
        while True:
            try:
                await self._follow()
            except (RedisError, OSError) as error:
                self._lost(f"The key store cannot be reached ({error}); known keys stay good.")
            except msgspec.DecodeError as error:
                self._lost(f"The key table cannot be read ({error}); known keys stay good. Upgrade the collector.")
            await asyncio.sleep(RECONNECT_SECONDS)

    def _lost(self, cause: str) -> None:
        """Say once what is wrong, until the table is read again."""
        if not self._away:
            log.warning(cause)
        self._away = True

    async def _follow(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
            await subscription.subscribe(CHANNEL)
            while True:
                await self._reload()
                self._away = False
                await subscription.get_message(timeout=REFRESH_SECONDS)

    async def _reload(self) -> None:
        """Take over the store's table, unless it is the one we have."""
        published = await self._redis.hget(TABLE, PUBLISHED)
        if published is not None and published == self._published:
            return
        rows: dict[bytes, bytes] = await self._redis.hgetall(TABLE)
        published = rows.pop(PUBLISHED.encode(), None)
        if published is None:
            return
        self._keys = {digest.decode(): _decode(row) for digest, row in rows.items()}
        self._quotas = {key.source_id: key.quota for key in self._keys.values() if isinstance(key, WriteKey)}
        self._memo = {}
        self._published = published
