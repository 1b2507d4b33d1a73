"""Definitions and sources have one version between them, which processors read with every batch."""

from __future__ import annotations

from typing import Any

from django.db.models import F
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver

from cdp.models import DefinitionVersion, MergePolicy, Source, TraitDefinition


@receiver([post_save, post_delete], sender=Source, dispatch_uid="version_sources")
@receiver([post_save, post_delete], sender=TraitDefinition, dispatch_uid="version_traits")
@receiver([post_save, post_delete], sender=MergePolicy, dispatch_uid="version_merge_policies")
def raise_version(sender: object = None, **kwargs: Any) -> None:
    """Let the next batches read sources and definitions anew; called in the transaction that changes one."""
    if not DefinitionVersion.objects.filter(pk=1).update(version=F("version") + 1):
        DefinitionVersion.objects.create(pk=1)
