"""Writing down whom nobody may bring back, and lifting that."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from django.conf import settings
from django.db import transaction

from cdp import audit
from cdp.definitions import raise_version
from cdp.models import Erasure, SuppressedIdentifier
from cdp.processing import suppression
from cdp.processing.identity import Identifier
from martech.lib import clock
from martech.lib.errors import PermanentError


def key() -> bytes:
    """Return the key of the hashes."""
    found: bytes = settings.CONFIG.privacy_key
    return found


def add(identifiers: Iterable[Identifier], erasure_id: UUID | None) -> int:
    """Keep identifiers out from the caller's commit on; return how many of them were not kept out before."""
    identifiers, now = list(identifiers), clock.now()
    SuppressedIdentifier.objects.bulk_create(
        [SuppressedIdentifier(digest=suppression.canary(key()), created_at=now)], ignore_conflicts=True
    )
    digests = [suppression.digest(key(), one) for one in identifiers]
    before = SuppressedIdentifier.objects.filter(digest__in=digests).count()
    SuppressedIdentifier.objects.bulk_create(
        [SuppressedIdentifier(digest=one, erasure_id=erasure_id, created_at=now) for one in digests],
        ignore_conflicts=True,
    )
    # Processors read anew whether anybody is kept out.
    raise_version()
    return len(digests) - before


def lift(identifier: Identifier, *, actor: str) -> bool:
    """Let an identifier come back; False where it was not kept out. PermanentError while it is being erased."""
    digest = suppression.digest(key(), identifier)
    with transaction.atomic():
        row = (
            SuppressedIdentifier.objects.select_for_update(of=("self",))
            .select_related("erasure")
            .filter(digest=digest)
            .first()
        )
        if row is None:
            return False
        if row.erasure is not None and row.erasure.status != Erasure.Status.DONE:
            raise PermanentError("It is being erased right now. Lift it when that is done.", code="erasure_running")
        row.delete()
        raise_version()
        audit.record(
            actor=actor, action="suppression.lift", object_type="suppressedidentifier", object_id=digest.hex(),
            detail={"namespace": identifier.namespace, "erasure": str(row.erasure_id)},
        )  # fmt: skip
    return True
