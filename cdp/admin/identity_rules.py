"""The rules of who is who: those that count, their history, and changing them by way of a dry run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.http import require_POST

from cdp import audit, identity_rules, masking, rule_drafts
from cdp.admin.base import Records, context_of
from cdp.identity_rules import UnfitRules
from cdp.models import IdentityRules, Profile
from cdp.processing.clusters import ANY, DEFAULT
from martech.lib.errors import MartechError

TRY, PUBLISH = "cdp.add_identityrules", "cdp.change_identityrules"
SHOWN_VERSIONS = 50
# Empty rows of the form, for namespaces without rules so far.
SPARE = 2
MOST_ROWS = 200
NUMBERS = ("limit", "priority", "shared_after")


class Row(NamedTuple):
    """A namespace's rules, as a table or form shows them."""

    name: str
    limit: Any
    priority: Any
    shared_after: Any
    blocked: list[str]
    default: bool = False

    @property
    def lines(self) -> str:
        """The blocked values, one a line."""
        return "\n".join(self.blocked)


@admin.register(IdentityRules)
class IdentityRulesAdmin(Records):
    """Versions of the rules."""

    def get_urls(self) -> list[Any]:
        """Return our own pages alone: rows come and go by them."""
        wrap = self.admin_site.admin_view
        return [
            path("", wrap(self.changelist_view), name="cdp_identityrules_changelist"),
            path("edit/", wrap(self.edit_view), name="cdp_identityrules_edit"),
            path("<int:version>/", wrap(self.version_view), name="cdp_identityrules_change"),
            path("<int:version>/progress/", wrap(self.progress_view), name="cdp_identityrules_progress"),
            path("<int:version>/try/", wrap(require_POST(self.try_view)), name="cdp_identityrules_try"),
            path("<int:version>/publish/", wrap(require_POST(self.publish_view)), name="cdp_identityrules_publish"),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the rules that count, and all versions."""
        self._check(request, "cdp.view_identityrules")
        current = identity_rules.current()
        context = self._context(
            request, current, title="Identity rules", nobody=[one for one in identity_rules.NOBODY if one],
            versions=IdentityRules.objects.order_by("-version")[:SHOWN_VERSIONS],
        )  # fmt: skip
        return TemplateResponse(request, "cdp/identity_rules.html", context)

    def version_view(self, request: HttpRequest, version: int) -> HttpResponse:
        """Show one version: its rules, what it would do or did, and what may be done with it."""
        self._check(request, "cdp.view_identityrules")
        row = self._found(version)
        found = rule_drafts.dry_run_of(row)
        stale = row.status == IdentityRules.Status.DRAFT and found and found["against"] != self._current().version
        context = self._context(
            request, row, title=f"Identity rules, version {version}", original=row, found=found, stale=stale,
            examples=_examples(found or {}, hidden=masking.applies_to(request.user)),
        )  # fmt: skip
        return TemplateResponse(request, "cdp/identity_rules_version.html", context)

    def progress_view(self, request: HttpRequest, version: int) -> HttpResponse:
        """Answer how far a version is, for the page to show."""
        self._check(request, "cdp.view_identityrules")
        row = self._found(version)
        return JsonResponse({"over": not _underway(row), "words": _words(row)})

    def edit_view(self, request: HttpRequest) -> HttpResponse:
        """Show the rules as a form; make a draft of what is sent, and try that."""
        self._check(request, TRY)
        if request.method != "POST":
            version = request.GET.get("from", "")
            row = self._found(int(version)) if version.isdecimal() and len(version) < 10 else self._current()
            return self._form(request, _rows(row.namespaces, hidden=masking.applies_to(request.user)))
        if masking.applies_to(request.user):  # whoever sees dots would save dots
            raise PermissionDenied
        rows = _sent(request.POST)
        try:
            row = identity_rules.draft(
                _asked(rows), author=audit.actor_of(request), note=request.POST.get("note", "").strip()[:2000]
            )
            rule_drafts.rehearse(row.pk)
        except MartechError as error:
            return self._form(request, rows, error=error, note=request.POST.get("note", ""), status=400)
        return HttpResponseRedirect(reverse("admin:cdp_identityrules_change", args=[row.pk]))

    def try_view(self, request: HttpRequest, version: int) -> HttpResponse:
        """Make a draft's dry run again."""
        self._check(request, TRY)
        return self._done(request, version, lambda: rule_drafts.rehearse(version), "")

    def publish_view(self, request: HttpRequest, version: int) -> HttpResponse:
        """Let a draft count, and have it applied to the past."""
        self._check(request, PUBLISH)
        words = "The rules count for new evidence now; the past follows."
        return self._done(
            request, version, lambda: identity_rules.publish(version, author=audit.actor_of(request)), words
        )

    def _done(self, request: HttpRequest, version: int, change: Any, words: str) -> HttpResponse:
        try:
            version = change().pk
        except MartechError as error:
            self.message_user(request, error.message, messages.ERROR)
        else:
            if words:
                self.message_user(request, words, messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:cdp_identityrules_change", args=[version]))

    def _form(self, request: HttpRequest, rows: list[Row], *, status: int = 200, **more: Any) -> HttpResponse:
        usual = DEFAULT[ANY]
        spare = [Row("", usual.limit, usual.priority, usual.shared_after, [])] * SPARE
        named = [one for one in rows if one.name]
        context = context_of(self, request, title="Change the identity rules", rows=[*named, *spare], **more)
        return TemplateResponse(request, "cdp/identity_rules_edit.html", context, status=status)

    def _context(self, request: HttpRequest, row: IdentityRules, **more: Any) -> dict[str, Any]:
        return context_of(
            self, request, row=row, rows=_rows(row.namespaces, hidden=masking.applies_to(request.user)),
            underway=_underway(row), words=_words(row), may_publish=request.user.has_perm(PUBLISH),
            may_try=request.user.has_perm(TRY) and not masking.applies_to(request.user), **more,
        )  # fmt: skip

    def _current(self) -> IdentityRules:
        return identity_rules.current()

    def _found(self, version: int) -> IdentityRules:
        row = IdentityRules.objects.filter(pk=version).first() if version < 2**31 else None
        if row is None:
            raise Http404(f"There is no version {version} of the identity rules.")
        return row

    def _check(self, request: HttpRequest, permission: str) -> None:
        if not request.user.has_perm(permission):
            raise PermissionDenied


def _rows(namespaces: Mapping[str, Any], *, hidden: bool) -> list[Row]:
    """Return rules as rows, in the order of their priority, that for all others last."""
    found = [
        Row(name, rules["limit"], rules["priority"], rules["shared_after"],
            [masking.prose(one) if hidden else one for one in rules["blocked"]], name == ANY)
        for name, rules in namespaces.items()
    ]  # fmt: skip
    return sorted(found, key=lambda row: (row.default, row.priority, row.name))


def _sent(given: Any) -> list[Row]:
    """Return the rows of a form; those without a name, or to be taken away, are left out."""
    count = min(int(given.get("rows", "0")), MOST_ROWS) if given.get("rows", "").isdecimal() else 0
    return [
        _row(name, at, given)
        for at in range(count)
        if (name := given.get(f"name:{at}", "").strip()) and f"remove:{at}" not in given
    ]


def _row(name: str, at: int, given: Any) -> Row:
    limit, priority, shared_after = (given.get(f"{one}:{at}", "").strip() for one in NUMBERS)
    blocked = [line.strip() for line in given.get(f"blocked:{at}", "").splitlines() if line.strip()]
    return Row(name, limit, priority, shared_after, blocked, name == ANY)


def _asked(rows: list[Row]) -> dict[str, Any]:
    """Return the rules that rows say; what is no number is left to the check, which names it."""
    asked: dict[str, Any] = {}
    for row in rows:
        if row.name in asked:
            raise UnfitRules(f"There are two rows for {row.name}. Take one away.")
        numbers = {name: _number(getattr(row, name)) for name in NUMBERS}
        asked[row.name] = numbers | {"blocked": row.blocked}
    return asked


def _number(text: Any) -> Any:
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) < 10 else text


def _underway(row: IdentityRules) -> bool:
    trial = rule_drafts.dry_run_of(row) or {}
    return row.status == IdentityRules.Status.APPLYING or trial.get("state") == rule_drafts.RUNNING


def _words(row: IdentityRules) -> str:
    """Say how far a version is."""
    if row.status == IdentityRules.Status.DRAFT:
        return "The dry run goes on." if _underway(row) else ""
    done, of = row.progress.get("looked_at", 0), row.progress.get("of")
    if of is None:
        return "" if row.status == IdentityRules.Status.APPLIED else "The job begins within a minute."
    split, merged = row.progress.get("split", 0), row.progress.get("merged", 0)
    return f"{done:,} of {of:,} profiles looked at: {split:,} split, {merged:,} merged."


def _examples(found: Mapping[str, Any], *, hidden: bool) -> list[dict[str, Any]]:
    """Return the examples of a dry run with the names of the profiles, as far as these exist."""
    given = found.get("examples", [])
    people = {str(one.pk): one for one in Profile.objects.filter(pk__in=[one["profile_id"] for one in given])}
    return [
        {**one, "name": masking.text(name) if hidden else name, "sizes": ", ".join(map(str, one["sizes"]))}
        for one in given
        if one["profile_id"] in people and (name := people[one["profile_id"]].display_name)
    ]
