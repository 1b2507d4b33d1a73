"""Imports in the admin: upload, mapping with a preview, the task, its errors, and who may."""

import gzip
import re
from contextlib import closing

import pytest
from django.conf import settings
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse

from cdp import tasks
from cdp.imports import ledger, uploads
from cdp.imports.holding import ImportHolder
from cdp.log import open_log
from cdp.log.base import decode_entry
from cdp.models import AuditEntry, EventImport
from cdp.processing.identity import Identifier
from martech.lib import clock
from tests.factories import NOON, make_source, make_user

ADD = "/admin/cdp/eventimport/add/"
CSV = b"customer,what,day,total\nu1,Bought,2015-03-04,12.50\n,Bought,2015-03-04,1\nu2,Bought,2015-03-05,2\n"


@pytest.fixture(autouse=True)
def _own(own_database, tmp_path, settings):
    settings.MEDIA_ROOT = tmp_path


@pytest.fixture
def shop():
    return make_source("shop")


@pytest.fixture
def operator(client):
    client.force_login(make_user("operator"))
    return client


@pytest.fixture
def logged():
    """Return what reads the messages that came into the log since the test began."""
    with closing(open_log(settings.CONFIG.log_url, partitions=settings.CONFIG.log_partitions)) as log:
        start = {partition: log.newest(partition) for partition in range(log.partitions)}

        def read():
            found = log.read(start, limit=100, wait=0.01)
            entries = [decode_entry(stored.payload) for stored_ones in found.values() for stored in stored_ones]
            return sorted(event.message_id for entry in entries for one in entry.deliveries for event in one.events)

        yield read


def upload(client, source, data=CSV, name="orders.csv", **more):
    return client.post(ADD, {"source": source.pk, "file": SimpleUploadedFile(name, data), "file_format": "", **more})


def address(found, view="change"):
    return reverse(f"admin:cdp_eventimport_{view}", args=[found.pk])


def fields_of(page):
    """Return what a browser would send of the mapping form."""
    form = page.context["form"]
    return {name: value for name in form.fields if (value := form[name].value()) not in (None, False)}


def mapped(client, found, **changes):
    fields = fields_of(client.get(address(found, "mapping")))
    return fields | {"field_0": "userId", "field_1": "event", "field_2": "timestamp", "type_3": "number"} | changes


def started(client, found, **changes):
    return client.post(address(found, "mapping"), mapped(client, found, **changes) | {"start": ""})


def test_a_file_is_uploaded_mapped_looked_at_and_imported(operator, shop, logged):
    answer = upload(operator, shop)
    found = EventImport.objects.get()
    assert (answer.status_code, answer.headers["Location"]) == (302, address(found, "mapping"))
    assert (found.status, found.name, found.size, found.author[:6]) == ("ready", "orders.csv", len(CSV), "admin:")
    page = operator.get(address(found, "mapping"))
    assert "3 rows checked: 0 would go in" in re.sub(r"\s+", " ", page.text)
    page = operator.post(address(found, "mapping"), mapped(operator, found) | {"preview": ""})
    assert "3 rows checked: 2 would go in" in re.sub(r"\s+", " ", page.text)
    assert "missing_id" in page.text
    assert "&quot;total&quot;: 12.5" in page.text
    assert (EventImport.objects.get().status, logged()) == ("ready", [])
    assert started(operator, found).headers["Location"] == address(found)
    found.refresh_from_db()
    assert (found.status, found.mapping["columns"]) == (
        "running", {"customer": "userId", "what": "event", "day": "timestamp"},
    )  # fmt: skip
    assert AuditEntry.objects.get(action="import.start").object_id == str(found.pk)
    tasks.run_import.apply(args=[found.pk], throw=True)
    found.refresh_from_db()
    assert (found.status, found.events, found.errors, found.stored_path) == ("done", 2, 1, "")
    assert logged() == [f"imp-{found.sha256[:16]}-{line}" for line in (2, 4)]
    page = operator.get(address(found)).text
    assert "100% read" in page
    errors = operator.get(address(found, "errors"))
    assert b"".join(errors.streaming_content).startswith(b'{"line":3,"reason":"missing_id"')
    assert "orders.csv.errors.ndjson" in errors.headers["Content-Disposition"]
    assert "orders.csv" in operator.get(reverse("admin:cdp_eventimport_changelist")).text


def test_the_same_file_again_leads_to_its_import(operator, shop):
    upload(operator, shop)
    found = EventImport.objects.get()
    assert upload(operator, shop, name="again.csv").headers["Location"] == address(found, "mapping")
    started(operator, found)
    tasks.run_import.apply(args=[found.pk], throw=True)
    answer = operator.post(ADD, {"source": shop.pk, "file": SimpleUploadedFile("b.csv", CSV)}, follow=True)
    assert "Already imported on" in answer.text
    assert EventImport.objects.count() == 1
    assert default_storage.listdir("imports")[1] == []


def test_messages_need_no_mapping_and_may_be_compressed(operator, shop, logged):
    line = b'{"type":"track","event":"X","userId":"u","messageId":"m1","timestamp":"2015-01-01T00:00:00Z"}\n'
    upload(operator, shop, gzip.compress(line), "export.ndjson.gz")
    found = EventImport.objects.get()
    page = operator.get(address(found, "mapping"))
    assert page.context["form"]["whole"].value() is True
    assert page.context["seen"].good == 1
    operator.post(address(found, "mapping"), fields_of(page) | {"start": ""})
    tasks.run_import.apply(args=[found.pk], throw=True)
    found.refresh_from_db()
    assert (found.status, found.events, len(logged())) == ("done", 1, 1)


