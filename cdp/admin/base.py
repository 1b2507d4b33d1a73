"""What every page of the admin has in common: no big table is counted or scanned, and personal data is masked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, cast

from django.contrib.admin import ModelAdmin as DjangoModelAdmin
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.db.models.query import ModelIterable
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.views import ChangeList

from cdp import audit, masking
from cdp.models import Account, DeadLetter, Identifier, IdentityDecision, Profile, TaskRun

COUNT_CAP = 10_000


class CappedPaginator(Paginator):
    """Counts up to a cap, so that a list costs the same however long it is; nobody turns to page 200."""

    template_name = "cdp/pagination.html"

    @cached_property
    def _counted(self) -> int:
        rows = cast(QuerySet[Any], self.object_list)
        return rows.order_by()[: COUNT_CAP + 1].count()

    @cached_property
    def count(self) -> int:
        """Return how many rows can be turned to."""
        return min(self._counted, COUNT_CAP)

    @property
    def capped(self) -> bool:
        """Whether there are more."""
        return self._counted > COUNT_CAP


def _profile(row: Profile) -> None:
    row.identity_graph = masking.identifiers(row.identity_graph)
    row.traits, row.computed_traits = masking.traits(row.traits), masking.traits(row.computed_traits)
    row.consent = masking.consent(row.consent)


def _account(row: Account) -> None:
    row.traits = masking.traits(row.traits)


def _identifier(row: Identifier) -> None:
    row.value = masking.text(row.value)


def _decision(row: IdentityDecision) -> None:
    row.detail = masking.everything(row.detail)
    row.message_id = masking.addresses(row.message_id)


def _letter(row: DeadLetter) -> None:
    row.detail, row.message_id = masking.prose(row.detail), masking.addresses(row.message_id)


def _run(row: TaskRun) -> None:
    if "error" in row.__dict__:  # lists leave it out
        row.error = masking.prose(row.error)


MASKS: dict[type[Model], Callable[[Any], None]] = {
    Account: _account,
    Profile: _profile,
    Identifier: _identifier,
    IdentityDecision: _decision,
    DeadLetter: _letter,
    TaskRun: _run,
}


def masked(row: Model) -> Model:
    """Mask a row and the rows that it points to, in memory; a row that is masked already stays as it is."""
    for one in (row, *_related(row)):
        if type(one) in MASKS:
            MASKS[type(one)](one)
    return row


def _related(row: Model) -> Iterator[Model]:
    # Read here, if they were not read with the row: a page that reads them later would show them as they are.
    for field in row._meta.concrete_fields:
        if field.related_model in MASKS and getattr(row, field.attname) is not None:
            yield getattr(row, field.name)


class _Masked(ModelIterable):
    def __iter__(self) -> Iterator[Model]:
        for row in super().__iter__():
            yield masked(row)


class Changes(ChangeList):
    """A list that says how many rows a search found, and nothing of the kind where nothing was asked."""

    def get_results(self, request: HttpRequest) -> None:
        """Read a page of rows."""
        super().get_results(request)
        if not self.query and not self.get_filters_params():
            self.full_result_count = self.result_count


class Audited(ModelAdmin):
    """Writes what people change in the admin's own ways into the audit trail; what pages of our own do says so there.

    Django's log beside it names rows by what they are called, which an erasure looks through.
    """

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Write down that a row was made."""
        self._record(request, "create", obj, message)
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Write down that a row was changed."""
        self._record(request, "change", obj, message)
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        """Write down that rows are deleted."""
        for obj in queryset:
            self._record(request, "delete", obj, [])
        return super().log_deletions(request, queryset)

    def _record(self, request: HttpRequest, verb: str, obj: Model, message: Any) -> None:
        kind = obj._meta.model_name or ""
        # Django says which fields, in its own form; our pages say in words what they did.
        said = {"said": message} if isinstance(message, str) and message else {"fields": _fields(message)}
        audit.record(actor=audit.actor_of(request), action=f"{kind}.{verb}", object_type=kind, object_id=obj.pk,
                     detail={name: value for name, value in said.items() if value})  # fmt: skip


def _fields(message: Any) -> list[str]:
    """Return the names of the fields that a change message tells of."""
    said = [part.get("changed", {}).get("fields", []) for part in message if isinstance(part, dict)]
    return [str(name) for names in said for name in names]


class Page(Audited):
    """The base of our pages."""

    paginator = CappedPaginator
    show_full_result_count = False
    list_per_page = 50
    list_max_show_all = 50
    list_filter_sheet = False
    sortable_by = ()

    def get_changelist(self, request: HttpRequest, **options: Any) -> type[ChangeList]:
        """Return what lists rows."""
        return Changes

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Mask every row that any page reads: lists, forms, searches and actions alike."""
        rows = super().get_queryset(request)
        if masking.applies_to(request.user):
            rows._iterable_class = _Masked
        return rows

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Take no lookups from addresses but the page's own filters: others would scan, and tell what is masked."""
        name, _, rest = lookup.partition("__")
        return rest in {"", "exact", "id__exact", "in", "isnull"} and name in self._filter_names()

    def _filter_names(self) -> set[str]:
        plain = (item[0] if isinstance(item, tuple) else item for item in self.list_filter)
        return {item if isinstance(item, str) else item.parameter_name for item in plain}


class Records(Page):
    """A page of rows that only the platform writes."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False: they come in by events."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: they change by events."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: they go by erasure and retention."""
        return False


def context_of(page: DjangoModelAdmin, request: HttpRequest, **more: Any) -> dict[str, Any]:
    """Return the context of a page of our own within the admin."""
    request.current_app = page.admin_site.name
    return {**page.admin_site.each_context(request), "opts": page.model._meta, "model_admin": page, **more}
