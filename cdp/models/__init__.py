"""The person: profiles and who is who, events, sources and keys, definitions, and the platform's own rows."""

from cdp.models.accounts import Account, AccountIdentifier, AccountMember
from cdp.models.definitions import DefinitionVersion, MergePolicy, TraitDefinition
from cdp.models.events import DeadLetter, DuplicateGeneration, DuplicateKey, Event
from cdp.models.files import ArchiveFile, EventImport
from cdp.models.identity import Edge, Identifier, IdentityDecision, IdentityRules, Profile, Standing, UnmergeSide
from cdp.models.operations import Checkpoint, Processor, TaskRun
from cdp.models.privacy import AuditEntry, Erasure, SuppressedIdentifier
from cdp.models.sources import ApiKey, Source

__all__ = [
    "Account", "AccountIdentifier", "AccountMember", "ApiKey", "ArchiveFile", "AuditEntry", "Checkpoint", "DeadLetter",
    "DefinitionVersion", "DuplicateGeneration", "DuplicateKey", "Edge", "Erasure", "Event", "EventImport",
    "Identifier", "IdentityDecision", "IdentityRules", "MergePolicy", "Processor", "Profile", "Source", "Standing",
    "SuppressedIdentifier", "TaskRun", "TraitDefinition", "UnmergeSide",
]  # fmt: skip
