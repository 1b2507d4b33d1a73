"""Fixtures that several behaviours share."""

import os
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from hypothesis import is_hypothesis_test, settings
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

ROOT = Path(__file__).parent.parent
# Of each property: a few with all other tests; `make test-laws` takes 200, with EXAMPLES=5000 a long look.
settings.register_profile("martech", max_examples=int(os.environ.get("EXAMPLES", "20")), deadline=None)
settings.load_profile("martech")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the properties as laws, before markers choose what runs."""
    for item in items:
        if is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker("laws")


@pytest.fixture(scope="session")
def _migrated():
    """Name a migrated database that nobody is connected to, to copy from."""
    name = "martech_migrated"
    with psycopg.connect(os.environ["DATABASE_URL"], dbname="postgres", autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = make_conninfo(os.environ["DATABASE_URL"], dbname=name)
    command = [sys.executable, str(ROOT / "manage.py"), "migrate", "--verbosity=0"]
    subprocess.run(command, check=True, env=os.environ | {"DATABASE_URL": as_url(url)})
    return name


def as_url(conninfo):
    """Return a connection string as the address our settings take."""
    parts = conninfo_to_dict(conninfo)
    return f"postgresql://{parts['user']}@/{parts['dbname']}?host={parts['host']}"


@contextmanager
def copied(template):
    """Return the address of a copy of a database, for as long as it is needed."""
    name = f"t_{uuid4().hex[:12]}"
    with psycopg.connect(os.environ["DATABASE_URL"], dbname="postgres", autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(*map(sql.Identifier, (name, template)))
        )
        yield as_url(make_conninfo(os.environ["DATABASE_URL"], dbname=name))
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database_url(_migrated):
    """Return the address of a fresh, migrated database of this test's own, which any process may use."""
    with copied(_migrated) as url:
        yield url


@contextmanager
def pointed_at(url, django_db_blocker):
    """Point Django at another database, where commits stay and other processes see them."""
    from django.db import connection

    from cdp import task_locks

    with django_db_blocker.unblock():
        connection.close()
        connection.close_pool()
        before = connection.settings_dict["NAME"]
        connection.settings_dict["NAME"] = conninfo_to_dict(url)["dbname"]
        try:
            yield url
        finally:
            task_locks.close()
            connection.close()
            connection.close_pool()
            connection.settings_dict["NAME"] = before


@pytest.fixture(autouse=True)
def _let_go():
    """Forget connections that a test opened by settings of its own."""
    yield
    from cdp import keys, showing

    keys._store.cache_clear()
    showing._cache.cache_clear()


@pytest.fixture
def own_database(database_url, django_db_blocker):
    """Point Django at a fresh database of this test's own, where commits stay and other processes see them."""
    with pointed_at(database_url, django_db_blocker) as url:
        yield url


@pytest.fixture
def core(database_url):
    """Return the core over a fresh database, with one server source (id 1)."""
    from tests.platform import Core

    with closing(Core(database_url)) as core:
        yield core


@pytest.fixture(scope="module")
def own_core(_migrated):
    """Return the core over a database of this module's own: examples of one test share it."""
    from tests.platform import Core

    with copied(_migrated) as url, closing(Core(url)) as core:
        yield core


@pytest.fixture
def anyio_backend():
    """Run asynchronous tests on asyncio."""
    return "asyncio"


@pytest.fixture
async def collector(anyio_backend):
    """Return a running collector over an empty log."""
    from tests.collecting import collecting

    async with collecting() as running:
        yield running
