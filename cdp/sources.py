"""What a source may be told: which of its rules are sound, and how its write key is replaced."""

from __future__ import annotations

from typing import Any

from cdp.models import Source
from cdp.models.sources import new_write_key
from cdp.processing.decode import TYPES
from cdp.processing.policies import KINDS

CALLS = TYPES | {"import"}
RULES = {
    "refused_namespaces": "Identifiers of these namespaces are passed over",
    "refused_traits": "These traits are passed over",
    "refused_calls": "These calls go to the dead letters",
    "refused_policies": "Traits whose merge policy is one of these are passed over",
}


def check_rules(rules: Any) -> dict[str, list[str]]:
    """Return a source's rules; ValueError says what is wrong with them and what is allowed."""
    if not isinstance(rules, dict):
        # Of the same kind as the complaints below: JSON has no types for a caller to get wrong.
        raise ValueError(  # noqa: TRY004
            'Rules are an object, such as {"refused_traits": ["consent"]}.'
        )
    for name, values in rules.items():
        if name not in RULES:
            raise ValueError(f"There is no rule {name!r}. Known: {', '.join(RULES)}.")
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            raise ValueError(f"{name} is a list of texts.")
    unknown = sorted(set(rules.get("refused_calls", ())) - CALLS)
    if unknown:
        raise ValueError(f"There is no call {unknown[0]!r}. Known: {', '.join(sorted(CALLS))}.")
    unknown = sorted(set(rules.get("refused_policies", ())) - set(KINDS))
    if unknown:
        raise ValueError(f"There is no merge policy {unknown[0]!r}. Known: {', '.join(KINDS)}.")
    return rules


def rotate_write_key(source: Source) -> str:
    """Give a source a new write key and return it; the old one is refused within 5 s."""
    source.write_key = new_write_key()
    source.save(update_fields=["write_key"])
    return source.write_key
