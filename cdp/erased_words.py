"""What people and tasks wrote down, in words of their own: an erased person is taken out of it.

Who wrote it (authors, actors) stays: that is who did something here, whoever else they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from django.contrib.admin.models import LogEntry

from cdp import definitions, redaction
from cdp.erasing import CHUNK, Person, count, forms, select
from cdp.models import IdentityRules
from cdp.processing.clusters import ANY
from cdp.processing.identity import Identifier
from cdp.redaction import ERASED

# In these a text that is as short as a version or a name says nothing of a person, unless it is an identifier.
_DISTINCT_ONLY = frozenset({"decisions", "audit_entries", "imports", "identity_rules"})
_HELD = """
SELECT DISTINCT lower(trim(both '"'' ' FROM value)) FROM cdp_identifier
WHERE lower(trim(both '"'' ' FROM value)) = ANY(%s::text[])
"""


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
        counts[name] = _cleaned(name, place, person, distinct if name in _DISTINCT_ONLY else found)
    counts["blocked_values"] = _unblocked(person)
    return counts


def _own_log(person: Person) -> int:
    """Empty what the admin's log says of the person's own rows."""
    ours = [str(one) for one in [*person.profiles, *person.anchors]]
    rows = LogEntry.objects.filter(content_type__app_label="cdp", object_id__in=ours)
    return rows.exclude(object_repr=ERASED).update(object_repr=ERASED, change_message="")


def _cleaned(name: str, place: _Place, person: Person, found: re.Pattern[str]) -> int:
    """Redact the rows of a table that hold a value, some at a time; lock only those that change."""
    shown = ", ".join([place.key, *(f"{column}::text" for column in (*place.texts, *place.documents))])
    candidates = f"SELECT {shown} FROM {place.table} WHERE {_holds(place)} ORDER BY 1 LIMIT %(limit)s"  # noqa: S608
    locking = f"SELECT {shown} FROM {place.table} WHERE {place.key} = ANY(%s) ORDER BY 1 FOR UPDATE"  # noqa: S608
    set_to = ", ".join([*(f"{one} = %s" for one in place.texts), *(f"{one} = %s::jsonb" for one in place.documents)])
    update = f"UPDATE {place.table} SET {set_to} WHERE {place.key} = %s"  # noqa: S608
    redact = partial(_redacted, name, place, frozenset(person.names), found)
    wanted = _wanted(person) | {"after": place.least, "limit": CHUNK}
    changed = 0
    while person.values and (rows := select(candidates, wanted)):
        wanted["after"] = rows[-1][0]
        theirs = [row_id for row_id, *said in rows if redact(said) != said]
        for row_id, *said in select(locking, [theirs]) if theirs else ():
            if (cleaned := redact(said)) != said:
                changed += count(update, [*cleaned, row_id])
    return changed


def _holds(place: _Place) -> str:
    """Return the condition by which a row may hold a value: a short one is a whole text there."""
    texts = [f"lower({one}) = ANY(%(texts)s::text[])" for one in place.texts]
    documents = [_holding(f"{one}::text", "strings") for one in place.documents]
    everything = ", ".join(f"{one}::text" for one in (*place.texts, *place.documents))
    either = " OR ".join([_holding(f"concat_ws(' ', {everything})", "long"), *texts, *documents])
    return f"{place.key} > %(after)s AND ({either})"


def _holding(said: str, forms_of: str) -> str:
    return (
        f"EXISTS (SELECT FROM unnest(%({forms_of})s::text[]) AS form (text)"
        f" WHERE position(lower(form.text) IN lower({said})) > 0)"
    )


def _wanted(person: Person) -> dict[str, Any]:
    """Return what `_holds` asks for."""
    named = [str(one) for one in person.names]
    short = [one for one in person.values if one not in redaction.distinct(person.values)]
    return {
        "long": _decoded([*redaction.distinct(person.values), *named]),
        "texts": [one.lower() for one in short],
        "strings": [f'"{one}"' for one in _decoded(short)],
    }


def _decoded(values: Iterable[str]) -> list[str]:
    return [one.decode() for one in forms(values)]


def _redacted(
    name: str, place: _Place, names: frozenset[Identifier], found: re.Pattern[str], said: Sequence[str]
) -> list[str]:
    """Return what is left of a row's texts and documents."""
    texts = [redaction.redact(text, found) for text in said[: len(place.texts)]]
    of_document = partial(_without_pairs, names=names) if name == "decisions" else redaction.redact_json
    return [*texts, *(of_document(text, found) for text in said[len(place.texts) :])]


def _without_pairs(text: str, found: re.Pattern[str], names: frozenset[Identifier]) -> str:
    """Redact what a decision was about: a short value is the person's only beside their namespace."""
    before = json.loads(text)
    pairs = before.pop("identifiers", None)
    detail = json.loads(redaction.redact_json(json.dumps(before), found))
    if pairs is not None:
        detail["identifiers"] = [
            [namespace, ERASED if (namespace, value) in names else redaction.redact(value, found)]
            for namespace, value in pairs
        ]
    return text if detail == json.loads(text) else json.dumps(detail, ensure_ascii=False)


def _unblocked(person: Person) -> int:
    """Take identifiers out of what rules block: they are kept out as it is."""
    gone = {(one.namespace, _bare(one.value)) for one in person.names}
    gone |= {(ANY, value) for value in _nobody_elses(person)}
    changed = 0
    for row in IdentityRules.objects.select_for_update().order_by("pk"):
        before = changed
        for name, rules in row.namespaces.items():
            kept = [value for value in rules.get("blocked", []) if (name, _bare(value)) not in gone]
            changed += len(rules.get("blocked", [])) - len(kept)
            rules["blocked"] = kept
        if changed != before:
            row.save(update_fields=["namespaces"])
    if changed:
        definitions.raise_version()
    return changed


def _nobody_elses(person: Person) -> set[str]:
    """Return the values that are blocked in every namespace and are the person's in whichever they stand."""
    values = {_bare(one) for one in redaction.distinct(person.values)}
    rules = IdentityRules.objects.values_list("namespaces", flat=True)
    blocked = {_bare(value) for one in rules for value in one.get(ANY, {}).get("blocked", [])}
    # No index has values alone: whoever blocks none of these waits for no search.
    wanted = sorted(values & blocked)
    held = select(_HELD, [wanted]) if wanted else []
    return set(wanted) - {row[0] for row in held}


def _bare(value: str) -> str:
    return value.strip("\"' ").lower()
