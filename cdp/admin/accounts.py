"""Accounts: found by what they are called, and shown with what is known of them and who belongs to them."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from django.contrib import admin
from django.db.models import BooleanField, QuerySet, Value
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html, format_html_join
from unfold.decorators import display

from cdp import accounts, masking, timeline
from cdp.admin import timelines
from cdp.admin.base import Records, context_of
from cdp.admin.traits import rows_of
from cdp.api import lists
from cdp.models import Account, AccountIdentifier, Profile
from cdp.processing.accounts import GROUP_ID, Membership
from martech.lib import clock

SEARCH_LIMIT = 200
PAGE = 25
MAX_IDENTIFIERS = 200
# What a person's page shows of their accounts.
MAX_ACCOUNTS = 20


class Shown(NamedTuple):
    """A membership, ready to show: of whom or in what, where their page is, in which role and since when."""

    name: str
    address: str
    role: str
    joined_at: datetime
    left_at: datetime | None


@admin.register(Account)
class AccountAdmin(Records):
    """Companies and teams."""

    list_display = ["name_shown", "identifiers_shown", "version", "changed_at", "created_at"]
    list_display_links = ["name_shown"]
    search_fields = ["identifiers__value"]
    search_help_text = "Group id, namespace:value or account id"
    ordering = ["-created_at", "-id"]

    @display(description="Name")
    def name_shown(self, account: Any) -> str:
        """Show what people call the account."""
        return display_name(account, _names(account))

    @display(description="Identifiers")
    def identifiers_shown(self, account: Any) -> str:
        """Show the first identifiers."""
        found = _names(account)
        listed = format_html_join(" ", '<span class="mt-identifier"><b>{}</b> {}</span>', found[:3])
        return format_html("{}{}", listed, " …" if len(found) > 3 else "")

    @display(description="Changed")
    def changed_at(self, account: Any) -> datetime:
        """Show when it last changed."""
        return account.timestamp

    def get_queryset(self, request: HttpRequest) -> QuerySet[Account]:
        """Leave out what only processors read; say of each row whether it is masked."""
        hidden = Value(masking.applies_to(request.user), output_field=BooleanField())
        rows = super().get_queryset(request).defer("registers").prefetch_related("identifiers")
        return rows.annotate(masked=hidden)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Account], search_term: str
    ) -> tuple[QuerySet[Account], bool]:
        """Find accounts by what they are called, or its beginning for those who may read it anyway."""
        term = search_term.strip()
        if not term:
            return queryset, False
        prefix = not masking.applies_to(request.user)
        return queryset.filter(pk__in=accounts.search(term, limit=SEARCH_LIMIT, prefix=prefix)), False

    def get_urls(self) -> list[Any]:
        """Add the addresses of further pages of the timeline and of the members."""
        view = self.admin_site.admin_view
        return [
            path("<uuid:account_id>/timeline/", view(self.timeline_view), name="cdp_account_timeline"),
            path("<uuid:account_id>/members/", view(self.members_view), name="cdp_account_members"),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show an account."""
        account = self._found(request, object_id)
        name = display_name(account, _names(account))
        context = context_of(
            self,
            request,
            title=name,
            name=name,
            original=account,
            account=account,
            graph=_graph(account),
            traits=rows_of(account.traits),
            **(self._members(request, account.pk) | self._timeline(request, account.pk)),
        )
        return TemplateResponse(request, "cdp/account.html", context)

    def timeline_view(self, request: HttpRequest, account_id: UUID) -> HttpResponse:
        """Show a further page of a timeline, to be put below the one before."""
        account = self._found(request, str(account_id), people=True)
        return TemplateResponse(request, "cdp/timeline.html", self._timeline(request, account.pk))

    def members_view(self, request: HttpRequest, account_id: UUID) -> HttpResponse:
        """Show further members, to be put below those before."""
        account = self._found(request, str(account_id), people=True)
        return TemplateResponse(request, "cdp/members.html", self._members(request, account.pk))

    def _found(self, request: HttpRequest, object_id: str, *, people: bool = False) -> Any:
        account = self.get_object(request, object_id)
        may = self.has_view_permission(request, account) and (not people or request.user.has_perm("cdp.view_profile"))
        if account is None or not may:
            raise Http404(f"There is no account {object_id}.")
        return account

    def _timeline(self, request: HttpRequest, account_id: UUID) -> dict[str, Any]:
        read = partial(timeline.of_account, accounts.group_id(account_id))
        shown = timelines.page(request, read, masked=masking.applies_to(request.user), title=_told_by)
        return shown | {
            "page_address": reverse("admin:cdp_account_change", args=[account_id]),
            "part_address": reverse("admin:cdp_account_timeline", args=[account_id]),
        }

    def _members(self, request: HttpRequest, account_id: UUID) -> dict[str, Any]:
        try:
            before = lists.position(request.GET.get("member", ""), lists.row_id)
        except lists.BadCursor:
            before = None
        rows = accounts.members(account_id, limit=PAGE + 1, before=before[0] if before else None)
        people = _people(self, request, [row.profile_id for row in rows[:PAGE]])
        hidden = masking.applies_to(request.user)
        return {
            "members": [_shown(*people[row.profile_id], row.membership, masked=hidden) for row in rows[:PAGE]],
            "more": lists.cursor((rows[PAGE - 1].identifier_id,)) if len(rows) > PAGE else "",
            "page_address": reverse("admin:cdp_account_change", args=[account_id]),
            "members_address": reverse("admin:cdp_account_members", args=[account_id]),
        }