def test_what_is_wrong_with_a_mapping_stands_on_the_form(operator, shop):
    upload(operator, shop)
    found = EventImport.objects.get()
    for changes, complaint in (
        ({"field_0": "user"}, "There is no field user"),
        ({"time_zone": "Mars"}, "There is no time zone Mars"),
        ({"encoding": "utf-16"}, "Convert the file to UTF-8"),
        ({"encoding": "klingon"}, "There is no encoding klingon"),
    ):
        page = operator.post(address(found, "mapping"), mapped(operator, found, **changes) | {"start": ""})
        assert (page.status_code, complaint in page.text) == (200, True)
    assert EventImport.objects.get().status == "ready"


def test_what_cannot_be_uploaded_is_said(operator, shop, settings):
    assert "may not import" in upload(operator, make_source("site", kind="browser")).text
    assert "cannot be told from its name" in upload(operator, shop, name="orders.xlsx").text
    settings.IMPORT_UPLOAD_BYTES = 10
    assert "raise IMPORT_UPLOAD_MB" in upload(operator, shop).text
    assert EventImport.objects.count() == 0


def test_a_stopped_import_goes_on(operator, shop, logged):
    upload(operator, shop)
    found = EventImport.objects.get()
    started(operator, found)
    operator.post(address(found, "stop"))
    tasks.run_import.apply(args=[found.pk], throw=True)
    found.refresh_from_db()
    assert (found.status, found.events, logged()) == ("stopped", 0, [])
    operator.post(address(found, "go_on"))
    tasks.run_import.apply(args=[found.pk], throw=True)
    found.refresh_from_db()
    assert (found.status, found.events) == ("done", 2)


def test_a_run_whose_time_is_over_goes_on_in_another(operator, shop):
    upload(operator, shop, b"user_id,event\n" + b"u,X\n" * 5000)
    found = EventImport.objects.get()
    operator.post(address(found, "mapping"), fields_of(operator.get(address(found, "mapping"))) | {"start": ""})
    assert uploads.carry_on(found.pk, seconds=0) is True
    with ledger.held(found), pytest.raises(ledger.ImportBusy):
        uploads.carry_on(found.pk, seconds=60)
    assert uploads.carry_on(found.pk, seconds=60) is False
    found.refresh_from_db()
    assert (found.status, found.events) == ("done", 5000)


def test_lost_ones_are_found_and_why_one_stopped_is_shown(operator, shop):
    upload(operator, shop)
    found = EventImport.objects.get()
    started(operator, found)
    assert uploads.lost(now=clock.now()) == []
    EventImport.objects.update(updated_at=NOON)
    assert uploads.lost(now=clock.now()) == [found.pk]
    tasks.carry_on_imports.apply(throw=True)
    default_storage.delete(found.stored_path)
    tasks.run_import.apply(args=[found.pk])
    found.refresh_from_db()
    assert (found.status, found.trouble[:34]) == ("stopped", "The upload of orders.csv is gone. ")
    assert "The upload of orders.csv is gone." in operator.get(address(found)).text
    EventImport.objects.update(stored_path="")
    upload(operator, shop)
    found.refresh_from_db()
    assert found.stored_path != ""


def test_uploads_and_errors_that_nobody_needs_are_removed(operator, shop):
    upload(operator, shop)
    done = EventImport.objects.get()
    started(operator, done)
    tasks.run_import.apply(args=[done.pk], throw=True)
    upload(operator, shop, b"user_id,event\nu,X\n")
    assert len(default_storage.listdir("imports")[1]) == 1
    EventImport.objects.update(updated_at=NOON - 2 * uploads.KEPT)
    uploads.prune(now=NOON - 2 * uploads.KEPT)
    assert len(default_storage.listdir("imports")[1]) == 1
    uploads.prune(now=clock.now())
    tasks.prune_imports.apply(throw=True)
    assert list(EventImport.objects.order_by("pk").values_list("stored_path", "errors_path")) == [("", ""), ("", "")]
    assert default_storage.listdir("imports")[1] == []
    assert b"".join(uploads.errors_of(done).read()) == b""


def test_an_erasure_takes_bad_lines_and_waiting_files(operator, shop):
    upload(operator, shop, b"user_id,event,email\n,X,ann@example.com,\nu1,X,bob@example.com,\n", "a.csv")
    bad = EventImport.objects.get()
    operator.post(address(bad, "mapping"), fields_of(operator.get(address(bad, "mapping"))) | {"start": ""})
    holder, ann = ImportHolder(), [Identifier("email", "ann@example.com"), Identifier("user_id", "7")]
    with pytest.raises(ledger.ImportBusy):
        holder.erase(ann)
    tasks.run_import.apply(args=[bad.pk], throw=True)
    upload(operator, shop, gzip.compress(b'{"type":"track","event":"X","userId":7}\n'), "b.ndjson.gz")
    upload(operator, shop, b"user_id,event\n77,X\n", "c.csv")
    assert list(holder.export(ann).values()) == [[",X,ann@example.com,"]]
    assert holder.erase(ann) == 2
    assert (holder.erase(ann), holder.export(ann)) == (0, {})
    assert list(EventImport.objects.order_by("pk").values_list("stored_path", flat=True)) == ["", "", "imports/3.csv"]
    assert b"bob@example.com" in b"".join(uploads.errors_of(bad).read())


def test_viewers_see_no_imports_and_begin_none(client, operator, shop):
    upload(operator, shop)
    found = EventImport.objects.get()
    client.force_login(make_user("viewer"))
    assert client.get(reverse("admin:cdp_eventimport_changelist")).status_code == 403
    assert client.get(ADD).status_code == 403
    for view in ("mapping", "errors"):
        assert client.get(address(found, view)).status_code == 403
    for view in ("mapping", "stop", "go_on"):
        assert client.post(address(found, view)).status_code == 403
    assert default_storage.size(found.stored_path) == len(CSV)
