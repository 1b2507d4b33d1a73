"""How the values of given traits become one: policies made and changed, each change with a version of its own."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import IntegrityError, transaction
from django.db.models import F

from cdp.definitions import raise_version
from cdp.models import MergePolicy, Source
from cdp.processing.consent import TRAIT as CONSENT
from martech.lib.errors import PermanentError

_PRIORITY = MergePolicy.Policy.SOURCE_PRIORITY


def check(*, trait: str, policy: str, sources: Sequence[int]) -> None:
    """Raise ValueError, which says what is wrong and what to do, for a policy that cannot be."""
    if trait == CONSENT:
        raise ValueError("Consent has a policy of its own: the latest opt-in with evidence and the latest opt-out.")
    if policy == _PRIORITY and not sources:
        raise ValueError("Source priority needs `sources`: their ids, the most trusted first.")
    if policy != _PRIORITY and sources:
        raise ValueError("Only source priority has `sources`.")
    if len(set(sources)) < len(sources):
        raise ValueError("A source is named twice.")
    missing = sorted(set(sources) - set(Source.objects.filter(pk__in=sources).values_list("pk", flat=True)))
    if missing:
        raise ValueError(f"There is no source {missing[0]}.")


def create(*, trait: str, policy: str, sources: Sequence[int] = ()) -> MergePolicy:
    """Make a trait's policy; ValueError for one that cannot be, PermanentError where the trait has one."""
    check(trait=trait, policy=policy, sources=sources)
    try:
        with transaction.atomic():
            return MergePolicy.objects.create(trait=trait, policy=policy, sources=list(sources))
    except IntegrityError as error:
        raise PermanentError(f"{trait} has a merge policy. Change that one.", code="name_taken") from error


def change(policy: MergePolicy, *, kind: str, sources: Sequence[int]) -> None:
    """Change a policy, whose version rises: what later events say then stands above what was kept before.

    Until then the older state shows; `manage.py replay --repair` brings all of it under the new policy.
    """
    check(trait=policy.trait, policy=kind, sources=sources)
    if (kind, list(sources)) == (policy.policy, policy.sources):
        return
    with transaction.atomic():
        MergePolicy.objects.filter(pk=policy.pk).update(policy=kind, sources=list(sources), version=F("version") + 1)
        raise_version()
        policy.refresh_from_db()
