"""The settings that @segment/analytics-next loads before it sends, which make it send here."""

import re

import msgspec

from cdp.collector.answers import Answer, answer

PREFIX = "/v1/projects/"
SUFFIX = "/settings"
_HOST = re.compile(r"[A-Za-z0-9.\-_:\[\]]{1,255}")


def write_key_of(path: str) -> str:
    """Return the write key that a settings path names, "" for every other path."""
    middle = path.removeprefix(PREFIX).removesuffix("/").removesuffix(SUFFIX)
    whole = path.rstrip("/") == f"{PREFIX}{middle}{SUFFIX}"
    return middle if whole and "/" not in middle else ""


def settings_answer(write_key: str, *, host: str, scheme: str) -> Answer:
    """Make the document for a write key; `host` and `scheme` are those under which the browser sees us."""
    api_host = f"{host if _HOST.fullmatch(host) else 'localhost'}/v1"
    document = {
        "integrations": {
            "Segment.io": {
                "apiKey": write_key,
                "apiHost": api_host,
                "protocol": scheme,
                "retryQueue": True,
                "addBundledMetadata": False,
                "unbundledIntegrations": [],
            }
        },
        "plan": {"track": {"__default": {"enabled": True, "integrations": {}}}},
        "edgeFunction": {},
        "analyticsNextEnabled": True,
        "middlewareSettings": {},
        "enabledMiddleware": {},
        "legacyVideoPluginsEnabled": False,
        "remotePlugins": [],
        # Left out, the SDK reports on itself to Segment.
        "metrics": {"sampleRate": 0, "host": api_host},
    }
    return answer(200, msgspec.json.encode(document), headers=[(b"cache-control", b"private, max-age=120")])
