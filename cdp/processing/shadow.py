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
        rules, deltas = self.rules, self.deltas
        for row in rows:
            self.events += 1
            if row.message.type not in TYPES:
                # A decision of somebody's, which the timeline shows.
                continue
            message = row.message
            if message.type == "group":
                message.anchor = self.names.get(row.anchor_id, NOBODY)
                fold_account(rules, self.accounts, message)
            if not row.anchor_id:
                continue
            delta = deltas.get(row.anchor_id)
            if delta is None:
                delta = deltas[row.anchor_id] = Delta()
            message.anchor = self.names.get(row.anchor_id, NOBODY)
            fold_person(rules, delta, message)
            if row.identifiers:
                self._note_evidence(row)

    def _note_evidence(self, row: Row) -> None:
        message = row.message
        source_class = self._classes.get(message.source_id)
        if source_class is None:
            source_class = self._classes[message.source_id] = self.rules.source_class(message.source_id)
        at_us = message.received_us if source_class else min(message.occurred_us, message.received_us)
        key, given = (row.anchor_id, row.identifiers), (source_class, at_us, message.message_id, message.source_id)
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
