"""The admin: what people see and do, in unfold's style."""

from cdp.admin import (
    accounts,
    api_keys,
    dead_letters,
    identity_decisions,
    identity_rules,
    imports,
    merge_policies,
    people,
    privacy,
    profiles,
    records,
    schedule,
    site,
    sources,
    trace,
)

__all__ = [
    "accounts",
    "api_keys",
    "dead_letters",
    "identity_decisions",
    "identity_rules",
    "imports",
    "merge_policies",
    "people",
    "privacy",
    "profiles",
    "records",
    "schedule",
    "site",
    "sources",
    "trace",
]
