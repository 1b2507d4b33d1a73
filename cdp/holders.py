"""PORT: whoever keeps something of people outside the core, such as links to a CRM or messages sent.

A holder keeps its rows by identifier, never by profile alone: so they stay with the identifier through merges and
unmerges. Every holder of the registry is asked; which profile an identifier belongs to is looked up when it is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, ClassVar
from uuid import UUID

from cdp.processing.identity import Identifier
from martech.lib.registry import Registry

HOLDERS = Registry("holders", {"imports": "cdp.imports.holding:ImportHolder", "memory": "cdp.holders:MemoryHolder"})


class Holder(ABC):
    """The port. `name` is what receipts and exports call it: the one it has in the registry."""

    name: ClassVar[str]

    def merged(self, profile_id: UUID, other_id: UUID) -> None:  # noqa: B027 - nothing to do is the usual case
        """Learn that `other_id` has become part of `profile_id`.

        Called by the joins that Django makes (an unmerge is lifted, rules are applied), in their transaction. The
        processor's own, which are most, tell nobody: it knows no Django, and rows by identifier need not move.
        """

    @abstractmethod
    def unmerged(self, moved: Mapping[Identifier, UUID]) -> None:
        """Learn to which profiles identifiers belong now that were taken out of another.

        Called by an unmerge and by rules that split people, in their transaction: whatever is kept by profile beside
        the identifier is corrected by rows alone, without the network. What is raised takes the unmerge back.
        """

    @abstractmethod
    def export(self, identifiers: Iterable[Identifier]) -> dict[str, Any]:
        """Return all that is kept of these identifiers, as JSON data; {} where nothing is.

        Called by an export, once a person. What is raised ends the export.
        """

    @abstractmethod
    def erase(self, identifiers: Iterable[Identifier]) -> int:
        """Erase all that is kept of these identifiers, here and with whom it was shared; return how many rows it was.

        Called by an erasure outside of any transaction, and again after a crash: then it finds less, or nothing.
        RetryableError where it has to be asked again later; the erasure is not done before all have answered.
        """

    def standing(self, identifiers: Iterable[Identifier]) -> str:
        """Say what of these identifiers `erase` could not reach, for the receipt, with the next step; "" for nothing.

        Called by an erasure after `erase`: what is said here does not keep it from being done.
        """
        return ""


class MemoryHolder(Holder):
    """Keeps what it is given in this process: for tests, and for packages that keep nothing for longer."""

    name = "memory"

    def __init__(self) -> None:
        self.rows: dict[Identifier, list[Any]] = {}
        self.profiles: dict[Identifier, UUID] = {}

    def hold(self, identifier: Identifier, row: Any) -> None:
        """Keep JSON data of an identifier."""
        self.rows.setdefault(identifier, []).append(row)

    def unmerged(self, moved: Mapping[Identifier, UUID]) -> None:
        self.profiles |= {one: profile for one, profile in moved.items() if one in self.rows}

    def export(self, identifiers: Iterable[Identifier]) -> dict[str, Any]:
        return {str(one): self.rows[one] for one in identifiers if one in self.rows}

    def erase(self, identifiers: Iterable[Identifier]) -> int:
        wanted = list(identifiers)
        for one in wanted:
            self.profiles.pop(one, None)
        return sum(len(self.rows.pop(one, ())) for one in wanted)


@cache
def holder(name: str) -> Holder:
    """Return the process's holder of that name; ConfigurationError where there is none."""
    opened: Holder = HOLDERS.load(name)()
    return opened


def holders() -> list[Holder]:
    """Return all holders, by name."""
    return [holder(name) for name in HOLDERS]


def merged(profile_id: UUID, other_id: UUID) -> None:
    """Tell all holders of a join; see `Holder.merged`."""
    for one in holders():
        one.merged(profile_id, other_id)


def unmerged(moved: Mapping[Identifier, UUID]) -> None:
    """Tell all holders to which profiles identifiers were moved; see `Holder.unmerged`."""
    for one in holders():
        one.unmerged(moved)
