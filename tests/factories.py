"""Rows for tests, made in the database of Django's test run."""

import json
from datetime import UTC, datetime, timedelta
from itertools import count

import msgspec
from django.contrib.auth.models import Group, User
from django.db import connection

from cdp import keys
from cdp.log.base import Delivery, Event
from cdp.models import (
    Account,
    AccountIdentifier,
    AccountMember,
    DeadLetter,
    Identifier,
    IdentityDecision,
    Profile,
    Source,
)
from cdp.processing.accounts import Membership, Said
from martech.lib import clock

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
_numbers = count(1)


def make_source(name="", **fields):
    return Source.objects.create(name=name or f"source-{next(_numbers)}", **fields)


def make_profile(*identifiers, **fields):
    """Make a profile with identifiers given as (namespace, value)."""
    graph: dict[str, list[str]] = {}
    for namespace, value in identifiers:
        graph.setdefault(namespace, []).append(value)
    profile = Profile.objects.create(
        **{"timestamp": NOON, "created_at": NOON + timedelta(seconds=next(_numbers)), "identity_graph": graph, **fields}
    )
    for namespace, value in identifiers:
        Identifier.objects.create(namespace=namespace, value=value, profile=profile, created_at=NOON)
    return profile


def make_event(profile, source, *, minute=0, anchor=None, **fields):
    """Append an event of the profile's first identifier to the stream; return its event_id."""
    anchor = anchor or profile.identifiers.order_by("id").first()
    row = {
        "ingested_at": datetime.now(UTC),
        "profile_id": profile.pk,
        "anchor_id": anchor.pk,
        "identifiers": [[anchor.namespace, anchor.value]],
        "event_type": "track",
        "name": "Signed Up",
        "properties": {},
        "context": {},
        "source_id": source.pk,
        "message_id": f"m-{next(_numbers)}",
        "occurred_at": NOON + timedelta(minutes=minute),
        "received_at": NOON + timedelta(minutes=minute),
        "flags": [],
        **fields,
    }
    values = [json.dumps(value) if isinstance(value, dict) or name == "identifiers" else value
              for name, value in row.items()]  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO event_stream ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))}) RETURNING event_id",
            values,
        )
        return cursor.fetchone()[0]


def make_dead_letter(source, *, body=b'{"type": "track"}', message_id="", **fields):
    delivery = Delivery(source.pk, 1_777_777_777_000_000, "", b"", b"", [Event("", message_id, 0, body)])
    return DeadLetter.objects.create(
        **{
            "reason": "missing_id",
            "detail": "The event has no usable userId.",
            "source": source,
            "message_id": message_id,
            "delivery": msgspec.msgpack.encode(delivery),
            "received_at": NOON,
            "created_at": NOON,
            "log_partition": 3,
            "log_position": "1-0",
            **fields,
        }
    )


def make_decision(profile, other=None, **fields):
    return IdentityDecision.objects.create(
        **{
            "kind": "merge",
            "reason": "identify",
            "detail": {"left": ["user_id", "user-1"]},
            "profile": profile,
            "other": other,
            "message_id": "m-1",
            "occurred_at": NOON,
            "decided_at": NOON,
            **fields,
        }
    )


def make_api_key(*scopes, **fields):
    """Make an API key; return the header that shows it."""
    _key, secret = keys.create_api_key(name=f"key-{next(_numbers)}", scopes=scopes or ["all"], **fields)
    return {"Authorization": f"Bearer {secret}"}


def make_user(role="", **fields):
    """Make somebody who may log in to the admin, in a role."""
    user = User.objects.create_user(
        f"{role or 'nobody'}-{next(_numbers)}", password="correct horse battery", is_staff=True, **fields
    )
    if role:
        user.groups.add(Group.objects.get(name=role))
    return user


def make_account(*identifiers, **fields):
    """Make an account that is called so: pairs of namespace and value."""
    account = Account.objects.create(
        **{"timestamp": NOON, "created_at": NOON + timedelta(seconds=next(_numbers)), **fields}
    )
    for namespace, value in identifiers:
        AccountIdentifier.objects.create(namespace=namespace, value=value, account=account, created_at=NOON)
    return account


def join(account, identifier, *, role="", day=0, left=False):
    """Make an identifier a member, as one group call of so many days after the first of November does."""
    at = NOON + timedelta(days=day)
    said = {"at_us": clock.to_us(at), "rank": 1, "message_id": f"m-{next(_numbers)}"}
    membership = Membership(None if left else said["at_us"], Said(left, **said), Said(role, **said) if role else None)
    return AccountMember.objects.create(
        account=account, identifier=identifier, role=role, joined_at=at, left_at=at if left else None,
        register=msgspec.to_builtins(membership),
    )  # fmt: skip
