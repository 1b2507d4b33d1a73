"""Imports by REST."""

import json

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from cdp import tasks
from cdp.models import AuditEntry, EventImport
from tests.factories import make_api_key, make_source

CSV = b"who,what\nu1,Bought\n,Lost\n"
MAPPING = {"columns": {"who": "userId", "what": "event"}, "constants": {"type": "track"}}


@pytest.fixture(autouse=True)
def _own(own_database, tmp_path, settings):
    settings.MEDIA_ROOT = tmp_path


def post(client, shop, *scopes, mapping=MAPPING, **more):
    fields = {"source": shop.pk, "file": SimpleUploadedFile("a.csv", CSV), "mapping": json.dumps(mapping), **more}
    return client.post("/v1/imports", fields, headers=make_api_key(*scopes))


def test_a_file_is_imported_once(client):
    shop = make_source()
    answer = post(client, shop)
    found = EventImport.objects.get()
    assert (answer.status_code, answer.json()["id"], answer.json()["status"]) == (202, found.pk, "running")
    tasks.run_import.apply(args=[found.pk], throw=True)
    again = post(client, shop)
    assert (again.status_code, again.json()["status"], again.json()["events"], again.json()["errors"]) == (
        200, "done", 1, 1,
    )  # fmt: skip
    assert AuditEntry.objects.get(action="import.start").actor[:4] == "key:"
    header = make_api_key("imports:read")
    assert client.get(f"/v1/imports/{found.pk}", headers=header).json() == again.json()
    assert client.get("/v1/imports", headers=header).json() == {"results": [again.json()], "next": None}


def test_what_cannot_be_imported_is_said(client, settings):
    shop = make_source()
    for more, complaint in (
        ({"mapping": {"columns": {"who": "user"}}}, "There is no field user"),
        ({"mapping": {"column": {}}}, "This is no mapping"),
        ({"file": SimpleUploadedFile("a.xls", CSV)}, "cannot be told from its name"),
        ({"source": make_source(kind="mobile").pk}, "may not import"),
        ({"source": 999}, "999"),
    ):
        answer = post(client, shop, **more)
        assert (answer.status_code, complaint in answer.text) == (400, True), answer.text
    settings.IMPORT_UPLOAD_BYTES = 10
    assert "IMPORT_UPLOAD_MB" in post(client, shop).text
    assert EventImport.objects.exclude(status="ready").count() == 0


def test_scopes_are_asked_for(client):
    shop = make_source()
    assert post(client, shop, "imports:read").status_code == 403
    assert client.get("/v1/imports", headers=make_api_key("sources:read")).status_code == 403
    assert client.get("/v1/imports/1").status_code == 401
