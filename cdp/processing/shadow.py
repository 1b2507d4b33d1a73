"""What events alone make of people: a shadow of the truth in memory, to be compared with it.

Pure functions over event rows. The anchor and the identifiers of an event are facts; definitions, policies and rules
are those given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from cdp.processing import accounts
from cdp.processing.clusters import Evidence, paired
from cdp.processing.decode import TYPES, Message
from cdp.processing.folding import fold_account, fold_person
from cdp.processing.identity import NOBODY, Identifier
from cdp.processing.people import Delta
from cdp.processing.rules import Rules

Pair = tuple[Identifier, Identifier]
# Calls whose effect names the anchor: counters do, and memberships.
_OF_ANCHORS = frozenset({"identify", "group"})
_pairs = msgspec.json.Decoder(list[Identifier])


class Row(NamedTuple):
    """What is read of an event: its anchor's row id, its identifiers as JSON where there are several, and the message.

    The message is without what no state is made of: flags, and but for group calls context and `extra`.
    """

    anchor_id: int
    identifiers: bytes
    message: Message


class Shadow:
    """The states that events make of their anchors, and their evidence of who is who."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.names: dict[int, Identifier] = {}
        self.deltas: dict[int, Delta] = {}
        self.links: dict[Pair, tuple[Evidence, int]] = {}
        # By anchor and identifiers, the strongest evidence of the events that have just these.
        self._said: dict[tuple[int, bytes], tuple[int, int, str, int]] = {}
        self._classes: dict[int, int] = {}
        # By group id; those of all anchors together.
        self.accounts: dict[str, accounts.Delta] = {}
        self.events = 0

    def begin(self, names: dict[int, Identifier]) -> None:
        """Forget the states of anchors and begin with those of others, by row id; evidence and accounts stay."""
        self.names, self.deltas, self._said = names, {}, {}

    def fold(self, rows: Iterable[Row]) -> None:
        """Add events to the states of their anchors and to the evidence."""
        rules, deltas, names = self.rules, self.deltas, self.names
        for anchor_id, identifiers, message in rows:
            self.events += 1
            kind = message.type
            if kind not in TYPES:
                # A decision of somebody's, which the timeline shows.
                continue
            if kind in _OF_ANCHORS:
                message.anchor = names.get(anchor_id, NOBODY)
            if kind == "group":
                fold_account(rules, self.accounts, message)
            if not anchor_id:
                continue
            delta = deltas.get(anchor_id)
            if delta is None:
                delta = deltas[anchor_id] = Delta()
            fold_person(rules, delta, message)
            if identifiers:
                self._note_evidence((anchor_id, identifiers), message)

    def _note_evidence(self, key: tuple[int, bytes], message: Message) -> None:
        source, received_us = message.source_id, message.received_us
        source_class = self._classes.get(source)
        if source_class is None:
            source_class = self._classes[source] = self.rules.source_class(source)
        at_us = received_us if source_class or received_us < message.occurred_us else message.occurred_us
        given = (source_class, at_us, message.message_id, source)
        held = self._said.get(key)
        if held is None or given < held:
            self._said[key] = given

    def end(self) -> None:
        """Take the evidence of these anchors' events to that of all; called when all of them were folded."""
        for (anchor_id, identifiers), (source_class, at_us, message_id, source_id) in self._said.items():
            anchor = self.names.get(anchor_id)
            if anchor is None:
                continue
            given = (Evidence(source_class, at_us, message_id), source_id)
            for other in _pairs.decode(identifiers):
                pair = paired(anchor, other)
                if other != anchor:
                    self.links[pair] = min(given, self.links.get(pair, given))
