"""The reference of profile reads: an ASGI application that gives what one Redis GET gives, and nothing else."""

import os
from typing import Any

import redis.asyncio

PREFIX = "/raw/"
_redis: Any = redis.asyncio.Redis.from_url(os.environ["CACHE_URL"])


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer `GET /raw/KEY` with the value of the key."""
    if scope["type"] != "http":
        return
    body = await _redis.get("raw:" + scope["path"][len(PREFIX) :])
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body or b""))]
    await send({"type": "http.response.start", "status": 200 if body else 404, "headers": headers})
    await send({"type": "http.response.body", "body": body or b""})
