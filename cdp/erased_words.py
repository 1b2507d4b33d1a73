"""What people and tasks wrote down, in words of their own: an erased person is taken out of it.

Who wrote it (authors, actors) stays: that is who did something here, whoever else they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

from django.contrib.admin.models import LogEntry

from cdp import definitions, redaction
from cdp.erasing import CHUNK, Person, count, forms, select
from cdp.models import IdentityRules
from cdp.processing.clusters import ANY
from cdp.redaction import ERASED

# In these a text that is as short as a version or a name says nothing of a person, unless it is an identifier.
_DISTINCT_ONLY = frozenset({"audit_entries", "imports", "identity_rules"})


class _Place(NamedTuple):
    """A table in which somebody may have written of a person: columns of texts, and of JSON."""

    table: str
    texts: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    key: str = "id"
    # Smaller than any row's key.
    least: int | UUID = 0


PLACES = {
    "decisions": _Place("cdp_identitydecision", ("message_id",), ("detail",)),
    "identity_rules": _Place("cdp_identityrules", ("note",), ("progress",), "version"),
    "erasures": _Place("cdp_erasure", ("reason",), least=UUID(int=0)),
    "audit_entries": _Place("cdp_auditentry", (), ("detail",)),
    "admin_log": _Place("django_admin_log", ("object_repr", "change_message")),
    "task_errors": _Place("cdp_taskrun", ("error",), least=UUID(int=0)),
    "imports": _Place("cdp_eventimport", ("name", "trouble", "errors_path"), ("mapping",)),
    "trait_definitions": _Place("cdp_traitdefinition", ("description",)),
    "processors": _Place("cdp_processor", ("halted",), least=UUID(int=0)),
}


def erase(person: Person) -> dict[str, int]:
    """Take the person out of notes, reasons, errors and logs; return how many rows of which place were changed."""
    named = [str(one) for one in person.names]
    found = redaction.pattern([*person.values, *named])
    distinct = redaction.pattern([*redaction.distinct(person.values), *named])
    counts = {"own_log": _own_log(person)}
    for name, place in PLACES.items():
        counts[name] = _cleaned(place, person, distinct if name in _DISTINCT_ONLY else found)
    counts["blocked_values"] = _unblocked(person)
    return counts


def _own_log(person: Person) -> int:
    """Empty what the admin's log says of the person's own rows."""
    ours = [str(one) for one in [*person.profiles, *person.anchors]]
    rows = LogEntry.objects.filter(content_type__app_label="cdp", object_id__in=ours)
    return rows.exclude(object_repr=ERASED).update(object_repr=ERASED, change_message="")


def _cleaned(place: _Place, person: Person, found: re.Pattern[str]) -> int:
    """Redact the rows of a table that hold a value, some at a time."""
    columns = [*place.texts, *place.documents]
    redactors: list[Callable[[str, re.Pattern[str]], str]] = [redaction.redact] * len(place.texts)
    redactors += [redaction.redact_json] * len(place.documents)
    shown = ", ".join(f"{column}::text" for column in columns)
    said = f"lower(concat_ws(' ', {shown}))"
    query = (
        f"SELECT {place.key}, {shown} FROM {place.table} WHERE {place.key} > %s AND EXISTS (SELECT FROM"  # noqa: S608
        f" unnest(%s::text[]) AS form (text) WHERE position(lower(form.text) IN {said}) > 0)"
        " ORDER BY 1 LIMIT %s FOR UPDATE"
    )
    set_to = ", ".join([*(f"{one} = %s" for one in place.texts), *(f"{one} = %s::jsonb" for one in place.documents)])
    wanted = [one.decode() for one in forms(person.values)]
    changed, after = 0, place.least
    while person.values and (rows := select(query, [after, wanted, CHUNK])):
        after = rows[-1][0]
        for row_id, *before in rows:
            cleaned = [redactor(text, found) for redactor, text in zip(redactors, before, strict=True)]
            if cleaned != before:
                changed += count(f"UPDATE {place.table} SET {set_to} WHERE {place.key} = %s", [*cleaned, row_id])  # noqa: S608
    return changed


def _unblocked(person: Person) -> int:
    """Take identifiers out of what rules block: they are kept out as it is."""
    changed = 0
    for row in IdentityRules.objects.select_for_update().order_by("pk"):
        gone = {(one.namespace if one.namespace in row.namespaces else ANY, _bare(one.value)) for one in person.names}
        for name, rules in row.namespaces.items():
            kept = [value for value in rules.get("blocked", []) if (name, _bare(value)) not in gone]
            changed += len(rules.get("blocked", [])) - len(kept)
            rules["blocked"] = kept
        row.save(update_fields=["namespaces"])
    if changed:
        definitions.raise_version()
    return changed


def _bare(value: str) -> str:
    return value.strip("\"' ").lower()
