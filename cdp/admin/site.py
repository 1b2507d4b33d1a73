"""The first page and the way around."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.urls import reverse_lazy

from cdp import figures

admin.site.index_title = "Overview"
admin.site.index_template = "cdp/dashboard.html"
admin.site.enable_nav_sidebar = True


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add the figures to the first page; called by unfold."""
    return context | {"figures": figures.read()}


def _item(title: str, icon: str, view: str, permission: str) -> dict[str, Any]:
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(view),
        "permission": lambda request: request.user.has_perm(permission),
    }


def _list(title: str, icon: str, model: str, app: str = "cdp") -> dict[str, Any]:
    return _item(title, icon, f"admin:{app}_{model}_changelist", f"{app}.view_{model}")


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the side bar's entries; those that somebody may not see are left out by unfold."""
    return [
        {
            "title": "People",
            "items": [
                {"title": "Overview", "icon": "dashboard", "link": reverse_lazy("admin:index")},
                _list("Profiles", "person", "profile"),
                _list("Accounts", "apartment", "account"),
                _list("Identity decisions", "merge", "identitydecision"),
                _list("Identity rules", "rule", "identityrules"),
                _list("Computed traits", "functions", "traitdefinition"),
                _list("Merge policies", "call_merge", "mergepolicy"),
                _list("Erasures", "person_off", "erasure"),
            ],
        },
        {
            "title": "Events",
            "items": [
                _list("Sources", "input", "source"),
                _list("Imports", "upload_file", "eventimport"),
                _list("Dead letters", "report", "deadletter"),
                _list("Trace an event", "route", "event"),
                _list("Checkpoints", "flag", "checkpoint"),
                _list("Processors", "memory", "processor"),
            ],
        },
        {
            "title": "Platform",
            "items": [
                _list("API keys", "key", "apikey"),
                _list("Audit trail", "history", "auditentry"),
                {"title": "API documentation", "icon": "api", "link": reverse_lazy("docs")},
                _list("Periodic tasks", "schedule", "periodictask", "django_celery_beat"),
                _list("Task runs", "task", "taskrun"),
                _list("Users", "group", "user", "auth"),
            ],
        },
    ]
