"""What the load consists of: requests with events of people who are not equally busy.

Two kinds: `server` events of about 500 bytes as a shop's server sends them, `browser` events of about 1 KB with
the context a browser adds. Each event names its person twice (user id and anonymous id), so there are two
identifiers a person.
"""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import accumulate, count, cycle
from typing import Any

# How many draws are made ahead; then they come again from the start.
DRAWS = 2**17

_PERSON = {"userId": "user-%07d", "anonymousId": "visitor-%07d"}
_SERVER = {
    "library": {"name": "analytics-python", "version": "2.4.0"},
    "app": {"name": "shop", "version": "2026.11.2", "build": "4711"},
    "device": {"type": "phone", "manufacturer": "Acme"},
    "locale": "en-GB",
    "timezone": "Europe/Berlin",
}
_BROWSER = {
    "userAgent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0",
    "locale": "en-GB",
    "timezone": "Europe/Berlin",
    "page": {
        "path": "/music/rock/albums",
        "referrer": "https://shop.example/music",
        "search": "?sort=newest&page=3",
        "title": "Rock albums, newest first",
        "url": "https://shop.example/music/rock/albums?sort=newest&page=3",
    },
    "library": {"name": "analytics.js", "version": "npm:next-1.84.3"},
    "screen": {"width": 1920, "height": 1080, "density": 1.5},
    "userAgentData": {"brands": [{"brand": "Chromium", "version": "142"}], "mobile": False, "platform": "Linux"},
    "campaign": {"name": "autumn-sale", "source": "newsletter", "medium": "email"},
}
_ALBUM = {"sku": "CD-20117", "title": "Blue Train", "category": "Jazz", "brand": "Blue Note", "price": 11.77}
_CALLS: list[dict[str, Any]] = [
    {"type": "track", "event": "Product Viewed", "properties": _ALBUM | {"position": 3}},
    {"type": "page", "name": "Album", "properties": _ALBUM | {"path": "/music/jazz/20117"}},
    {"type": "track", "event": "Product Added", "properties": _ALBUM | {"quantity": 1, "cart_id": "c-881"}},
    {
        "type": "track",
        "event": "Order Completed",
        "properties": _ALBUM | {"order_id": "2026-11-40081", "total": 38.29, "currency": "EUR", "quantity": 3},
    },
]
CONTEXTS = {"server": _SERVER, "browser": _BROWSER}


def templates(kind: str) -> list[str]:
    """Return an event a call, to be filled with (person, person, message number) by `%`."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    made = []
    for call in _CALLS:
        event = {**_PERSON, **call, "context": CONTEXTS[kind], "integrations": {}, "timestamp": now, "messageId": "@"}
        text = json.dumps(event, separators=(",", ":")).replace("%", "%%").replace("%%07d", "%07d")
        made.append(text.replace('"@"', '"TAG-%010d"'))
    return made


def people(number: int, seed: int) -> list[int]:
    """Draw people, the r-th busiest with a weight of 1/r (Zipf 1.0)."""
    weights = list(accumulate(1 / rank for rank in range(1, number + 1)))
    return random.Random(seed).choices(range(number), cum_weights=weights, k=DRAWS)


def requests(kind: str, batch: int, number: int, *, tag: str, seed: int) -> Iterator[tuple[str, bytes]]:
    """Give paths and bodies without end, each event with a message id of its own.

    Single events (`batch` 1) go to the endpoint of their call, others to `/v1/batch`.
    """
    drawn, numbers = cycle(people(number, seed)), count()
    events = [template.replace("TAG", tag) for template in templates(kind)]
    if batch == 1:
        shapes = [(f"/v1/{call['type']}", event.encode()) for call, event in zip(_CALLS, events, strict=True)]
    else:
        shapes = [("/v1/batch", _batch(events, batch).encode())]
    for path, shape in cycle(shapes):
        values: list[int] = []
        for _ in range(batch):
            person = next(drawn)
            values += (person, person, next(numbers))
        yield path, shape % tuple(values)


def _batch(events: list[str], size: int) -> str:
    chosen = cycle(events)
    return '{"batch":[' + ",".join(next(chosen) for _ in range(size)) + "]}"


def paths(path: str, number: int, seed: int) -> Iterator[bytes]:
    """Give addresses without end, `%d` in `path` standing for a person."""
    return cycle([(path % person).encode() for person in people(number, seed)])
