"""Looking over identity decisions: a person notes that they have seen one."""

from __future__ import annotations

from collections.abc import Iterable

from django.db import transaction

from cdp import audit
from cdp.models import IdentityDecision
from martech.lib import clock


def review(ids: Iterable[int], *, author: str) -> int:
    """Mark decisions as reviewed, and return how many were not yet."""
    wanted = sorted(ids)
    with transaction.atomic():
        fresh = IdentityDecision.objects.filter(pk__in=wanted, reviewed_at=None)
        done = fresh.update(reviewed_at=clock.now(), reviewed_by=author[:255])
        if done:
            audit.record(
                actor=author, action="identity_decision.review", object_type="identity_decision", object_id=wanted[0],
                detail={"decisions": wanted[:1000], "reviewed": done},
            )  # fmt: skip
    return done
