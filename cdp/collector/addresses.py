"""Where a request comes from, and under which name we are known there, seen through the proxies we trust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

Headers = Mapping[bytes, bytes]


class Proxies:
    """The addresses and networks whose X-Forwarded-… headers are believed."""

    def __init__(self, trusted: Sequence[str]) -> None:
        self._networks = [ip_network(text, strict=False) for text in trusted]
        self._trusts = lru_cache(maxsize=4096)(self._is_trusted)

    def client(self, scope: Mapping[str, Any]) -> str:
        """Return the address of who sent the request, "" where it is not known."""
        peer: str = scope["client"][0] if scope.get("client") else ""
        if not self._networks or not self._trusts(peer):
            return peer
        # Several headers are one list (RFC 9110), the nearest hop last.
        values = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
        client = peer
        for hop in reversed(values.decode("latin-1").split(",")):
            found = _parse(hop)
            if found is None:
                break
            client = str(found)
            if not self._trusts(client):
                break
        return client

    def origin(self, scope: Mapping[str, Any], headers: Headers) -> tuple[str, str]:
        """Return the scheme and the host (with its port) that the sender used."""
        scheme, host = scope.get("scheme", "http"), headers.get(b"host", b"").decode("latin-1")
        peer = scope["client"][0] if scope.get("client") else ""
        if self._networks and self._trusts(peer):
            forwarded = headers.get(b"x-forwarded-proto", b"").decode("latin-1").strip().lower()
            scheme = forwarded if forwarded in {"http", "https"} else scheme
            host = headers.get(b"x-forwarded-host", b"").decode("latin-1").strip() or host
        return scheme, host

    def _is_trusted(self, text: str) -> bool:
        found = _parse(text)
        return found is not None and any(found in network for network in self._networks)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address with or without a port and brackets; an IPv4 address inside of IPv6 is that address."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
