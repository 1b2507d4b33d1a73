"""Dead letters that hold an erased person's values: their own are deleted, in others' the values are taken out.

A letter is the person's where a value stands as an identifier of theirs, and where nobody can tell because it cannot
be read. Elsewhere in a letter a value is a text that others said, and the rest of it stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from cdp import dead_letters, redaction
from cdp.erasing import CHUNK, Person, forms, select
from cdp.log.base import Delivery, Event
from cdp.models import DeadLetter
from cdp.processing import suppression
from cdp.processing.accounts import GROUP_ID
from cdp.processing.identity import ACCOUNTS, ANONYMOUS_ID, EMAIL, USER_ID, Identifier, clean

# A search of bytes, whatever they are: non-ASCII ones are written as ASCII, which `lower` and `position` take. JSON may
# write any character as an escape, and only Python knows upper and lower case of the non-ASCII ones, which begin with
# such a byte as 303 and go on with such as 200: where there are any, the bytes say nothing.
_LETTERS = r"""
SELECT id FROM cdp_deadletter AS letter
WHERE id > %(after)s AND (
    EXISTS (
        SELECT FROM unnest(%(forms)s::bytea[]) AS form (bytes)
        WHERE position(lower(encode(form.bytes, 'escape')) IN lower(encode(letter.delivery, 'escape'))) > 0
    )
    OR position('\\u00'::bytea IN letter.delivery) > 0
    OR %(is_foreign)s AND (
        position('\\u'::bytea IN letter.delivery) > 0
        OR encode(letter.delivery, 'escape') ~ '\\3[0-7]{2}\\2[0-7]{2}'
    )
) ORDER BY id LIMIT %(limit)s
"""


class _Names(NamedTuple):
    """What a person is found by: their identifiers, and the patterns of all values and of those that are long."""

    identifiers: frozenset[Identifier]
    found: re.Pattern[str]
    distinct: re.Pattern[str]

    @classmethod
    def of(cls, person: Person) -> _Names:
        values = person.values
        return cls(frozenset(person.names), redaction.pattern(values), redaction.pattern(redaction.distinct(values)))


class _Standing(Enum):
    """How a person stands in a letter."""

    # As whom it is of, or of whom nobody can say that it is not.
    NAMED = "named"
    # As texts that somebody else's letter says.
    MENTIONED = "mentioned"
    # As texts, but a short value is somebody else's identifier there: it says nothing of the person.
    OTHERS = "others"


def holding(person: Person) -> Iterator[DeadLetter]:
    """Yield the dead letters that hold one of the person's identifiers, wherever it stands, oldest first."""
    names, values = _Names.of(person), person.values
    wanted = {"after": 0, "forms": forms(values), "limit": CHUNK, "is_foreign": not "".join(values).isascii()}
    while values and (ids := [row[0] for row in select(_LETTERS, wanted)]):
        wanted["after"] = ids[-1]
        for letter in DeadLetter.objects.filter(pk__in=ids).order_by("pk").iterator(20):
            if _holds(letter, names.found):
                yield letter


def erase(person: Person) -> dict[str, int]:
    """Delete the person's dead letters, and take their values out of others'; return how many letters that were."""
    names = _Names.of(person)
    gone, redacted = [], 0
    for letter in holding(person):
        cleaned = _cleaned(letter, names)
        if cleaned is None:
            gone.append(letter.pk)
        elif cleaned:
            redacted += DeadLetter.objects.filter(pk=letter.pk).update(**cleaned)
    return {"dead_letters": DeadLetter.objects.filter(pk__in=gone).delete()[0], "redacted_letters": redacted}


