"""What a platform needs before anybody can use it: tables, an admin, a source, a key to read with.

Django is imported inside the functions: this package is read before there are settings.
"""

import secrets
from dataclasses import dataclass

from martech.embedded.home import Home

ADMIN = "admin"
SOURCE = "First source"
API_KEY = "First key"
API_KEY_SCOPES = ["profiles:read"]


@dataclass(frozen=True, slots=True)
class Access:
    """How to get in. Empty where somebody changed it, so that we no longer know."""

    admin_password: str
    write_key: str
    api_key: str


def migrate() -> int:
    """Apply the missing migrations and return how many there were."""
    from django.core.management import call_command
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    missing = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    if missing:
        call_command("migrate", verbosity=0, interactive=False)
    return missing


def ensure_access(home: Home) -> Access:
    """Make what is missing, publish the keys, and return how to get in."""
    from cdp import keys

    access = Access(_admin_password(home), _write_key(), _api_key(home))
    keys.publish_keys()
    return access


def _admin_password(home: Home) -> str:
    from django.contrib.auth import get_user_model

    users = get_user_model().objects
    if not users.filter(is_superuser=True).exists():
        users.create_superuser(ADMIN, password=home.secret("admin-password", _new_password))
    kept = home.kept_secret("admin-password")
    admin = users.filter(username=ADMIN, is_active=True).first()
    return kept if kept and admin is not None and admin.check_password(kept) else ""


def _new_password() -> str:
    return secrets.token_urlsafe(15)


def _write_key() -> str:
    from cdp.keys import create_source
    from cdp.models import Source

    if not Source.objects.exists():
        create_source(name=SOURCE)
    source = Source.objects.filter(enabled=True, kind=Source.Kind.SERVER).order_by("id").first()
    return source.write_key if source else ""


def _api_key(home: Home) -> str:
    """Return a key that reads profiles; a database that never had keys gets one."""
    from cdp.collector.keys import hash_key
    from cdp.keys import create_api_key
    from cdp.models import ApiKey

    if not ApiKey.objects.exists():
        _, secret = create_api_key(name=API_KEY, scopes=API_KEY_SCOPES)
        home.keep_secret("api-key", secret)
    kept = home.kept_secret("api-key")
    return kept if ApiKey.objects.filter(key_hash=hash_key(kept), revoked_at=None).exists() else ""
