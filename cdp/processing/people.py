"""The people of one batch, in memory, and what a batch decides about them. Pure data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from cdp.processing.identity import USER_ID, Identifier
from cdp.processing.registers import Registers
from cdp.processing.traits import States

# What new evidence may do (cdp.models.Standing): only join; anything, so that all of it is looked at; nothing.
SETTLED, CONTESTED, BLOCKED = 0, 1, 2


@dataclass(slots=True, eq=False)
class Person:
    """A profile as a batch holds it. `merged_into` is set when another one takes it over."""

    id: UUID
    created_us: int
    version: int = 0
    graph: dict[str, list[str]] = field(default_factory=dict)
    registers: Registers = field(default_factory=dict)
    states: States = field(default_factory=dict)
    standing: int = SETTLED
    is_new: bool = False
    merged_into: Person | None = None
    # Of one that was merged before and is given back: what its row says now.
    revived: bool = False

    def root(self) -> Person:
        """The person this one has become part of, or itself."""
        person = self
        while person.merged_into is not None:
            person = person.merged_into
        return person

    @property
    def seniority(self) -> tuple[bool, bool, int, UUID]:
        """Who stays in a merge: what is stored before what is not, the identified before the anonymous, the older."""
        return (self.is_new, USER_ID not in self.graph, self.created_us, self.id)

    def identifiers(self) -> Iterable[Identifier]:
        """The identifiers it holds."""
        return (Identifier(namespace, value) for namespace, values in self.graph.items() for value in values)

    def holds(self, identifier: Identifier) -> bool:
        """Whether an identifier is its."""
        return identifier.value in self.graph.get(identifier.namespace, ())


@dataclass(slots=True)
class Delta:
    """What a batch adds to the state of one anchor."""

    registers: Registers = field(default_factory=dict)
    states: States = field(default_factory=dict)


class Decision(NamedTuple):
    """A merge, a refusal or a split, with what led to it; no source where a person or a rule did."""

    kind: str
    reason: str
    person: Person
    other: Person | None
    identifiers: list[Identifier]
    at_us: int
    source_id: int | None = None
    message_id: str = ""
    author: str = ""
