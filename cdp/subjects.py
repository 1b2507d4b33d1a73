"""Who is meant by an export or an erasure: a profile with all of its identifiers, or an identifier that nobody has."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from cdp import lookup
from cdp.models import Identifier as Row
from cdp.processing.identity import MAX_NAMESPACE, MAX_VALUE, Identifier, clean
from martech.lib.errors import PermanentError


class UnknownPerson(PermanentError):
    """Nobody is named by the reference."""

    code = "unknown_person"


@dataclass(frozen=True, slots=True)
class Subject:
    """A person: `profile_id` is None where only the identifier is known, `anchors` are the rows of the identifiers."""

    profile_id: UUID | None
    identifiers: list[Identifier]
    anchors: list[int]


def find(reference: str) -> Subject:
    """Return the person of a profile's id or of `namespace:value`; UnknownPerson for what can name nobody."""
    if ":" in reference:
        named = identifier(reference)
        profile_id = lookup.by_identifier(*named)
        return of_profile(profile_id) if profile_id else Subject(None, [named], [])
    profile_id = lookup.by_reference(reference)
    if profile_id is None:
        raise UnknownPerson(f"There is no profile {reference[:80]}. Give its id, or an identifier as namespace:value.")
    return of_profile(profile_id)


def identifier(reference: str) -> Identifier:
    """Return the identifier that `namespace:value` names, as it is kept; UnknownPerson where it can be none."""
    namespace, _, value = reference.partition(":")
    cleaned = clean(namespace, value)
    usable = namespace and cleaned and len(namespace) <= MAX_NAMESPACE and len(cleaned) <= MAX_VALUE
    if not usable or "\0" in reference:
        raise UnknownPerson("This identifier stands for nobody. Write it as namespace:value, such as user_id:42.")
    return Identifier(namespace, cleaned)


def of_profile(profile_id: UUID) -> Subject:
    """Return the person of a profile."""
    rows = Row.objects.filter(profile_id=profile_id).order_by("id").values_list("id", "namespace", "value")
    return Subject(profile_id, [Identifier(*row[1:]) for row in rows], [row[0] for row in rows])
