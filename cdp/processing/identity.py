"""Who is who: which identifiers a message carries, and which may belong to one profile.

Pure functions over texts; `store` reads and writes what they decide about.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

USER_ID = "user_id"
ANONYMOUS_ID = "anonymous_id"
EMAIL = "email"
# The collection of `context.externalIds` that names accounts, not people.
ACCOUNTS = "accounts"

LIMITS = {USER_ID: 1}
DEFAULT_LIMIT = 5
MAX_VALUE = 512
MAX_NAMESPACE = 64

BLOCKED = frozenset(
    {
        "", "anonymous", "guest", "distinctid", "distinct_id", "id", "not_authenticated", "email", "undefined",
        "true", "false", "null", "none", "nan", "0", "-1", "[object object]",
    }
)  # fmt: skip


class Identifier(NamedTuple):
    """A namespace and a value."""

    namespace: str
    value: str

    def __str__(self) -> str:
        return f"{self.namespace}:{self.value}"


# The anchor of what concerns no person, such as a CRM's word on a company.
NOBODY = Identifier("", "")


def clean(namespace: str, value: object) -> str:
    """Return the value as we keep it, "" where it is absent, of no usable type or blocked.

    Numbers become their text; an email address is kept in lower case. What is blocked (constants that
    programs send for "nobody") is so in any case, with or without quotes.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    text = str(value).strip()
    bare = text.strip("\"'").strip().lower()
    if bare in BLOCKED or not bare.strip("0-"):
        return ""
    return text.lower() if namespace == EMAIL else text


def limit_of(namespace: str) -> int:
    """Return how many values of a namespace one profile may hold."""
    return LIMITS.get(namespace, DEFAULT_LIMIT)


def collect(user_id: object, anonymous_id: object, email: object, external_ids: object = None) -> list[Identifier]:
    """Return a message's usable identifiers by falling priority: user id, email, external ids, anonymous id.

    `external_ids` is what `context.externalIds` holds: a list of objects with `id` and `type`; whatever
    is not of that form is passed over, and so is what identifies an account.
    """
    found = [Identifier(USER_ID, clean(USER_ID, user_id)), Identifier(EMAIL, clean(EMAIL, email))]
    found += _external(external_ids)
    found.append(Identifier(ANONYMOUS_ID, clean(ANONYMOUS_ID, anonymous_id)))
    return list(dict.fromkeys(identifier for identifier in found if identifier.value))


def _external(external_ids: object) -> list[Identifier]:
    if not isinstance(external_ids, list):
        return []
    return [
        Identifier(item["type"], clean(item["type"], item.get("id")))
        for item in external_ids
        if isinstance(item, dict) and isinstance(item.get("type"), str) and item["type"] and not _of_account(item)
    ]


def _of_account(item: dict[str, Any]) -> bool:
    return item.get("collection") == ACCOUNTS


def anchor_of(identifiers: Sequence[Identifier]) -> Identifier | None:
    """Return the identifier that an event's state belongs to: user id, else anonymous id, else the first."""
    for namespace in (USER_ID, ANONYMOUS_ID):
        for identifier in identifiers:
            if identifier.namespace == namespace:
                return identifier
    return identifiers[0] if identifiers else None
