"""The fast profile read: an API key, the cache, and PostgreSQL behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple, Protocol
from urllib.parse import parse_qs, unquote_to_bytes

import msgspec

from cdp.collector.answers import Answer, Refused, answer
from cdp.collector.keys import ApiKey, KeyTable
from martech.lib import clock
from martech.lib.errors import PermanentError

PREFIX = b"/v1/profiles/"
SCOPE = "profiles:read"
WAIT_SECONDS = 10.0
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Profiles(Protocol):
    """What this needs of `cdp.profiles.ProfileReader`."""

    async def by_identifier(self, namespace: str, value: str) -> bytes | None:
        """Return a profile's document."""

    async def by_id(self, profile_id: str) -> bytes | None:
        """Return a profile's document."""

    async def wait_for(self, token: str, timeout_seconds: float) -> bool:
        """Wait for a position."""

    async def aclose(self) -> None:
        """Let go of the connections."""


class Address(NamedTuple):
    """Which profile is asked for: an identifier, or with an empty namespace a profile's id."""

    namespace: str
    value: str


class _Version(msgspec.Struct):
    version: int = 0


_version = msgspec.json.Decoder(_Version).decode


def address(raw_path: bytes) -> Address | None:
    """Return the profile that a path names, None for every other path.

    The path is the undecoded one: a value may hold `/`, written as %2F.
    """
    rest = raw_path.removeprefix(PREFIX).removesuffix(b"/")
    if not raw_path.startswith(PREFIX) or not rest or b"/" in rest:
        return None
    namespace, colon, value = unquote_to_bytes(rest).decode("utf-8", "replace").partition(":")
    if colon:
        return Address(namespace, value)
    return Address("", namespace.lower()) if _UUID.fullmatch(namespace) else None


async def read_profile(
    profiles: Profiles, keys: KeyTable, wanted: Address, headers: Mapping[bytes, bytes], query: bytes
) -> Answer:
    """Answer a profile's document; Refused (400, 401, 403, 404, 504) where that can't be."""
    await _authorise(keys, headers.get(b"authorization", b""))
    await _wait(profiles, query)
    found = None
    if "\0" not in wanted.namespace + wanted.value:
        by_identifier = profiles.by_identifier(wanted.namespace, wanted.value) if wanted.namespace else None
        found = await (by_identifier or profiles.by_id(wanted.value))
    if found is None:
        raise Refused(404, "not_found", "No profile has this identifier. Check its namespace and spelling.")
    return answer(200, found, headers=[(b"etag", b'"%d"' % _version(found).version)])


async def _authorise(keys: KeyTable, authorization: bytes) -> None:
    scheme, _, secret = authorization.strip().partition(b" ")
    key = await keys.find(secret.strip().decode("utf-8", "replace")) if scheme.lower() == b"bearer" else None
    if not isinstance(key, ApiKey) or key.expired(clock.now_us()):
        raise Refused(
            401, "not_authenticated", "Send a valid API key as `Authorization: Bearer KEY`.",
            headers=[(b"www-authenticate", b"Bearer")],
        )  # fmt: skip
    if not key.allows(SCOPE):
        raise Refused(403, "permission_denied", f"This API key lacks the scope {SCOPE}. Make one that has it.")


async def _wait(profiles: Profiles, query: bytes) -> None:
    token = parse_qs(query.decode("latin-1")).get("min_position", [""])[0]
    if not token:
        return
    try:
        reached = await profiles.wait_for(token, WAIT_SECONDS)
    except PermanentError as error:
        raise Refused(400, error.code, error.message) from error
    if not reached:
        raise Refused(
            504,
            "position_not_reached",
            f"Processing has not reached position {token[:200]} within {WAIT_SECONDS:.0f} s. "
            "Read without min_position for what is known so far, or try again.",
            headers=[(b"retry-after", b"5")],
        )
