"""An export by a real web process, and one of events that only the archive has."""

import json
from datetime import UTC, datetime

from django.db import connection
from django.utils import timezone

from cdp import archive, export, partitions
from tests.factories import make_api_key, make_event, make_profile, make_source
from tests.serving import PLATFORM, serving

EARLIER = datetime(2026, 3, 2, 12, tzinfo=UTC)


def exported(reference):
    return json.loads(b"".join(export.written(reference, actor="command:test")))


def test_what_only_the_archive_has_is_in_it(own_database, settings, tmp_path):
    settings.ARCHIVE_EVENTS, settings.ARCHIVE_BUCKETS = True, 2
    settings.STORAGES = settings.STORAGES | {
        "archive": {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": tmp_path}}
    }
    connection.ensure_connection()
    partitions.ensure(connection.connection, partitions.EVENTS, days=1, today=EARLIER.date(), ahead=0)
    shop, profile, other = make_source(), make_profile(("user_id", "ann-1")), make_profile(("user_id", "bob"))
    make_event(profile, shop, ingested_at=EARLIER, message_id="old", properties={"total": 1})
    make_event(other, shop, ingested_at=EARLIER)
    make_event(profile, shop, message_id="new")
    archive.archive_closed(now=timezone.now())
    assert (len(exported("user_id:ann-1")["events"]), exported("user_id:ann-1")["archived_events"]) == (2, [])
    partitions.drop_before(connection.connection, partitions.EVENTS, timezone.now().date())
    found = exported("user_id:ann-1")
    assert [row["message_id"] for row in found["events"]] == ["new"]
    assert [row["message_id"] for row in found["archived_events"]] == ["old"]


def test_a_web_process_sends_it_piece_by_piece(own_database):
    shop, profile = make_source(), make_profile(("user_id", "ann-1"))
    for minute in range(30):
        make_event(profile, shop, minute=minute, properties={"long": "y" * 10_000})
    headers = make_api_key("profiles:export")
    with serving(PLATFORM, DATABASE_URL=own_database) as server:
        with server.client.stream("GET", "/v1/profiles/user_id:ann-1/export", headers=headers) as answered:
            assert answered.status_code == 200
            assert answered.headers["transfer-encoding"] == "chunked"
            found = json.loads(answered.read())
        assert found["counts"]["events"] == 30
        unknown = server.client.get("/v1/profiles/user_id:/export", headers=headers)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
