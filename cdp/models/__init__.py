"""The person: profiles and who is who, events, sources and keys, definitions, and the platform's own rows."""

from cdp.models.definitions import DefinitionVersion, TraitDefinition
from cdp.models.events import DeadLetter, DuplicateGeneration, DuplicateKey, Event
from cdp.models.identity import Edge, Identifier, IdentityDecision, Profile
from cdp.models.operations import Checkpoint, Processor, TaskRun
from cdp.models.sources import ApiKey, Source

__all__ = [
    "ApiKey", "Checkpoint", "DeadLetter", "DefinitionVersion", "DuplicateGeneration", "DuplicateKey",
    "Edge", "Event", "Identifier", "IdentityDecision", "Processor", "Profile", "Source", "TaskRun", "TraitDefinition",
]  # fmt: skip
