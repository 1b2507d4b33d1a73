"""Dead letters: grouped by what is wrong, looked into, and given back to the log."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.http import require_POST
from unfold.contrib.filters.admin import RadioFilter, RelatedDropdownFilter
from unfold.decorators import display

from cdp import audit, dead_letters, masking, rehearsal
from cdp.admin import trace
from cdp.admin.base import Records, context_of
from cdp.models import DeadLetter
from martech.lib.errors import MartechError


class StatusFilter(RadioFilter):
    """New ones first of all."""

    title = "status"
    parameter_name = "status"
    all_option = None

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the choices."""
        return [("new", "New"), ("replaying", "Replaying"), ("replayed", "Replayed"), ("any", "All")]

    def value(self) -> str:
        """Return the chosen status; new ones without a choice."""
        return super().value() or "new"

    def queryset(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> QuerySet[DeadLetter]:
        """Keep the letters of the status."""
        return queryset if self.value() == "any" else queryset.filter(status=self.value())


class ReasonFilter(RadioFilter):
    """By what is wrong."""

    title = "reason"
    parameter_name = "reason"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the reasons that occur."""
        return [(reason, reason) for reason in sorted({group.reason for group in dead_letters.summary(cap=1)})]

    def queryset(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> QuerySet[DeadLetter]:
        """Keep the letters of the reason."""
        return queryset.filter(reason=self.value()) if self.value() else queryset


@admin.register(DeadLetter)
class DeadLetterAdmin(Records):
    """What could not be processed."""

    list_display = ["received_at", "reason_shown", "source", "detail", "message_id", "attempts", "status_label"]
    list_display_links = ["received_at"]
    list_filter = [StatusFilter, ReasonFilter, ("source", RelatedDropdownFilter)]
    list_filter_submit = True
    list_filter_sheet = True
    list_select_related = ["source"]
    list_before_template = "cdp/dead_letter_groups.html"
    ordering = ["-id"]
    actions = ["replay_selected"]

    @display(description="Reason", label=True)
    def reason_shown(self, letter: DeadLetter) -> str:
        """Show the reason as a label."""
        return letter.reason

    @display(description="Status", label={"new": "danger", "replaying": "warning", "replayed": "success"})
    def status_label(self, letter: DeadLetter) -> str:
        """Show the status as a label."""
        return letter.status

    def get_queryset(self, request: HttpRequest) -> QuerySet[DeadLetter]:
        """Leave payloads, which may be large, to the page of one letter."""
        return super().get_queryset(request).defer("delivery")

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Return whether somebody may give letters back to the log."""
        return request.user.has_perm("cdp.replay_deadletter")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Add the groups to the list."""
        more = {"groups": dead_letters.summary(), "may_replay": self.has_replay_permission(request)}
        return super().changelist_view(request, (extra_context or {}) | more)

    @admin.action(description="Replay", permissions=["replay"])
    def replay_selected(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> HttpResponse:
        """Ask whether to give the selected letters back to the log."""
        ids = list(queryset.values_list("pk", flat=True)[: dead_letters.REPLAY_LIMIT])
        return self._rehearse(request, dead_letters.matching(ids=ids), {"ids": ",".join(map(str, ids))})

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show a letter with what the sender sent."""
        letter = self.get_object(request, object_id)
        if letter is None or not self.has_view_permission(request, letter):
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        hidden = masking.applies_to(request.user)
        context = context_of(
            self,
            request,
            title=str(letter),
            original=letter,
            letter=letter,
            trace=trace.address(letter.message_id),
            payload=None if hidden else dead_letters.payload_of(letter),
            may_replay=self.has_replay_permission(request) and dead_letters.is_replayable(letter),
        )
        return TemplateResponse(request, "cdp/dead_letter.html", context)

    def get_urls(self) -> list[Any]:
        """Add the address that replays a letter or a group."""
        replay = self.admin_site.admin_view(require_POST(self.replay_view))
        return [path("replay/", replay, name="cdp_deadletter_replay"), *super().get_urls()]

    def replay_view(self, request: HttpRequest) -> HttpResponse:
        """Replay letters (`ids`) or all of a `reason` and `source_id`: first show what would become of them."""
        if not self.has_replay_permission(request):
            return HttpResponse(status=403)
        fields = {name: request.POST[name] for name in ("ids", "reason", "source_id") if request.POST.get(name)}
        letters = _named(fields)
        if letters is None:
            return HttpResponse(status=400)
        if "confirmed" in request.POST:
            self._replay(request, letters)
            return HttpResponseRedirect(reverse("admin:cdp_deadletter_changelist"))
        return self._rehearse(request, letters, fields)

    def _rehearse(self, request: HttpRequest, letters: QuerySet[DeadLetter], fields: dict[str, str]) -> HttpResponse:
        try:
            found = rehearsal.rehearse(letters)
        except MartechError as error:
            self.message_user(request, error.message, messages.ERROR)
            return HttpResponseRedirect(reverse("admin:cdp_deadletter_changelist"))
        context = context_of(self, request, title="Replay dead letters", found=found, fields=fields)
        return TemplateResponse(request, "cdp/dead_letter_replay.html", context)

    def _replay(self, request: HttpRequest, letters: QuerySet[DeadLetter]) -> None:
        try:
            done = dead_letters.replay(letters)
        except MartechError as error:
            self.message_user(request, error.message, messages.ERROR)
            return
        audit.record(actor=audit.actor_of(request), action="dead_letter.replay", object_type="deadletter", object_id="",
                     detail={"matched": done.matched, "replayed": done.replayed})  # fmt: skip
        more = " There are more: replay again." if done.more else ""
        what = "1 dead letter" if done.replayed == 1 else f"{done.replayed} dead letters"
        self.message_user(request, f"{what} given back to the log.{more}", messages.SUCCESS)


def _named(fields: dict[str, str]) -> QuerySet[DeadLetter] | None:
    """Return the letters that a form names, None where it names none."""
    ids = fields.get("ids", "").split(",")
    if all(number.isdecimal() and len(number) < 19 for number in ids):
        return dead_letters.matching(ids=[int(number) for number in ids])
    if "ids" not in fields and "reason" in fields and fields.get("source_id", "").isdecimal():
        return dead_letters.matching(reason=fields["reason"], source_id=int(fields["source_id"]))
    return None
