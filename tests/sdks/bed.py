"""The whole platform for a stock SDK: web process, processor and a database of its own."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.rows import dict_row

from tests.collecting import CACHE_URL
from tests.serving import PLATFORM, serving
from tests.valkey import own_valkey

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# What every SDK is told to say; each has its own way to say it.
VIEWS = 250


class Bed:
    """A running platform with one source; `url` and `key` are all that an SDK is given."""

    def __init__(self, url, environment):
        self.url, self._environment = url, environment
        self.key = ""

    def manage(self, *arguments):
        """Run a management command and return what it prints."""
        command = [sys.executable, str(ROOT / "manage.py"), *arguments]
        done = subprocess.run(command, env=self._environment, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def process(self):
        """Let a processor take all that is in the log."""
        self.manage("process_events", "--drain")

    def rows(self, query):
        """Return the rows of a query as dicts."""
        with psycopg.connect(self._environment["DATABASE_URL"], row_factory=dict_row) as connection:
            return connection.execute(query).fetchall()

    def events(self):
        """Return the stored events in the order they happened, those of one instant as they arrived."""
        return self.rows("SELECT * FROM event_stream ORDER BY occurred_at, event_id")


@contextmanager
def platform(database_url, *, kind="server"):
    """Run a platform with a source of a kind until the end of the block."""
    with own_valkey() as log:
        environment = os.environ | {"DATABASE_URL": database_url, "LOG_URL": log.url, "CACHE_URL": CACHE_URL}
        with serving(PLATFORM, **environment) as server:
            bed = Bed(server.url, environment)
            bed.key = bed.manage("create_source", "shop", "--kind", kind)
            yield bed


def heard(bed):
    """Process what an SDK has sent; return what is stored, by type, without what differs from SDK to SDK."""
    bed.process()
    assert bed.rows("SELECT reason, detail FROM cdp_deadletter") == []
    events = bed.events()
    assert len({event["message_id"] for event in events}) == len(events)
    found = {}
    for event in events:
        found.setdefault(event["event_type"], []).append((event["name"], event["properties"]))
    # Those of one millisecond may have come by several requests at once.
    found["track"].sort(key=lambda view: view[1].get("number", -1))
    return found


# What there is to hear once an SDK has told its story to a server's source.
STORY = {
    "page": [("Home", {"path": "/"})],
    "identify": [("", {"email": "ann@example.com", "plan": "pro", "age": 37})],
    "track": [
        ("Order Completed", {"total": 12.5, "currency": "EUR"}),
        *(("Item Viewed", {"number": number}) for number in range(VIEWS)),
    ],
    "screen": [("Start", {"dark": True})],
    "group": [("", {"name": "Acme"})],
    "alias": [("", {})],
}


def person(bed):
    """Return the one profile: its identifiers, traits, and how many events it counts."""
    [row] = bed.rows("SELECT identity_graph, traits, computed_traits FROM customer_profiles")
    graph = {namespace: sorted(values) for namespace, values in row["identity_graph"].items()}
    return graph, row["traits"], row["computed_traits"]["event_count"]


def libraries(bed):
    """Return which SDKs the stored events come from."""
    return {(found["name"], found["version"]) for found in (event["context"]["library"] for event in bed.events())}
