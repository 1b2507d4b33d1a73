"""The people of one batch, in memory: who an event belongs to, who becomes one with whom, and what changes.

Pure data and functions: `store` fills it from the database before, and writes it back after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from cdp.processing.decode import Message
from cdp.processing.identity import ANONYMOUS_ID, USER_ID, Identifier, anchor_of, limit_of
from cdp.processing.registers import Registers
from cdp.processing.registers import combine as combine_registers
from cdp.processing.traits import Folder, States


@dataclass(slots=True, eq=False)
class Person:
    """A profile as a batch holds it. `merged_into` is set when another one takes it over."""

    id: UUID
    created_us: int
    version: int = 0
    graph: dict[str, list[str]] = field(default_factory=dict)
    registers: Registers = field(default_factory=dict)
    states: States = field(default_factory=dict)
    is_new: bool = False
    merged_into: Person | None = None

    def root(self) -> Person:
        """The person this one has become part of, or itself."""
        person = self
        while person.merged_into is not None:
            person = person.merged_into
        return person

    @property
    def seniority(self) -> tuple[bool, int, UUID]:
        """Who stays in a merge: the identified before the anonymous, then the older."""
        return (USER_ID not in self.graph, self.created_us, self.id)


@dataclass(slots=True)
class Delta:
    """What a batch adds to the state of one anchor."""

    registers: Registers = field(default_factory=dict)
    states: States = field(default_factory=dict)


class Decision(NamedTuple):
    """A merge or a refusal, with what led to it."""

    kind: str
    reason: str
    person: Person
    other: Person | None
    identifiers: list[Identifier]
    message: Message


class Link(NamedTuple):
    """Evidence that two identifiers are one person; `refused` says why the rules did not join them."""

    left: Identifier
    right: Identifier
    message: Message
    refused: str


class People:
    """All people that a batch's events may concern.

    `of` says whom a known identifier belongs to; new people are made with `new_person(message)`.
    """

    def __init__(self, of: dict[Identifier, Person], new_person: Callable[[Message], Person], folder: Folder) -> None:
        self.of = of
        self.folder = folder
        self._new_person = new_person
        self.new_identifiers: dict[Identifier, Message] = {}
        self.decisions: list[Decision] = []
        self.links: list[Link] = []
        self.merged: list[Person] = []

    def resolve(self, message: Message) -> Person:
        """Return whom an event belongs to, after joining what it joins; may lower its `anchor`."""
        if message.alias_of:
            self._refuse_alias_of_a_user(message)
        person = self.of.get(message.identifiers[0])
        if person is not None and all(self.of.get(other) is person for other in message.identifiers):
            return person
        return self._join(message)

    def _join(self, message: Message) -> Person:
        kept, refused = self._allowed(message.identifiers)
        if refused:
            message.anchor = anchor_of(kept) or message.anchor
        people = self._people_of(kept)
        person = min(people, key=lambda one: one.seniority) if people else self._new_person(message)
        for other in people:
            if other is not person:
                self._merge(person, other, kept, message)
        for identifier in kept:
            if identifier not in self.of:
                self._attach(person, identifier, message)
        self._link(message, kept, refused, person)
        return person

    def _people_of(self, identifiers: Iterable[Identifier]) -> list[Person]:
        return list(dict.fromkeys(self.of[one] for one in identifiers if one in self.of))

    def _allowed(self, identifiers: list[Identifier]) -> tuple[list[Identifier], list[tuple[Identifier, str]]]:
        """Drop the identifiers of lowest priority until no namespace's limit is exceeded."""
        kept, refused = list(identifiers), []
        while exceeded := self._exceeded(kept):
            refused.append((kept.pop(), f"limit_{exceeded}"))
        return kept, refused

    def _exceeded(self, identifiers: list[Identifier]) -> str:
        """Return the namespace that one person of all these would hold too many values of, or ""."""
        if len(identifiers) == 1:
            return ""
        held = Counter(one.namespace for one in identifiers if one not in self.of)
        for person in self._people_of(identifiers):
            for namespace, values in person.graph.items():
                held[namespace] += len(values)
        return next((namespace for namespace in sorted(held) if held[namespace] > limit_of(namespace)), "")

    def _attach(self, person: Person, identifier: Identifier, message: Message) -> None:
        self.of[identifier] = person
        self.new_identifiers[identifier] = message
        person.graph.setdefault(identifier.namespace, []).append(identifier.value)

    def _merge(self, person: Person, other: Person, identifiers: list[Identifier], message: Message) -> None:
        """Make `other` part of `person`: everything of both sides is kept."""
        for namespace, values in other.graph.items():
            person.graph.setdefault(namespace, []).extend(values)
            self.of.update((Identifier(namespace, value), person) for value in values)
        person.registers = combine_registers(person.registers, other.registers)
        person.states = self.folder.combine(person.states, other.states)
        person.version += other.version
        other.merged_into = person
        if not other.is_new:
            self.merged.append(other)
            self.decisions.append(Decision("merge", message.type, person, other, identifiers, message))

    def _link(
        self, message: Message, kept: list[Identifier], refused: list[tuple[Identifier, str]], person: Person
    ) -> None:
        """Note the evidence; a refused identifier that nobody has yet is noted by the event alone."""
        anchor = message.anchor
        self.links += [Link(anchor, other, message, "") for other in kept if other != anchor]
        for identifier, reason in refused:
            other = self.of.get(identifier)
            if other is not None:
                self.links.append(Link(anchor, identifier, message, reason))
                self.decisions.append(Decision("refusal", reason, person, other, [anchor, identifier], message))

    def _refuse_alias_of_a_user(self, message: Message) -> None:
        """Keep two identified people apart: an alias to a known user id is noted, not followed."""
        user = Identifier(USER_ID, message.alias_of)
        known = self.of.get(user)
        if known is None or user == message.anchor:
            return
        previous = Identifier(ANONYMOUS_ID, message.alias_of)
        message.identifiers = [one for one in message.identifiers if one != previous]
        person = self.of.get(message.anchor) or self._join(message)
        reason = "two_identified_people"
        self.links.append(Link(message.anchor, user, message, reason))
        self.decisions.append(Decision("refusal", reason, person, known, [message.anchor, user], message))
