"""Sources' write keys and API keys: made and revoked here, published to where the collector reads them."""

from __future__ import annotations

import secrets
import time
import zlib
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
import redis
from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from cdp.collector import keys as published
from cdp.models import ApiKey, Source
from martech.lib import clock
from martech.lib.errors import PermanentError, RetryableError

SCOPES = (
    "profiles:read", "profiles:write", "profiles:export", "profiles:erase", "identity:write", "identity_rules:write",
    "accounts:read", "accounts:write", "definitions:write", "sources:read", "sources:write", "imports:read",
    "imports:write", "keys:write", "dead_letters:read", "dead_letters:write", "audit:read", "all",
)  # fmt: skip
PREFIX_LENGTH = 11


class KeysNotPublished(RetryableError):
    """The key store is away: collectors go on with the table they have."""

    code = "keys_not_published"


def create_source(*, name: str, kind: str = Source.Kind.SERVER) -> Source:
    """Make a source with a fresh write key; PermanentError for a taken name or an unknown kind."""
    if kind not in Source.Kind.values:
        raise PermanentError(f"There is no kind of source '{kind}'. Use one of {', '.join(Source.Kind.values)}.")
    try:
        with transaction.atomic():
            return Source.objects.create(name=name, kind=kind)
    except IntegrityError as error:
        raise PermanentError(f"There is a source named '{name}'. Choose another name.", code="name_taken") from error


def create_api_key(*, name: str, scopes: Iterable[str], expires_at: datetime | None = None) -> tuple[ApiKey, str]:
    """Make an API key; return it and its secret, which is not kept. PermanentError for an unknown scope."""
    granted = list(dict.fromkeys(scopes))
    unknown = [scope for scope in granted if scope not in SCOPES]
    if unknown or not granted:
        asked = ", ".join(unknown) or "none"
        raise PermanentError(f"Unknown scopes: {asked}. Give some of {', '.join(SCOPES)}.", code="unknown_scope")
    secret = new_secret()
    key = ApiKey.objects.create(
        name=name, prefix=secret[:PREFIX_LENGTH], key_hash=published.hash_key(secret), scopes=granted,
        expires_at=expires_at,
    )  # fmt: skip
    return key, secret


def new_secret() -> str:
    """Return a fresh API key: 160 random bits, and a checksum by which scanners know a leaked one."""
    body = f"mk_{secrets.token_hex(20)}"
    return f"{body}_{zlib.crc32(body.encode()):08x}"


def revoke_api_key(key: ApiKey) -> bool:
    """End a key's life, within 5 s everywhere; False where that was done before."""
    revoked_at = clock.now()
    if not ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=revoked_at):
        return False
    key.revoked_at = revoked_at
    _publish_on_commit()
    return True


def publish_keys() -> int:
    """Replace the collectors' key table by what PostgreSQL says; return how many keys it holds.

    Called after each change, and every minute by beat, since the table may be lost at any time.
    KeysNotPublished where the key store is away.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        # One at a time: otherwise an older reading could replace a newer one.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('martech:keys'))")
        table = _table()
        stamp = f"{time.time_ns()}-{secrets.token_hex(4)}"
        try:
            with _store().pipeline(transaction=True) as pipeline:
                pipeline.delete(published.TABLE)
                pipeline.hset(published.TABLE, mapping=table | {published.PUBLISHED: stamp.encode()})
                pipeline.publish(published.CHANNEL, stamp)
                pipeline.execute()
        except (RedisError, OSError) as error:
            raise KeysNotPublished(
                f"The key store cannot be reached ({error}). It is tried again each minute."
            ) from error
    return len(table)


def _table() -> dict[Any, bytes]:
    sources = Source.objects.filter(enabled=True).only("id", "kind", "rules", "quota", "write_key")
    keys = ApiKey.objects.filter(revoked_at=None).only("id", "scopes", "expires_at", "key_hash")
    return {
        **{published.hash_key(source.write_key): _row(_write_key(source)) for source in sources},
        **{key.key_hash: _row(_api_key(key)) for key in keys},
    }


def _write_key(source: Source) -> published.WriteKey:
    return published.WriteKey(source_id=source.pk, source_kind=source.kind, rules=source.rules, quota=source.quota)


def _api_key(key: ApiKey) -> published.ApiKey:
    expires_at = None if key.expires_at is None else clock.to_us(key.expires_at)
    return published.ApiKey(key_id=key.pk, scopes=key.scopes, expires_at=expires_at)


_row = msgspec.json.Encoder().encode


@cache
def _store() -> redis.Redis:
    return redis.Redis.from_url(
        published.keys_url(settings.CONFIG),
        socket_timeout=published.TIMEOUT_SECONDS,
        socket_connect_timeout=published.TIMEOUT_SECONDS,
        # A person waits for the page that saved the change.
        retry=Retry(NoBackoff(), 1),
    )


@receiver([post_save, post_delete], sender=Source, dispatch_uid="publish_sources")
@receiver([post_save, post_delete], sender=ApiKey, dispatch_uid="publish_api_keys")
def _publish_on_commit(sender: object = None, **kwargs: Any) -> None:
    """Publish once the change is committed; Django logs it where the store is away, and beat makes up for it."""
    transaction.on_commit(publish_keys, robust=True)
