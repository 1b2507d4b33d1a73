"""Keyed hashes: what must be recognised again without being kept."""

from __future__ import annotations

import hmac


def derived(secret: str, purpose: str) -> bytes:
    """Return the 32 bytes of a key for one purpose, from a secret that has others; b"" where there is no secret."""
    return hmac.digest(secret.encode(), purpose.encode(), "sha256") if secret else b""


def digest(key: bytes, *parts: str) -> bytes:
    """Return the HMAC-SHA256 (32 bytes) of texts, none of which holds the character U+0000."""
    return hmac.digest(key, "\0".join(parts).encode("utf-8", "surrogatepass"), "sha256")
