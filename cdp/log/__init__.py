"""The event log: a buffer of what is not yet true, behind one port (`base.Log`)."""

from urllib.parse import urlsplit

from cdp.log.base import Log
from martech.lib.registry import Registry

LOGS = Registry(
    "logs",
    {
        "memory": "cdp.log.memory:MemoryLog",
        "redis": "cdp.log.redis:RedisLog",
        "rediss": "cdp.log.redis:RedisLog",
        "unix": "cdp.log.redis:RedisLog",
    },
)


def open_log(url: str, *, partitions: int) -> Log:
    """Open the log at `url`; its scheme names the adapter."""
    log: Log = LOGS.load(urlsplit(url).scheme)(url, partitions=partitions)
    return log
