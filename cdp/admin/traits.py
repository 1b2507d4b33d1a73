"""Traits in pages, ready to show."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Trait(NamedTuple):
    """A trait, ready to show."""

    name: str
    value: str


def rows_of(traits: dict[str, Any]) -> list[Trait]:
    """Return traits in order of their names."""
    return [Trait(name, _readable(value)) for name, value in sorted(traits.items())]


def _readable(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
