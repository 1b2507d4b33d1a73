"""The profile cache, as those see it who only now and then change a profile: people's edits, and what goes with them.

Whoever commits shows it at once. Where the cache was away, or the process died in between, a chore of each minute shows
what was edited of late again, so that a read by the fast path is never behind an edit for longer than that.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache
from uuid import UUID

from django.conf import settings

from cdp import lookup, profiles
from cdp.models import AuditEntry, Profile
from cdp.processing.pipeline import Applied

# How far back the chore looks: an outage of the cache that lasts longer empties it, or ends by its eviction.
LATE = timedelta(minutes=30)
# Entries of the audit trail that the chore looks through.
MOST = 2000


def show(applied: Applied) -> bool:
    """Let the cache show what a transaction changed; called after its commit, which waited for the disk.

    False where the cache is away.
    """
    identifiers = [(one, known[1]) for one, known in applied.identifiers.items()]
    return _cache().write(applied.documents, [*identifiers, *applied.moved], applied.merged, {})


def show_edits(*, now: datetime) -> int:
    """Show the profiles again that people changed of late; return how many. Newer entries of the cache stay."""
    latest = AuditEntry.objects.filter(object_type="profile").order_by("-pk")[:MOST]
    named = [(one.object_id, *one.detail.get("profiles", ())) for one in latest if one.at > now - LATE]
    rows = Profile.objects.filter(pk__in={UUID(one) for names in named for one in names})
    merged = dict(rows.exclude(merged_into=None).values_list("pk", "version"))
    ids = {found for pk in rows.values_list("pk", flat=True) if (found := lookup.survivor(pk))}
    # The version is read first: a document may be newer than it, never older.
    versions = list(Profile.objects.filter(pk__in=ids).values_list("pk", "version"))
    documents = [(pk, version, body) for pk, version in versions if (body := lookup.document(pk))]
    _cache().write(documents, [], list(merged.items()), {})
    return len(documents)


@cache
def _cache() -> profiles.ProfileCache:
    return profiles.ProfileCache(settings.CONFIG.cache_url, starts_epochs=False)
