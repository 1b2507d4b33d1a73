"""The collector as an ASGI application: plain, since every microsecond here is paid by each event."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import msgspec

from cdp import config as configuration
from cdp.collector import metrics, reads, sdksettings
from cdp.collector.addresses import Proxies
from cdp.collector.answers import OPTIONS, SUCCESS, Answer, Refused, Send, answer, later, other_method, problem
from cdp.collector.bodies import Body, Disconnected, Receive, Room
from cdp.collector.flusher import Flusher
from cdp.collector.keys import KeysUnavailable, KeyTable, WriteKey, keys_url
from cdp.collector.pressure import Pressure, explain
from cdp.collector.tracking import CALLS, Tracking
from cdp.config import Config
from cdp.log import open_log
from cdp.log.base import Log, LogFull
from cdp.profiles import ProfileReader
from martech.lib.errors import ConfigurationError, MartechError, RetryableError

Scope = dict[str, Any]
ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]

SDK_METRICS = "/v1/m"

log = logging.getLogger(__name__)


class Collector:
    """Takes tracking calls into the log and reads profiles; hands everything else on.

    `then` is the application behind it; without one the collector answers by itself, its health included.
    """

    def __init__(
        self, config: Config, log: Log, *, keys: KeyTable, profiles: reads.Profiles, then: ASGIApplication | None
    ) -> None:
        self._log, self._keys, self._profiles, self._then = log, keys, profiles, then
        self._request_bytes = config.collector_request_bytes
        self._room = Room(config.collector_queue_bytes)
        self._proxies = Proxies(config.collector_trusted_proxies)
        self._flusher = Flusher(log, seconds=config.collector_flush_seconds)
        self._pressure = Pressure(config, log)
        self._tracking = Tracking(
            config,
            partitions=log.partitions,
            keys=keys,
            flusher=self._flusher,
            pressure=self._pressure,
            room=self._room,
            proxies=self._proxies,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or live through the process's lifespan."""
        if scope["type"] == "http":
            call = CALLS.get(scope["path"])
            if call is not None:
                await self._answer(call.name, self._tracking.take(call, scope, receive), send)
            else:
                await self._other(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif self._then is not None:
            await self._then(scope, receive, send)

    async def _answer(self, endpoint: str, making: Awaitable[Answer], send: Send) -> None:
        """Send what `making` comes to, whatever goes wrong in it."""
        started = time.perf_counter()
        try:
            made = await making
        except Disconnected:
            return
        except Exception as error:
            made = _failed(endpoint, error)
        await send(made.start)
        await send(made.body)
        metrics.requests(endpoint, made.status).inc()
        metrics.duration(endpoint).observe(time.perf_counter() - started)
        # Set, not given as a function: that would stay in this process, unseen by the one that shows all metrics.
        metrics.QUEUE_BYTES.set(self._room.held)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        # People of the admin show a cookie and no key: Django knows what their role lets them see.
        by_key = self._then is None or any(name == b"authorization" for name, _ in scope["headers"])
        fast = by_key and scope["method"] == "GET"
        wanted = reads.address(scope.get("raw_path") or path.encode()) if fast else None
        if wanted is not None:
            reading = reads.read_profile(
                self._profiles, self._keys, wanted, dict(scope["headers"]), scope["query_string"]
            )
            await self._answer("profile", reading, send)
        elif sdksettings.write_key_of(path):
            await self._answer("settings", self._settings(scope), send)
        elif path.rstrip("/") == SDK_METRICS:
            await self._answer("sdk_metrics", self._sdk_metrics(scope, receive), send)
        elif self._then is not None:
            await self._then(scope, receive, send)
        else:
            await self._answer("other", self._alone(scope), send)

    async def _settings(self, scope: Scope) -> Answer:
        """Answer the settings of the browser SDK; without them it would send nothing, so doubt counts for the key."""
        if scope["method"] != "GET":
            return other_method(scope["method"], b"GET, OPTIONS")
        write_key = sdksettings.write_key_of(scope["path"])
        try:
            known = isinstance(await self._keys.find(write_key), WriteKey)
        except KeysUnavailable:
            known = True
        if not known:
            raise Refused(404, "unknown_write_key", "No source has this write key. Check it.")
        scheme, host = self._proxies.origin(scope, dict(scope["headers"]))
        return sdksettings.settings_answer(write_key, host=host, scheme=scheme)

    async def _sdk_metrics(self, scope: Scope, receive: Receive) -> Answer:
        if scope["method"] != "POST":
            return other_method(scope["method"], b"POST, OPTIONS")
        body = Body(self._room, self._request_bytes)
        try:
            await body.read(receive, dict(scope["headers"]))
        finally:
            body.release()
        metrics.SDK_METRICS.inc()
        return SUCCESS

    async def _alone(self, scope: Scope) -> Answer:
        """Answer what would be another application's, where there is none behind."""
        path, method = scope["path"], scope["method"]
        if method == "OPTIONS":
            return OPTIONS
        if path == "/healthz":
            return answer(200, b'{"status": "alive"}')
        if path == "/readyz":
            return await self._readiness()
        if reads.address(scope.get("raw_path") or path.encode()) is not None:
            return other_method(method, b"GET, OPTIONS")
        raise Refused(404, "not_found", f"There is nothing at {path[:200]}. See the tracking API's documentation.")

    async def _readiness(self) -> Answer:
        try:
            await asyncio.to_thread(self._log.check)
        except MartechError as error:
            raise Refused(503, error.code, error.message) from error
        if not self._keys.filled:
            raise Refused(503, KeysUnavailable.code, "The key store was never filled: is the web process or beat up?")
        why = explain(self._pressure.found)
        told = {"status": "degraded", "detail": why} if why else {"status": "ready"}
        return answer(200, msgspec.json.encode(told))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self.running():
                _spare_collections()
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except ConfigurationError as error:
            await send({"type": "lifespan.startup.failed", "message": error.message})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work in the background until the end of the block, which waits for what was accepted.

        ConfigurationError where the log is set up so that it may lose events.
        """
        try:
            await asyncio.to_thread(self._log.check)
        except RetryableError as error:
            log.warning("%s Until then tracking calls are answered 503.", error.message)
        await self._keys.start()
        self._flusher.start()
        self._pressure.start()
        try:
            yield
        finally:
            await self._flusher.stop()
            await self._pressure.stop()
            await self._keys.stop()
            await self._profiles.aclose()
            await self._log.aclose()
            self._log.close()


def _spare_collections() -> None:
    """Keep the garbage collector off what lives as long as the process: looking at it took a tenth of all time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _failed(endpoint: str, error: Exception) -> Answer:
    if isinstance(error, Refused):
        return problem(error)
    if isinstance(error, LogFull):
        return problem(later(429, error))
    if isinstance(error, RetryableError):
        return problem(later(503, error))
    log.error("A request to %s failed in an unforeseen way.", endpoint, exc_info=error)
    return problem(Refused(500, "internal_error", "Something went wrong on our side. It has been logged."))


def create_application(config: Config, log: Log, *, then: ASGIApplication | None = None) -> Collector:
    """Make the collector; `then` is the application that gets what is not the collector's."""
    return Collector(
        config,
        log,
        keys=KeyTable(keys_url(config)),
        profiles=ProfileReader(config.cache_url, config.database_url),
        then=then,
    )


@cache
def _served() -> Collector:
    config = configuration.load()
    return create_application(config, open_log(config.log_url, partitions=config.log_partitions))


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve the collector alone, as the environment configures it."""
    await _served()(scope, receive, send)
