"""What definitions and sources say: which traits are folded, and what a source may set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cdp.processing import store, traits
from cdp.processing.clusters import Ruleset
from cdp.processing.identity import EMAIL
from cdp.processing.policies import COUNTER, Policies

# What a source of a kind may not set unless its rules say otherwise: browser and mobile keys are public.
PUBLIC_KINDS = frozenset({"browser", "mobile"})
PUBLIC_REFUSALS = {
    "refused_namespaces": [EMAIL], "refused_traits": [EMAIL, "consent"], "refused_calls": ["import"],
    "refused_policies": [COUNTER],
}  # fmt: skip
REFUSALS = tuple(PUBLIC_REFUSALS)


class Trust(NamedTuple):
    """What a source may set, and how far its evidence counts (0 before 1 in canonical order)."""

    source_class: int
    refused_namespaces: frozenset[str]
    refused_traits: frozenset[str]
    refused_calls: frozenset[str]
    refused_policies: frozenset[str] = frozenset()


def trust(kind: str, rules: dict[str, Any]) -> Trust:
    """Return what a source of this kind, with these overrides, may set."""
    public = kind in PUBLIC_KINDS
    merged = (PUBLIC_REFUSALS if public else {}) | rules
    return Trust(int(public), *(frozenset(merged.get(name, ())) for name in REFUSALS))


UNKNOWN_SOURCE = trust("browser", {})


@dataclass(slots=True)
class Rules:
    """Everything that definitions and sources say, as of one version."""

    version: int
    folder: traits.Folder
    trust: dict[int, Trust]
    identity: Ruleset
    policies: Policies = field(default_factory=Policies)

    def source_class(self, source_id: int) -> int:
        """Return how far a source's evidence counts: 0 before 1 in canonical order."""
        return self.trust.get(source_id, UNKNOWN_SOURCE).source_class

    @classmethod
    def load(cls, connection: store.Connection, version: int) -> Rules:
        """Read all definitions and sources."""
        rows = store.sources(connection)
        return cls(
            version,
            traits.Folder(store.definitions(connection)),
            {source_id: trust(row.kind, row.rules) for source_id, row in rows.items()},
            store.identity_rules(connection),
            Policies(store.merge_policies(connection)),
        )
