"""The admin: what people see and do, in unfold's style."""

from cdp.admin import (
    api_keys,
    dead_letters,
    imports,
    merge_policies,
    people,
    profiles,
    records,
    schedule,
    site,
    sources,
    trace,
)

__all__ = [
    "api_keys",
    "dead_letters",
    "imports",
    "merge_policies",
    "people",
    "profiles",
    "records",
    "schedule",
    "site",
    "sources",
    "trace",
]
