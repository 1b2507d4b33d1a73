"""Errors' files of imports from where nobody may write: exported, erased and pruned as those of uploads are."""

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings as django_settings

from cdp import privacy
from cdp.erasing import Person
from cdp.imports import aside, files, ledger, uploads
from cdp.imports.holding import ImportHolder
from cdp.models import Erasure, EventImport
from cdp.processing.identity import Identifier
from martech.lib import clock
from tests.test_import_events import TRACK, orders, shop, take  # noqa: F401 - fixtures

ANN = [Identifier("email", "ann@example.com"), Identifier("user_id", "7")]
ROWS = (["", "Lost", "", "", "ann@example.com"], ["", "Lost", "", "", "bob@example.com"], ["", "Lost", "", "7", ""])


@pytest.fixture
def imported(orders, settings, tmp_path, monkeypatch):  # noqa: F811
    """Import a file with bad lines from a directory that nobody may write in."""
    settings.OPTIONS = replace(settings.OPTIONS, data=tmp_path / "data")
    settings.MEDIA_ROOT = tmp_path / "files"
    # Who is root may write everywhere.
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    take(orders(1, *ROWS), *TRACK, status=1)
    found = EventImport.objects.get()
    assert Path(found.errors_path).parent == tmp_path / "data" / "imports"
    return found


def test_an_export_names_the_bad_lines_and_an_erasure_takes_them_out(imported):
    path, holder = Path(imported.errors_path), ImportHolder()
    assert holder.export(ANN) == {path.name: [",Lost,,,ann@example.com", ",Lost,,7,"]}
    assert holder.export([]) == {}
    assert holder.erase([]) == 0
    assert holder.erase(ANN) == 2
    assert b"ann@" not in path.read_bytes()
    assert list(aside.texts(path)) == [",Lost,,,bob@example.com"]
    assert (os.stat(path).st_mode & 0o777, aside.files()) == (0o600, [path])
    assert (holder.erase(ANN), holder.export(ANN)) == (0, {})


def test_what_a_crash_left_half_written_is_taken_out_too(imported):
    path = Path(imported.errors_path)
    with path.open("a") as stream:
        stream.write('{"line": 9, "reason": "x", "text": ",Lost,,,ann@example.com')
    assert ImportHolder().erase(ANN) == 3
    assert list(aside.texts(path)) == [",Lost,,,bob@example.com"]


def test_an_erasure_comes_again_while_an_import_may_write_more(imported):
    with ledger.held(imported), pytest.raises(ledger.ImportBusy):
        ImportHolder().erase(ANN)
    assert ImportHolder().erase(ANN) == 2


def test_an_import_that_writes_of_others_is_not_waited_for(imported):
    with ledger.held(imported):
        assert ImportHolder().erase([Identifier("user_id", "nobody-here")]) == 0


def test_a_file_that_cannot_be_read_halts_nobody_and_is_named(imported):
    path, holder = Path(imported.errors_path), ImportHolder()
    broken = path.with_name(f"a-{path.name}")
    # Who is root may read every file, but nobody may read this one.
    broken.symlink_to(broken)
    assert holder.erase(ANN) == 2
    assert holder.standing(ANN) == (
        f"Errors' files of imports could not be read or written, and stay: {broken}. Give them to the user of the "
        "worker, or remove them."
    )
    broken.unlink()
    assert (holder.standing(ANN), holder.standing([])) == ("", "")


def test_a_file_that_cannot_be_written_is_named_in_the_receipt(imported):
    path = Path(imported.errors_path)
    # Where its new content would be written.
    path.with_name(f"part-{path.name}").mkdir()
    asked = Erasure.objects.create(requested_by="command:test", requested_at=clock.now())
    turn = privacy.Run(asked.pk, privacy.Work(Person(ANN)), 0)
    found = privacy._erase_held(turn)
    assert found["imports"] == 0
    assert str(path) in found["standing"]
    path.with_name(f"part-{path.name}").rmdir()
    assert privacy._erase_held(turn) == {"imports": 2, "memory": 0}


def test_they_are_removed_when_they_are_old_and_nobody_goes_on(imported):
    path, now = Path(imported.errors_path), clock.now()
    strange = path.with_name(f"part-{path.name}")
    strange.write_bytes(path.read_bytes())
    uploads.prune(now=now)
    assert aside.files() == [path, strange]
    long_ago = (now - uploads.KEPT - timedelta(hours=1)).timestamp()
    os.utime(strange, (long_ago, long_ago))
    EventImport.objects.update(status=ledger.Status.RUNNING, updated_at=now - 2 * uploads.KEPT)
    uploads.prune(now=now)
    assert aside.files() == [path]
    EventImport.objects.update(status=ledger.Status.DONE)
    uploads.prune(now=now)
    assert aside.files() == []
    assert EventImport.objects.get().errors_path == ""


def test_those_beside_peoples_own_files_are_theirs(orders, settings, tmp_path):  # noqa: F811
    settings.OPTIONS = replace(settings.OPTIONS, data=tmp_path / "data")
    settings.MEDIA_ROOT = tmp_path / "files"
    take(orders(1, *ROWS), *TRACK, status=1)
    found = EventImport.objects.get()
    EventImport.objects.update(updated_at=clock.now() - 2 * uploads.KEPT)
    assert ImportHolder().erase(ANN) == 0
    uploads.prune(now=clock.now())
    assert b"ann@example.com" in Path(found.errors_path).read_bytes()
    assert django_settings.OPTIONS.data == tmp_path / "data"
