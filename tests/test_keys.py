"""Write keys and API keys: made, published and revoked from PostgreSQL."""

import asyncio
import zlib
from datetime import timedelta

import msgspec
import pytest
import redis
from django.conf import settings
from django.db import connection, transaction

from cdp import keys
from cdp.collector.keys import PUBLISHED, TABLE, ApiKey, KeyTable, WriteKey, hash_key, keys_url
from cdp.models import ApiKey as StoredKey
from cdp.models import Source
from martech.lib import clock
from martech.lib.errors import PermanentError

pytestmark = pytest.mark.usefixtures("own_database")


def table():
    """Return the published table: what each hash is."""
    with redis.Redis.from_url(keys_url(settings.CONFIG)) as store:
        rows = store.hgetall(TABLE)
    assert rows.pop(PUBLISHED.encode())
    return {digest.decode(): msgspec.json.decode(row, type=WriteKey | ApiKey) for digest, row in rows.items()}


def test_a_source_can_send_as_soon_as_it_is_made():
    source = keys.create_source(name="shop", kind="browser")
    assert source.write_key.startswith("wk_")
    assert table() == {hash_key(source.write_key): WriteKey(source_id=source.pk, source_kind="browser")}


def test_sources_follow_every_change_of_their_row():
    source = keys.create_source(name="shop")
    old = source.write_key
    source.write_key, source.rules, source.quota = "wk_rotated", {"refused_calls": ["alias"]}, 250
    source.save()
    row = WriteKey(source_id=source.pk, rules={"refused_calls": ["alias"]}, quota=250)
    assert table() == {hash_key("wk_rotated"): row}
    assert hash_key(old) not in table()
    source.enabled = False
    source.save()
    assert table() == {}
    source.enabled = True
    source.save()
    source.delete()
    assert table() == {}


def test_an_api_key_is_shown_once_and_kept_as_a_hash():
    expires_at = clock.now() + timedelta(days=1)
    key, secret = keys.create_api_key(name="reports", scopes=["profiles:read", "profiles:read"], expires_at=expires_at)
    start, random, checksum = secret.split("_")
    assert (start, len(random)) == ("mk", 40)
    assert int(checksum, 16) == zlib.crc32(f"mk_{random}".encode())
    stored = StoredKey.objects.get()
    assert stored.key_hash == hash_key(secret)
    assert secret.startswith(stored.prefix)
    assert secret not in str(list(StoredKey.objects.values()))
    row = ApiKey(key_id=key.pk, scopes=["profiles:read"], expires_at=clock.to_us(expires_at))
    assert table() == {hash_key(secret): row}


def test_a_revoked_key_is_out_of_the_table_and_stays_a_row():
    key, secret = keys.create_api_key(name="reports", scopes=["all"])
    assert keys.revoke_api_key(key) is True
    assert table() == {}
    assert StoredKey.objects.get().revoked_at == key.revoked_at
    assert keys.revoke_api_key(key) is False
    assert hash_key(secret) == StoredKey.objects.get().key_hash


def test_nothing_is_published_before_the_commit():
    keys.publish_keys()
    with transaction.atomic():
        keys.create_source(name="shop")
        assert table() == {}
    assert len(table()) == 1


def test_a_lost_table_is_made_again():
    source = keys.create_source(name="shop")
    with redis.Redis.from_url(keys_url(settings.CONFIG)) as store:
        store.delete(TABLE)
    assert keys.publish_keys() == 1
    assert list(table()) == [hash_key(source.write_key)]


@pytest.mark.parametrize("scopes", [[], ["everything"], ["all", "profiles:write!"]])
def test_unknown_scopes_are_refused(scopes):
    with pytest.raises(PermanentError, match="profiles:read"):
        keys.create_api_key(name="reports", scopes=scopes)
    assert StoredKey.objects.count() == 0


def test_names_of_sources_are_taken_once():
    keys.create_source(name="shop")
    with pytest.raises(PermanentError, match="'shop'"):
        keys.create_source(name="shop")
    with pytest.raises(PermanentError, match="server, browser, mobile"):
        keys.create_source(name="other", kind="fridge")
    assert Source.objects.count() == 1


def test_a_change_stands_though_the_key_store_is_away(monkeypatch, caplog):
    monkeypatch.setattr("cdp.collector.keys.keys_url", lambda config: "unix:///nowhere")
    keys._store.cache_clear()
    keys.create_source(name="shop")
    keys._store.cache_clear()
    assert Source.objects.count() == 1
    assert "The key store cannot be reached" in caplog.text


def test_the_collector_learns_of_a_key_and_of_its_end_within_5_seconds():
    async def follow(secret, known):
        following = KeyTable(keys_url(settings.CONFIG))
        await following.start()
        found = await following.find(secret)
        async with asyncio.timeout(5):
            await asyncio.to_thread(revoke, known)
            while following.known(secret) is not None:  # noqa: ASYNC110 - nothing tells when memory has changed
                await asyncio.sleep(0.01)
        gone = await following.find(secret)
        await following.stop()
        return found, gone

    def revoke(known):
        keys.revoke_api_key(known)
        connection.close()

    key, secret = keys.create_api_key(name="reports", scopes=["all"])
    assert asyncio.run(follow(secret, key)) == (ApiKey(key_id=key.pk, scopes=["all"]), None)
