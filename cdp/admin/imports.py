"""Imports: a file is uploaded, its columns are mapped under a preview, and its rows go into the log."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, BinaryIO

from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.http import require_POST
from unfold.decorators import display

from cdp import audit, masking, tasks
from cdp.admin.base import Page, context_of
from cdp.admin.import_form import SUGGESTED, MappingForm, UploadForm, initial, keys_of
from cdp.imports import ledger, uploads
from cdp.imports.mapping import Mapping, complete, named
from cdp.imports.preview import Preview, preview
from cdp.imports.records import Layout, layout_of
from cdp.imports.running import target_of
from cdp.models import EventImport
from martech.lib import clock
from martech.lib.errors import MartechError

Status = ledger.Status
# A running import that has not moved for so long waits, or was interrupted.
QUIET = timedelta(minutes=1)
LABELS = {"ready": "info", "running": "warning", "stopped": "danger", "done": "success"}


@admin.register(EventImport)
class EventImportAdmin(Page):
    """Files of events."""

    form = UploadForm
    list_display = ["name", "source", "status_label", "share", "events", "errors", "author", "created_at"]
    list_filter = ["status"]
    list_select_related = ["source"]
    ordering = ["-id"]
    fields = ["source", "file", "file_format"]

    @display(description="Status", label=LABELS)
    def status_label(self, found: EventImport) -> str:
        """Show the status as a label."""
        return str(found.status)

    @display(description="Read")
    def share(self, found: EventImport) -> str:
        """Say how much of the file is read; of a compressed one its size does not tell."""
        return share_of(found)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False for the row itself: it is mapped, begun and stopped."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: the ledger remembers what went in."""
        return False

    def may_run(self, request: HttpRequest) -> bool:
        """Return whether somebody may map, begin and stop imports; they see what is in the rows."""
        return request.user.has_perm("cdp.change_eventimport") and not masking.applies_to(request.user)

    def save_model(self, request: HttpRequest, obj: EventImport, form: Any, change: bool) -> None:
        """Keep the file, and take over the row that knows it already."""
        given = form.cleaned_data
        found = uploads.receive(
            upload=given["file"], source=given["source"], file_format=given["file_format"],
            author=audit.actor_of(request),
        )  # fmt: skip
        obj.__dict__.update(found.__dict__)

    def response_add(
        self, request: HttpRequest, obj: EventImport, post_url_continue: str | None = None
    ) -> HttpResponse:
        """Go on with the mapping, or with the import that the file has had."""
        if obj.status == Status.DONE:
            self.message_user(
                request, f"Already imported on {obj.finished_at:%d %b %Y, %H:%M} UTC: nothing to do.", messages.WARNING
            )
            return HttpResponseRedirect(_address("change", obj))
        return HttpResponseRedirect(_address("mapping", obj))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show how far an import is."""
        found = self.get_object(request, object_id)
        if not self.has_view_permission(request, found):
            raise PermissionDenied
        if found is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        context = context_of(
            self, request, title=found.name, original=found, found=found, share=share_of(found),
            colour=LABELS[found.status], may_run=self.may_run(request), mapping=ledger.mapping_of(found),
            uploaded=bool(found.stored_path), quiet=clock.now() - found.updated_at > QUIET,
            has_errors=bool(found.errors) and found.errors_path.startswith(uploads.STORED),
        )  # fmt: skip
        return TemplateResponse(request, "cdp/import.html", context)

    def get_urls(self) -> list[Any]:
        """Add the addresses of mapping, stopping and errors."""
        view = self.admin_site.admin_view
        return [
            path("<int:import_id>/mapping/", view(self.mapping_view), name="cdp_eventimport_mapping"),
            path("<int:import_id>/stop/", view(require_POST(self.stop_view)), name="cdp_eventimport_stop"),
            path("<int:import_id>/go-on/", view(require_POST(self.go_on_view)), name="cdp_eventimport_go_on"),
            path("<int:import_id>/errors/", view(self.errors_view), name="cdp_eventimport_errors"),
            *super().get_urls(),
        ]

    def mapping_view(self, request: HttpRequest, import_id: int) -> HttpResponse:
        """Say which column is what, look at the messages it makes, and begin."""
        found = get_object_or_404(EventImport, pk=import_id)
        if not self.may_run(request):
            return HttpResponse(status=403)
        if found.offset or found.status in {Status.RUNNING, Status.DONE} or not found.stored_path:
            return HttpResponseRedirect(_address("change", found))
        try:
            return self._map(request, found)
        except MartechError as error:
            self.message_user(request, error.message, messages.ERROR)
            return HttpResponseRedirect(_address("change", found))

    def _map(self, request: HttpRequest, found: EventImport) -> HttpResponse:
        with uploads.content(found) as stream:
            layout, trouble = _layout(request, stream, found)
            columns = keys_of(stream, layout)
            form = MappingForm(
                request.POST or None, columns=columns, file_format=found.file_format,
                initial=initial(_first(found, layout, columns), columns),
            )  # fmt: skip
            if trouble:
                form.add_error("encoding", trouble)
            mapping, seen = None, None
            try:
                if not form.is_bound:
                    mapping = _first(found, layout, columns)
                elif form.is_valid():
                    # An empty field of the form means the properties, whatever the column is called.
                    mapping = complete(form.mapping(), layout, guessing=False)
                if mapping is not None:
                    seen = preview(stream, layout, mapping, target_of(found, settings.CONFIG))
            except MartechError as error:
                if not form.is_bound:
                    raise
                form.add_error(None, error.message)
        if mapping is not None and "start" in request.POST and form.is_valid():
            return self._start(request, found, mapping)
        return TemplateResponse(request, "cdp/import_mapping.html", self._mapping_context(request, found, form, seen))

    def _mapping_context(
        self, request: HttpRequest, found: EventImport, form: MappingForm, seen: Preview | None
    ) -> dict[str, Any]:
        return context_of(
            self, request, title=f"Map {found.name}", original=found, found=found, form=form, seen=seen,
            rows=[_shown(message) for message in seen.messages] if seen else [], suggested=SUGGESTED,
            reasons=[(count, seen.examples[reason]) for reason, count in seen.reasons.most_common()] if seen else [],
        )  # fmt: skip

    def _start(self, request: HttpRequest, found: EventImport, mapping: Mapping) -> HttpResponse:
        with transaction.atomic():
            ledger.begin(sha256=found.sha256, source=found.source, mapping=mapping, author=audit.actor_of(request))
            transaction.on_commit(lambda: tasks.run_import.delay(found.pk))
        self.message_user(request, "The import has begun.", messages.SUCCESS)
        return HttpResponseRedirect(_address("change", found))

    def go_on_view(self, request: HttpRequest, import_id: int) -> HttpResponse:
        """Go on with an import that was stopped."""
        found = get_object_or_404(EventImport, pk=import_id)
        if not self.may_run(request):
            return HttpResponse(status=403)
        if found.status != Status.STOPPED or not found.stored_path:
            return HttpResponseRedirect(_address("change", found))
        return self._start(request, found, ledger.mapping_of(found))

    def stop_view(self, request: HttpRequest, import_id: int) -> HttpResponse:
        """Stop an import after the rows under way."""
        found = get_object_or_404(EventImport, pk=import_id)
        if not self.may_run(request):
            return HttpResponse(status=403)
        if EventImport.objects.filter(pk=found.pk, status=Status.RUNNING).update(status=Status.STOPPED):
            self.log_change(request, found, "Stopped.")
            self.message_user(request, "It stops after the rows under way, and can go on later.", messages.SUCCESS)
        return HttpResponseRedirect(_address("change", found))

    def errors_view(self, request: HttpRequest, import_id: int) -> HttpResponse | StreamingHttpResponse:
        """Send the file that names the bad lines."""
        found = get_object_or_404(EventImport, pk=import_id)
        if not self.may_run(request):
            return HttpResponse(status=403)
        name = f"{found.name}.errors.ndjson".replace('"', "").encode("ascii", "replace").decode()
        return StreamingHttpResponse(
            uploads.errors_of(found).read(), content_type="application/x-ndjson",
            headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
        )  # fmt: skip


def _layout(request: HttpRequest, stream: BinaryIO, found: EventImport) -> tuple[Layout, str]:
    """Return how to read a file by what the form says, and what is wrong with that."""
    encoding, delimiter = request.POST.get("encoding") or "utf-8", request.POST.get("delimiter", "")
    try:
        return layout_of(stream, found.file_format, encoding=encoding, delimiter=delimiter[:1]), ""
    except MartechError as error:
        if not request.POST:
            raise
        return layout_of(stream, found.file_format), error.message


def _address(view: str, found: EventImport) -> str:
    return reverse(f"admin:cdp_eventimport_{view}", args=[found.pk])


def share_of(found: EventImport) -> str:
    """Return how much of a file is read, in per cent; "" where that cannot be told."""
    if found.status == Status.DONE:
        return "100%"
    if found.stored_path.endswith(".gz") or found.name.lower().endswith(".gz") or not found.size:
        return ""
    return f"{min(100, found.offset * 100 // found.size)}%"


def _first(found: EventImport, layout: Layout, columns: tuple[str, ...]) -> Mapping:
    """Return the mapping to begin with: the one it had, else what the names of the columns say."""
    if found.mapping:
        return ledger.mapping_of(found)
    fields = {named(column) for column in columns}
    if layout.file_format == "ndjson" and "type" in fields:
        return complete(Mapping(), layout)
    mapping = Mapping(constants={} if "type" in fields else {"type": "track"}, encoding=layout.encoding)
    return complete(mapping, layout)


def _shown(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as a row of the preview."""
    rest = {key: value for key, value in message.items() if key not in _OWN}
    who = message.get("userId") or message.get("anonymousId") or ""
    return {
        "type": message.get("type", ""), "event": message.get("event") or message.get("name") or "", "who": who,
        "when": message.get("timestamp") or message.get("originalTimestamp") or "now",
        "id": message.get("messageId", ""), "rest": json.dumps(rest, ensure_ascii=False),
    }  # fmt: skip


_OWN = {"type", "event", "name", "userId", "timestamp", "originalTimestamp", "messageId"}
