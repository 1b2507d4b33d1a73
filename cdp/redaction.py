"""Taking a person's values out of what other people's events say. Pure functions over texts."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

ERASED = "[erased]"
# A shorter value says nothing of a person unless it is the whole text: "1" stands in many.
DISTINCT = 6
# A longer one counts where it stands alone: `user-1000` is not in `user-10001`, nor `ann@…` in `joann@…`.
_ALONE = r"(?<![\w.+@-])(?:{})(?![\w@-]|\.\w)"
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_STRING_OR_NUMBER = re.compile(rf"{_STRING.pattern}|-?\d[\d.eE+-]*")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(str).decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def distinct(values: Iterable[str]) -> list[str]:
    """Return the values that are somebody's wherever they stand."""
    return [one for one in values if len(one) >= DISTINCT]


def pattern(values: Iterable[str]) -> re.Pattern[str]:
    """Return what finds the values in a text, in upper or lower case: short ones only as the whole text."""
    longest_first = sorted({one for one in values if one}, key=lambda one: (-len(one), one))
    forms = [
        _ALONE.format(re.escape(one)) if len(one) >= DISTINCT else rf"\A{re.escape(one)}\Z" for one in longest_first
    ]
    return re.compile("|".join(forms) or r"(?!)", re.IGNORECASE)


def redact(text: str, found: re.Pattern[str]) -> str:
    """Return a text without what `found` finds."""
    return found.sub(ERASED, text)


def redact_json(text: str, found: re.Pattern[str], *, numbers: bool = False) -> str:
    """Return a JSON text in whose strings and names `found` finds nothing; all else is as it was.

    With `numbers` a long number that `found` finds becomes a string without it.
    """

    def clean(match: re.Match[str]) -> str:
        if match[0][0] != '"':
            is_theirs = len(match[0]) >= DISTINCT and found.fullmatch(match[0])
            return f'"{ERASED}"' if is_theirs else match[0]
        said = _decode(match[0])
        left = found.sub(ERASED, said)
        return match[0] if left == said else _encode(left).decode()

    return (_STRING_OR_NUMBER if numbers else _STRING).sub(clean, text)


def with_member(text: str, name: str, value: str) -> str:
    """Return the text of a JSON object with another value of a member; all else is as it was."""
    return _encode(_members(text) | {name: value}).decode()
