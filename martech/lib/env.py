"""Typed settings from the environment: each is declared once, and a wrong value stops the process.

Every helper notes its declaration in `DECLARED`, from which a test checks the README's table.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from martech.lib.errors import ConfigurationError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Declared:
    """One setting: its name, its default as the README shows it, and what it does."""

    name: str
    default: str
    help: str


DECLARED: dict[str, Declared] = {}


def _read(name: str, default: T, help_text: str, expected: str, parse: Callable[[str], T]) -> T:
    shown = "" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
    DECLARED[name] = Declared(name, shown, help_text)
    raw = os.environ.get(name, "")
    if raw == "":
        return default
    try:
        return parse(raw)
    except ValueError as error:
        raise ConfigurationError(
            f"{name}={raw!r} is not usable: expected {expected}. Correct it, or unset it for {shown or 'none'}."
        ) from error


def text(name: str, default: str, help_text: str, *, choices: Sequence[str] = ()) -> str:
    """Return a text setting, one of `choices` where they are given."""

    def parse(raw: str) -> str:
        if choices and raw not in choices:
            raise ValueError(raw)
        return raw

    return _read(name, default, help_text, "one of " + ", ".join(choices) if choices else "a text", parse)


def integer(name: str, default: int, help_text: str, *, minimum: int = 0, maximum: int = 2**63 - 1) -> int:
    """Return a whole number between `minimum` and `maximum`."""

    def parse(raw: str) -> int:
        value = int(raw)
        if not minimum <= value <= maximum:
            raise ValueError(raw)
        return value

    return _read(name, default, help_text, f"a whole number from {minimum} to {maximum}", parse)


def seconds(name: str, default: float, help_text: str) -> float:
    """Return a duration in seconds, not negative."""

    def parse(raw: str) -> float:
        value = float(raw)
        if not 0 <= value < float("inf"):
            raise ValueError(raw)
        return value

    return _read(name, default, help_text, "a number of seconds", parse)


_FLAGS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def flag(name: str, default: bool, help_text: str) -> bool:
    """Return a yes-or-no setting."""

    def parse(raw: str) -> bool:
        if raw.lower() not in _FLAGS:
            raise ValueError(raw)
        return _FLAGS[raw.lower()]

    return _read(name, default, help_text, "true or false", parse)


def names(name: str, default: str, help_text: str) -> list[str]:
    """Return a list of names from a comma-separated text."""
    return [part.strip() for part in text(name, default, help_text).split(",") if part.strip()]


def document(name: str, default: str, help_text: str) -> dict[str, Any]:
    """Return a JSON object; `default` is its text."""

    def parse(raw: str) -> dict[str, Any]:
        found = json.loads(raw)
        if not isinstance(found, dict):
            raise ValueError(raw)  # noqa: TRY004 - what `_read` takes for an unusable text
        return found

    return _read(name, parse(default), help_text, "a JSON object", parse)


def url(name: str, default: str, help_text: str, *, schemes: Sequence[str]) -> str:
    """Return an address whose scheme is one of `schemes`."""

    def parse(raw: str) -> str:
        if urlsplit(raw).scheme not in schemes:
            raise ValueError(raw)
        return raw

    return _read(name, default, help_text, "an address " + " or ".join(f"{scheme}://…" for scheme in schemes), parse)
