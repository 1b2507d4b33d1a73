"""Who is who, to look at: a profile's identifiers, the evidence that joined or failed to join them, and who is near."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from django.db.models import Q, QuerySet

from cdp import masking, unmerging
from cdp.models import Edge, Identifier, IdentityDecision, UnmergeSide
from cdp.models.identity import SourceClass
from cdp.processing.clusters import UNMERGED

# What one picture shows; the rest is told as a number.
MOST_NODES = 60
MOST_NEIGHBOURS = 20
MOST_EDGES = 300
MOST_COUNTED = 10_000


@dataclass(frozen=True, slots=True)
class Node:
    """An identifier; `inside` when it is the profile's own, not a neighbour's."""

    id: int
    namespace: str
    value: str
    profile_id: UUID
    inside: bool
    since: datetime

    @property
    def label(self) -> str:
        """How it is written."""
        return f"{self.namespace}:{self.value}"


@dataclass(frozen=True, slots=True)
class Link:
    """The strongest evidence that two identifiers are one person; `refused` says why they are kept apart, if so.

    `id` is None where there is no evidence, and an unmerge alone (`decision_id`) keeps the two apart.
    """

    id: int | None
    left: Node
    right: Node
    refused: str
    source: str
    source_class: str
    occurred_at: datetime
    message_id: str
    rule_version: int | None
    decision_id: int | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """The nodes and links of a profile, and how many of its identifiers and links there is no room for."""

    nodes: list[Node] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    more_nodes: int = 0
    more_links: bool = False


def read(profile_id: UUID, *, masked: bool = False) -> Graph:
    """Return what is known of who a profile is; values and message ids are `masked` for those who may not see them."""
    mine = Identifier.objects.filter(profile_id=profile_id)
    rows = list(_plain(mine).order_by("id")[:MOST_NODES])
    more = mine[: MOST_COUNTED + MOST_NODES].count() - len(rows)
    nodes = {row.pk: _node(row, profile_id) for row in rows}
    edges, more_links = _edges(profile_id, list(nodes))
    links = []
    for edge in edges:
        for end in (edge.left, edge.right):
            nodes.setdefault(end.pk, _node(end, profile_id))
        links.append(_link(edge, nodes))
    links += _kept_apart(profile_id, nodes, links)
    found = Graph(list(nodes.values()), links, more, more_links)
    return _masked(found) if masked else found


def of_decision(decision_id: int, *, masked: bool = False) -> list[Link]:
    """Return the evidence among the identifiers that a decision names; they count as inside of its profile."""
    decision = IdentityDecision.objects.get(pk=decision_id)
    named = [one for one in decision.detail.get("identifiers", []) if isinstance(one, list) and len(one) == 2]
    wanted = Q()
    for namespace, value in named[:MOST_NODES]:
        wanted |= Q(namespace=namespace, value=value)
    rows = _plain(Identifier.objects.filter(wanted)) if named else []
    nodes = {row.pk: _node(row, decision.profile_id) for row in rows}
    links = [_link(one, nodes) for one in _rows().filter(left__in=nodes, right__in=nodes).order_by("id")[:MOST_EDGES]]
    return _masked(Graph(list(nodes.values()), links)).links if masked else links


def _rows() -> QuerySet[Edge]:
    heavy = (f"{end}__{name}" for end in ("left", "right") for name in ("registers", "trait_states"))
    return Edge.objects.select_related("left", "right", "source").defer(*heavy)


def _plain(rows: QuerySet[Identifier]) -> QuerySet[Identifier]:
    return rows.only("id", "namespace", "value", "profile_id", "created_at")


def _node(row: Identifier, profile_id: UUID) -> Node:
    return Node(row.pk, row.namespace, row.value, row.profile_id, row.profile_id == profile_id, row.created_at)


def _edges(profile_id: UUID, ids: list[int]) -> tuple[list[Edge], bool]:
    """Return the edges among these identifiers, then some of those that lead out of the profile."""
    rows = _rows()
    among = list(rows.filter(left__in=ids, right__in=ids).order_by("id")[: MOST_EDGES + 1])
    out = [
        *rows.filter(left__in=ids).exclude(right__profile_id=profile_id).order_by("id")[: MOST_NEIGHBOURS + 1],
        *rows.filter(right__in=ids).exclude(left__profile_id=profile_id).order_by("id")[: MOST_NEIGHBOURS + 1],
    ]
    shown = among[:MOST_EDGES] + out[:MOST_NEIGHBOURS]
    return shown, len(among) + len(out) > len(shown)


def _link(edge: Edge, nodes: dict[int, Node]) -> Link:
    return Link(
        edge.pk, nodes[edge.left_id], nodes[edge.right_id], edge.refused, edge.source.name,
        SourceClass(edge.source_class).label, edge.occurred_at, edge.message_id, edge.rule_version,
    )  # fmt: skip


def _kept_apart(profile_id: UUID, nodes: dict[int, Node], links: Iterable[Link]) -> list[Link]:
    """Return what unmerges keep apart from the profile's identifiers without any evidence that is shown."""
    shown = {one.id for link in links for one in (link.left, link.right) if not one.inside}
    sides = list(
        UnmergeSide.objects.filter(decision__in=unmerging.standing(profile_id))
        .select_related("decision", "identifier")
        .defer("identifier__registers", "identifier__trait_states")
        .order_by("decision_id", "id")[:MOST_EDGES]
    )
    found = []
    for one in sides:
        ours = next((
            nodes[other.identifier_id] for other in sides
            if other.decision_id == one.decision_id and other.side != one.side
            and other.identifier.profile_id == profile_id and other.identifier_id in nodes
        ), None)  # fmt: skip
        if one.identifier.profile_id != profile_id and one.identifier_id not in shown and ours:
            shown.add(one.identifier_id)
            theirs = nodes.setdefault(one.identifier_id, _node(one.identifier, profile_id))
            found.append(Link(None, ours, theirs, UNMERGED, "", "", one.decision.decided_at, "", None, one.decision_id))
    return found[:MOST_NEIGHBOURS]


def _masked(found: Graph) -> Graph:
    nodes = {one.id: replace(one, value=masking.text(one.value)) for one in found.nodes}
    links = [
        replace(one, left=nodes[one.left.id], right=nodes[one.right.id], message_id=masking.addresses(one.message_id))
        for one in found.links
    ]
    return replace(found, nodes=list(nodes.values()), links=links)