def _cleaned(letter: DeadLetter, names: _Names) -> dict[str, Any] | None:
    """Return what of a letter is to change so that it no longer holds the person; None where it has to go."""
    try:
        delivery = dead_letters.delivery_of(letter)
        standing = _standing(delivery, names)
        found = names.distinct if standing is _Standing.OTHERS else names.found
        left = _without(delivery, found)
    except (dead_letters.UnreadableLetter, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if standing is _Standing.NAMED or _says(left, names.distinct):
        return None
    before = {"delivery": bytes(letter.delivery), "message_id": letter.message_id, "detail": letter.detail}
    after = {
        "delivery": msgspec.msgpack.encode(left) if left != delivery else before["delivery"],
        "message_id": redaction.redact(letter.message_id, found),
        "detail": redaction.redact(letter.detail, found),
    }
    return {name: value for name, value in after.items() if value != before[name]}


def _standing(delivery: Delivery, names: _Names) -> _Standing:
    """Tell how the person stands in a letter; a DecodeError where its bodies are no JSON objects."""
    shared = _object(delivery.context)
    is_others = False
    for event in delivery.events:
        for one in _identifiers(_object(event.body), shared):
            if one in names.identifiers or names.distinct.search(one.value):
                # Whoever has a value as long as their own identifier: redacted, many would become one.
                return _Standing.NAMED
            is_others |= bool(names.found.search(one.value))
    return _Standing.OTHERS if is_others else _Standing.MENTIONED


def _object(body: bytes) -> dict[str, Any]:
    body.decode()
    return msgspec.json.decode(body, type=dict[str, Any]) if body else {}


def _identifiers(body: dict[str, Any], shared: dict[str, Any]) -> Iterator[Identifier]:
    """Yield whatever identifies somebody in an event, whether or not it could be processed."""
    given = body.get("context")
    context = shared | (given if isinstance(given, dict) else {})
    said = [
        (USER_ID, body.get("userId")), (ANONYMOUS_ID, body.get("anonymousId")), (GROUP_ID, body.get("groupId")),
        *((namespace, body.get("previousId")) for namespace in (USER_ID, ANONYMOUS_ID)),
        *((EMAIL, one.get("email")) for one in (body.get("traits"), context.get("traits")) if isinstance(one, dict)),
        *_external(context.get("externalIds")),
    ]  # fmt: skip
    return (Identifier(namespace, value) for namespace, one in said if (value := clean(namespace, one)))


def _external(given: object) -> Iterator[tuple[str, Any]]:
    for one in given if isinstance(given, list) else ():
        if isinstance(one, dict) and isinstance(one.get("type"), str):
            yield ("" if one.get("collection") == ACCOUNTS else one["type"]), one.get("id")


def _without(delivery: Delivery, found: re.Pattern[str]) -> Delivery:
    """Return a delivery whose texts and long numbers say nothing of the person."""
    events = [
        Event(one.kind, redaction.redact(one.message_id, found), one.skew_us, _redacted(one.body, found))
        for one in delivery.events
    ]
    bulk = {name: _redacted(getattr(delivery, name), found) for name in ("context", "integrations")}
    return msgspec.structs.replace(delivery, events=events, **bulk)


def _redacted(body: bytes, found: re.Pattern[str]) -> bytes:
    text = body.decode()
    left = redaction.redact_json(text, found, numbers=True)
    return body if left == text else left.encode()


def _holds(letter: DeadLetter, found: re.Pattern[str]) -> bool:
    """Tell whether an identifier stands in a letter as a text of its own, or as a word of one."""
    try:
        delivery = dead_letters.delivery_of(letter)
    except dead_letters.UnreadableLetter:
        # Its bytes hold one, and nobody can say more.
        return True
    return any(map(found.search, (letter.message_id, letter.detail))) or _says(delivery, found)


def _says(delivery: Delivery, found: re.Pattern[str]) -> bool:
    bodies = [delivery.context, delivery.integrations, *(event.body for event in delivery.events)]
    said: Iterable[str] = (text.strip() for body in bodies for text in suppression.texts(body))
    plain = (event.message_id for event in delivery.events)
    return any(found.search(text) for text in (*said, *plain, *(body.decode("utf-8", "replace") for body in bodies)))
