"""From deliveries to the log's entries: none so large that a reader of many takes up too much memory."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from cdp.log.base import Delivery, Entry, Event, encode_entry

# A larger entry holds one event alone, or events of a request with a large head.
ENTRY_BYTES = 2**18
# What MessagePack and the fields beside its body add to an event, at the most of what is usual.
EVENT_BYTES = 64


def payloads(deliveries: list[Delivery]) -> list[bytes]:
    """Return the entries of a partition's deliveries, in their order, each of about `ENTRY_BYTES` at the most.

    A head that takes up half of that or more is repeated only for as many bytes of events as it has itself.
    """
    whole = encode_entry(Entry(deliveries))
    # The usual case; only what is too large is looked at event by event.
    if len(whole) <= ENTRY_BYTES:
        return [whole]
    return [encode_entry(Entry(part)) for part in _parts(deliveries)]


def _parts(deliveries: list[Delivery]) -> Iterator[list[Delivery]]:
    part: list[Delivery] = []
    size = 0
    for delivery in deliveries:
        for piece, piece_size in _pieces(delivery):
            if part and size + piece_size > ENTRY_BYTES:
                yield part
                part, size = [], 0
            part.append(piece)
            size += piece_size
    if part:
        yield part


def _pieces(delivery: Delivery) -> Iterator[tuple[Delivery, int]]:
    """Cut a delivery into some with the same head, and say how large each is."""
    head = len(delivery.context) + len(delivery.integrations) + EVENT_BYTES
    events: list[Event] = []
    size, room = head, max(ENTRY_BYTES, 2 * head)
    for event in delivery.events:
        event_size = len(event.body) + len(event.message_id) + EVENT_BYTES
        if events and size + event_size > room:
            yield replace(delivery, events=events), size
            events, size = [], head
        events.append(event)
        size += event_size
    yield replace(delivery, events=events), size
