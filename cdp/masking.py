"""What counts as personal data, and how it looks to those who may not see it.

Identifier values, what an event said and personal traits are masked; what the platform computed, names of
events, times and sources are not. Admin and API both mask by these functions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

PERMISSION = "cdp.view_personal_data"
DOTS = "•••"
# What is nested deeper is masked as a whole.
MAX_DEPTH = 40

# A trait is personal when a word of its name is one of these …
PERSONAL_WORDS = frozenset(
    {
        "email", "mail", "phone", "mobile", "tel", "telephone", "fax", "whatsapp", "address", "street", "city", "zip",
        "postal", "postcode", "birthday", "birthdate", "birth", "dob", "ssn", "passport", "iban", "tax", "vat", "card",
        "ip", "latitude", "longitude", "lat", "lng", "location", "avatar", "photo", "username", "nickname", "surname",
        "firstname", "lastname", "fullname", "gender", "sex", "password", "token", "secret",
    }
)  # fmt: skip
# … or when it is `name`, alone or after one of these: a `plan_name` is nobody's.
_NAME_PREFIXES = frozenset(
    {"first", "last", "full", "middle", "maiden", "given", "family", "nick", "user", "display", "legal", "preferred"}
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_EMAIL = re.compile(r"[^\s@<>\"'(),:;]+@[^\s@<>\"'(),:;]+")
# Eight digits or more that stand alone and do not begin like a date.
_PHONE = re.compile(r"(?<![\w.-])(?!\d{4}-\d\d-\d\d)[+(]{0,2}\d[\d ()./-]{6,}\d(?!\w)")


class User(Protocol):
    """Who looks: Django's users and anonymous users are such."""

    def has_perm(self, perm: str) -> bool:
        """Return whether they have the permission `perm`."""


def applies_to(user: User) -> bool:
    """Return whether personal data is masked for `user`."""
    return not user.has_perm(PERMISSION)


def is_personal(name: str) -> bool:
    """Return whether a trait of that name says who someone is."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not PERSONAL_WORDS.isdisjoint(words):
        return True
    return words[-1:] == ["name"] and (len(words) == 1 or words[-2] in _NAME_PREFIXES)


def text(value: str) -> str:
    """Return a personal text masked: an address keeps two letters and its last label, another text its first."""
    local, at, domain = value.rpartition("@")
    if at and local and domain:
        _host, dot, label = domain.rpartition(".")
        return f"{local[0]}{DOTS}@{domain[0]}{DOTS}{dot}{label if dot else ''}"
    return value[0] + DOTS if len(value) > 3 else DOTS


def addresses(value: str) -> str:
    """Return a text with the email addresses in it masked."""
    return _EMAIL.sub(lambda found: text(found.group()), value)


def prose(value: str) -> str:
    """Return a text with the email addresses and telephone numbers in it masked."""
    return _PHONE.sub(DOTS, addresses(value))


def everything(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return JSON data of the same form, down to a depth, with every text and number masked."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(value)
    if depth and isinstance(value, Mapping):
        return {prose(key): everything(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, Sequence):
        return [everything(item, depth - 1) for item in value]
    return DOTS


def traits(value: Any, *, personal: bool = False, depth: int = MAX_DEPTH) -> Any:
    """Return traits with the personal ones masked, by their names and by what they look like."""
    if isinstance(value, str):
        return text(value) if personal else prose(value)
    if not isinstance(value, (Mapping, Sequence)):
        return everything(value) if personal else value
    if not depth:
        return DOTS
    if isinstance(value, Mapping):
        return {
            prose(key): traits(item, personal=personal or is_personal(key), depth=depth - 1)
            for key, item in value.items()
        }
    return [traits(item, personal=personal, depth=depth - 1) for item in value]


def identifiers(value: Any) -> Any:
    """Return identifiers with their values masked: a list of namespace and value, or values by namespace."""
    if isinstance(value, Mapping):
        return {namespace: everything(values) for namespace, values in value.items()}
    return [{**item, "value": text(item["value"])} for item in value]


def consent(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a profile's consent with the evidence masked."""
    return {purpose: _choice(choice) for purpose, choice in value.items()}


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    hidden = {"evidence": everything(choice["evidence"])} if "evidence" in choice else {}
    topics = {"topics": consent(choice["topics"])} if "topics" in choice else {}
    return {**choice, **hidden, **topics}


def document(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Return a profile's document masked."""
    return {
        **profile,
        "identifiers": identifiers(profile["identifiers"]),
        "traits": traits(profile["traits"]),
        "computed_traits": traits(profile["computed_traits"]),
        "consent": consent(profile["consent"]),
    }


def account(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return an account's document masked: many a company is called after somebody."""
    return {**found, "identifiers": identifiers(found["identifiers"]), "traits": traits(found["traits"])}


def event(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a timeline masked: what happened and when stays, of what it said only the form."""
    return {
        **row,
        "name": prose(row["name"]),
        "properties": everything(row["properties"]),
        "context": everything(row["context"]),
        "identifiers": identifiers(row["identifiers"]),
        "message_id": addresses(row["message_id"]),
    }
