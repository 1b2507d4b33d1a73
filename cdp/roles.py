"""The three roles: groups of permissions, brought up to date after every migration.

Viewers see what happens with personal data masked (`cdp.masking`), operators see and mend it,
admins also erase people, read the audit trail and manage keys, users and the schedule.
"""

from __future__ import annotations

from typing import Any

VIEWER, OPERATOR, ADMIN = "viewer", "operator", "admin"

_VIEW = [
    "account", "checkpoint", "deadletter", "event", "identifier", "identitydecision", "identityrules", "mergepolicy",
    "processor",
    "profile", "source", "taskrun", "traitdefinition",
]  # fmt: skip
_SCHEDULE = ["clockedschedule", "crontabschedule", "intervalschedule", "periodictask", "solarschedule"]

_viewer = {f"cdp.view_{model}" for model in _VIEW}
_operator = {
    "cdp.view_personal_data", "cdp.change_profile", "cdp.change_account",
    "cdp.replay_deadletter", "cdp.add_source", "cdp.change_source",
    "cdp.view_eventimport", "cdp.add_eventimport", "cdp.change_eventimport",
    "cdp.add_mergepolicy", "cdp.change_mergepolicy", "cdp.unmerge_profile", "cdp.change_identitydecision",
    "cdp.add_identityrules",
}  # fmt: skip
_admin = (
    {f"cdp.{verb}_apikey" for verb in ("view", "add", "change")}
    | {"cdp.view_erasure", "cdp.add_erasure", "cdp.view_auditentry"}
    | {f"auth.{verb}_user" for verb in ("view", "add", "change", "delete")}
    | {"auth.view_group", "cdp.change_identityrules"}
    | {f"django_celery_beat.{verb}_{model}" for verb in ("view", "add", "change", "delete") for model in _SCHEDULE}
)
ROLES = {VIEWER: _viewer, OPERATOR: _viewer | _operator, ADMIN: _viewer | _operator | _admin}


def assign(*, apps: Any, **_: Any) -> None:
    """Make the groups hold exactly what `ROLES` says; called after migrations, when the permissions exist."""
    try:
        groups, permissions = apps.get_model("auth", "Group"), apps.get_model("auth", "Permission")
    except LookupError:  # only some other app was migrated
        return
    known = {
        f"{permission.content_type.app_label}.{permission.codename}": permission
        for permission in permissions.objects.select_related("content_type")
    }
    for role, names in ROLES.items():
        group, _created = groups.objects.get_or_create(name=role)
        group.permissions.set([known[name] for name in sorted(names) if name in known])