def of_profile(page: admin.ModelAdmin, request: HttpRequest, profile_id: UUID) -> list[Shown]:
    """Return the newest accounts of a person, those that they left too."""
    found = accounts.of_profile(profile_id, limit=MAX_ACCOUNTS)
    rows = page.admin_site.get_model_admin(Account).get_queryset(request)
    named = {row.pk: display_name(row, _names(row)) for row in rows.filter(pk__in=[one.account_id for one in found])}
    hidden = masking.applies_to(request.user)
    return [
        _shown(named[one.account_id], reverse("admin:cdp_account_change", args=[one.account_id]), one.membership,
               masked=hidden)
        for one in found
    ]  # fmt: skip


def _shown(name: str, address: str, membership: Membership, *, masked: bool) -> Shown:
    role, ended = membership.role_shown, membership.ended_us
    return Shown(
        name, address, masking.prose(role) if masked else role, clock.from_us(membership.since_us),
        None if ended is None else clock.from_us(ended),
    )  # fmt: skip


def _people(page: admin.ModelAdmin, request: HttpRequest, ids: list[UUID]) -> dict[UUID, tuple[str, str]]:
    """Return the names of people and the addresses of their pages."""
    rows = page.admin_site.get_model_admin(Profile).get_queryset(request).filter(pk__in=ids)
    return {row.pk: (row.display_name, reverse("admin:cdp_profile_change", args=[row.pk])) for row in rows}


def display_name(account: Account, names: list[tuple[str, str]]) -> str:
    """Return what people call an account: its name, else its first identifier, else its id."""
    name = str(account)
    return names[0][1] if names and name == str(account.pk) else name


def _names(account: Any) -> list[tuple[str, str]]:
    """Return what an account is called, the group id first."""
    found = sorted((row.namespace != GROUP_ID, row.namespace, row.value) for row in account.identifiers.all())
    return [(namespace, masking.text(value) if account.masked else value) for _, namespace, value in found]


def _graph(account: Any) -> list[tuple[str, list[AccountIdentifier]]]:
    """Return an account's identifiers by namespace, as the page of a person shows theirs."""
    found: dict[str, list[AccountIdentifier]] = {}
    rows = sorted(account.identifiers.all(), key=lambda row: (row.namespace != GROUP_ID, row.namespace, row.pk))
    for row in rows[:MAX_IDENTIFIERS]:
        row.value = masking.text(row.value) if account.masked else row.value
        found.setdefault(row.namespace, []).append(row)
    return list(found.items())


def _told_by(event: dict[str, Any]) -> str:
    """Return who a group call was made by, and what it says of the account."""
    who = event["identifiers"][0]["value"] if event["identifiers"] else ""
    return " · ".join(part for part in (who, timelines.said_by(event)) if part)
