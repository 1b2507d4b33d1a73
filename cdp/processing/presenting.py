"""What a person in memory looks like to others: the columns of a profile, and its document. Pure functions."""

from __future__ import annotations

import uuid

import msgspec

from cdp import profiles
from cdp.processing import registers, store
from cdp.processing.people import Person
from cdp.processing.traits import Folder
from martech.lib import clock

_encode = msgspec.json.Encoder().encode


def row_of(person: Person, folder: Folder, now_us: int) -> store.ProfileRow:
    """Return a person as the table holds them, computed as of an instant (µs)."""
    return store.ProfileRow(
        person,
        _encode(person.graph),
        _encode(registers.present(person.registers)),
        _encode(folder.present(person.states, now_us)),
        bytes(registers.present_consent(person.registers)),
        folder.due(person.states, now_us),
    )


def document_of(row: store.ProfileRow, now_us: int) -> tuple[uuid.UUID, int, bytes]:
    """Return the id, the version and the document of a person who was written at a time (µs)."""
    person, shown = row.person, clock.isoformat_us(now_us)
    parts = profiles.Document(
        person.id, row.graph, row.traits, row.computed, row.consent, person.version, shown,
        clock.isoformat_us(person.created_us), shown,
    )  # fmt: skip
    return person.id, person.version, profiles.document(parts)
