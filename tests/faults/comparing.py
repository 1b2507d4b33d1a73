"""What the platform holds of a round, compared with the sender's ledger. Each difference is a line of text."""

import json
from collections import Counter
from datetime import datetime
from decimal import Decimal
from random import Random

from tests.faults.bed import Bed
from tests.faults.sending import Ledger

# How many differences of a kind are told one by one.
TOLD = 10
READ_PROFILES = 200


def differences(bed: Bed, ledger: Ledger, *, tag: str, since: datetime, chance: Random) -> list[str]:
    """Return what is lost, doubled, put aside or otherwise than it was sent, of the round `tag` begun at `since`."""
    stored = Counter(
        name
        for (name,) in bed.rows(
            "SELECT message_id FROM event_stream WHERE ingested_at >= %s AND message_id LIKE %s", [since, f"{tag}-%"]
        )
    )
    aside = bed.rows("SELECT reason, message_id, detail FROM cdp_deadletter")
    return [
        *told("lost", sorted(ledger.messages.keys() - stored.keys())),
        *told("doubled", sorted(one for one, times in stored.items() if times > 1)),
        *told("never acknowledged", sorted(stored.keys() - ledger.messages.keys())),
        *told("put aside", sorted(map(str, aside))),
        *told("otherwise in PostgreSQL", _other_people(_stored_people(bed, tag), ledger)),
        *told("otherwise as read", _other_people(_read_people(bed, ledger, chance), ledger, whole=False)),
    ]


def told(kind: str, found: list[str]) -> list[str]:
    """Return the first of what was found of a kind, and how many there are."""
    lines = [f"{kind}: {one}" for one in found[:TOLD]]
    return [*lines, f"{kind}: {len(found)} in all"] if found else []


def _stored_people(bed: Bed, tag: str) -> dict[str, tuple]:
    rows = bed.rows(
        "SELECT i.value, p.computed_traits::text, p.traits::text FROM cdp_identifier i"
        " JOIN customer_profiles p ON p.id = i.profile_id WHERE i.namespace = 'user_id' AND i.value LIKE %s",
        [f"{tag}-%"],
    )
    return {name: _person(_numbers(computed), json.loads(traits)) for name, computed, traits in rows}


def _numbers(text: str) -> dict:
    return json.loads(text, parse_float=Decimal)


def _read_people(bed: Bed, ledger: Ledger, chance: Random) -> dict[str, tuple]:
    names = chance.sample(sorted(ledger.people), min(READ_PROFILES, len(ledger.people)))
    token = bed.token()
    documents = {name: bed.profile(f"user_id:{name}", token) for name in names}
    return {name: _person(one["computed_traits"], one["traits"]) for name, one in documents.items()}


def _person(computed: dict, traits: dict) -> tuple:
    return computed.get("event_count", 0), Decimal(computed.get("total_spent", 0)), traits


def _other_people(found: dict[str, tuple], ledger: Ledger, *, whole: bool = True) -> list[str]:
    sent = {name: (one.events, one.spent, one.traits) for name, one in ledger.people.items()}
    names = sent.keys() | found.keys() if whole else found.keys()
    return [
        f"{name} has {found.get(name)}, was sent {sent.get(name)}"
        for name in sorted(names)
        if found.get(name) != sent.get(name)
    ]
