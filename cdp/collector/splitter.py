"""Cuts a batch into its items where strict JSON reading fails, so that one bad event does not cost the others.

Looks at strings and brackets alone, in one pass and without recursion.
"""

import re

import msgspec

from martech.lib.errors import PermanentError

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# A quotation mark that starts no whole string is a token too: it makes the text malformed.
_TOKEN = re.compile(_STRING + rb'|[\[\]{},"]', re.DOTALL)
_MEMBER = re.compile(rb"\s*+(" + _STRING + rb")\s*+:", re.DOTALL)
_CLOSING = {ord("["): ord("]"), ord("{"): ord("}")}
_CLOSERS = frozenset(_CLOSING.values())
_QUOTE, _COMMA = ord('"'), ord(",")


class Malformed(PermanentError):
    """The brackets or quotation marks of a text don't match, or it is not of the expected form."""

    code = "malformed"


def members(body: bytes) -> dict[str, bytes]:
    """Return the members of the JSON object `body`, each value as its bytes; Malformed where it is none."""
    found = {}
    for part in _parts(body, b"{"):
        member = _MEMBER.match(part)
        if member is None:
            raise Malformed("The body is not valid JSON: a member without a name. Send a JSON object.")
        found[_text(member[1])] = part[member.end() :].strip()
    return found


def items(body: bytes) -> list[bytes]:
    """Return the items of the JSON array `body`, each as its bytes; Malformed where it is none."""
    return _parts(body, b"[")


def _text(string: bytes) -> str:
    try:
        return str(msgspec.json.decode(string, type=str))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _parts(body: bytes, opening: bytes) -> list[bytes]:
    """Cut the one container that `body` is at its own commas; empty parts are left out."""
    body = body.strip()
    if not body.startswith(opening):
        raise Malformed(f"Expected JSON that starts with {opening.decode()}. Send JSON in the documented form.")
    closers = bytearray()
    found: list[bytes] = []
    begin = 1
    for token in _TOKEN.finditer(body):
        mark = body[token.start()]
        if mark in _CLOSING:
            closers.append(_CLOSING[mark])
        elif mark in _CLOSERS:
            if closers.pop() != mark:
                break
            if not closers:
                return _finished(body, found, begin, token.start())
        elif mark == _COMMA:
            if len(closers) == 1:
                found.append(body[begin : token.start()].strip())
                begin = token.end()
        elif token.end() - token.start() == 1:
            break
    raise Malformed("The body is not valid JSON: its brackets or quotation marks don't match. Send whole JSON.")


def _finished(body: bytes, found: list[bytes], begin: int, end: int) -> list[bytes]:
    if end != len(body) - 1:
        raise Malformed("The body is not valid JSON: something follows its end. Send one JSON object.")
    return [part for part in [*found, body[begin:end].strip()] if part]
