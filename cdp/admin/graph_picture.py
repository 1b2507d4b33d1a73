"""The picture of an identity graph, as shapes that a template draws: columns by namespace, neighbours to the right.

Pure functions; the same graph is always the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from zlib import crc32

from django.urls import reverse
from django.utils.formats import date_format

from cdp.admin import trace
from cdp.identity_graph import Graph, Link, Node
from cdp.processing.clusters import BLOCKED_VALUE, SHARED, UNMERGED
from cdp.processing.identity import ANONYMOUS_ID, EMAIL, USER_ID

BOX_WIDTH, BOX_HEIGHT, GAP, BETWEEN, EDGE = 184, 42, 12, 56, 8
# Most evidence names a user id: cookies stand on one side of it, and all else on the other.
COLUMNS = {ANONYMOUS_ID: 0, USER_ID: 1}
OTHERS, NEIGHBOURS = 2, 3
# Above and below, for lines that go around.
ROOM = 36
COLOURS = {ANONYMOUS_ID: 0, USER_ID: 1, EMAIL: 2}
OTHER_COLOURS = (3, 4, 5)
TEXT = 24
SWEEPS = 4
_WHY = {
    UNMERGED: "somebody took the two apart", SHARED: "an identifier that many people share",
    BLOCKED_VALUE: "a blocked value, which stands for nobody",
    "two_identified_people": "an alias never joins two identified people",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Box:
    """An identifier's place; `href` leads to its profile where that is another."""

    x: int
    y: int
    node: Node
    text: str
    colour: int
    href: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A link's line; `title` says who joined the two, `href` leads to its row in the table."""

    path: str
    title: str
    href: str
    refused: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A link as a row of the table."""

    link: Link
    why: str
    trace: str
    left_href: str
    right_href: str


@dataclass(frozen=True, slots=True)
class Picture:
    """All shapes, in pixels."""

    width: int = 0
    height: int = 0
    boxes: list[Box] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)


def draw(graph: Graph) -> Picture:
    """Return the picture of a graph; an empty one where there is nothing to see but one identifier."""
    if not graph.links:
        return Picture()
    columns = _ordered(_columns(graph.nodes), graph.links)
    tallest = max(map(len, columns))
    height = tallest * (BOX_HEIGHT + GAP) - GAP + 2 * ROOM
    boxes = {
        node.id: _box(node, number, height / 2 - (len(column) * (BOX_HEIGHT + GAP) - GAP) / 2, row)
        for number, column in enumerate(columns)
        for row, node in enumerate(column)
    }
    width = len(columns) * (BOX_WIDTH + BETWEEN) - BETWEEN + 2 * EDGE
    curves = [_curve(number, one, boxes) for number, one in enumerate(graph.links)]
    return Picture(width, height, list(boxes.values()), curves)


def rows(links: list[Link]) -> list[Row]:
    """Return links as rows of a table."""
    return [
        Row(one, why(one.refused), trace.address(one.message_id), _href(one.left), _href(one.right)) for one in links
    ]


def why(refused: str) -> str:
    """Say in words why two identifiers are kept apart."""
    if refused.startswith("limit_"):
        return f"one person would have too many values of {refused.removeprefix('limit_')}"
    return _WHY.get(refused, refused)


def _columns(nodes: list[Node]) -> list[list[Node]]:
    found: list[list[Node]] = [[] for _ in range(NEIGHBOURS + 1)]
    for node in nodes:
        found[COLUMNS.get(node.namespace, OTHERS) if node.inside else NEIGHBOURS].append(node)
    found[NEIGHBOURS].sort(key=lambda one: (str(one.profile_id), one.id))
    return [column for column in found if column]


def _ordered(columns: list[list[Node]], links: list[Link]) -> list[list[Node]]:
    """Order each column by where its links lead, so that fewer lines cross."""
    near: dict[int, list[int]] = {}
    for link in links:
        near.setdefault(link.left.id, []).append(link.right.id)
        near.setdefault(link.right.id, []).append(link.left.id)
    for _ in range(SWEEPS):
        place = {one.id: (row + 0.5) / len(column) for column in columns for row, one in enumerate(column)}
        for column in columns:
            column.sort(key=lambda one: (_mean([place[other] for other in near.get(one.id, [one.id])]), one.id))
            place |= {one.id: (row + 0.5) / len(column) for row, one in enumerate(column)}
    return columns


def _mean(places: list[float]) -> float:
    return sum(places) / len(places)


def _box(node: Node, column: int, top: float, row: int) -> Box:
    colour = COLOURS.get(node.namespace, OTHER_COLOURS[crc32(node.namespace.encode()) % len(OTHER_COLOURS)])
    text = node.value if len(node.value) <= TEXT else f"{node.value[: TEXT - 1]}…"
    x, y = EDGE + column * (BOX_WIDTH + BETWEEN), int(top) + row * (BOX_HEIGHT + GAP)
    return Box(x, y, node, text, colour, _href(node))


def _href(node: Node) -> str:
    return "" if node.inside else reverse("admin:cdp_profile_change", args=[node.profile_id])


def _curve(number: int, link: Link, boxes: dict[int, Box]) -> Curve:
    one, other = sorted((boxes[link.left.id], boxes[link.right.id]), key=lambda box: (box.x, box.y))
    from_x, from_y, to_y = one.x + BOX_WIDTH, one.y + BOX_HEIGHT // 2, other.y + BOX_HEIGHT // 2
    if one.x == other.x:
        path = f"M {from_x} {from_y} C {from_x + 40} {from_y}, {from_x + 40} {to_y}, {from_x} {to_y}"
    elif other.x - from_x <= BETWEEN:
        half = BETWEEN // 2
        path = f"M {from_x} {from_y} C {from_x + half} {from_y}, {other.x - half} {to_y}, {other.x} {to_y}"
    else:
        # Above the columns in between, whose boxes would hide it, in one of a few lanes.
        lane, turn = 4 + number % 4 * 6, BETWEEN // 2
        path = (
            f"M {from_x} {from_y} C {from_x + turn} {from_y}, {from_x} {lane}, {from_x + turn} {lane}"
            f" H {other.x - turn} C {other.x} {lane}, {other.x - turn} {to_y}, {other.x} {to_y}"
        )
    href = f"#edge-{link.id}" if link.id else reverse("admin:cdp_identitydecision_change", args=[link.decision_id])
    return Curve(path, _title(link), href, bool(link.refused))


def _title(link: Link) -> str:
    what = f"Refused, since {why(link.refused)}" if link.refused else "Joined"
    names = f"{link.left.label} and {link.right.label}"
    at = f"{date_format(link.occurred_at, 'j M Y, H:i:s')} UTC"
    if link.id is None:
        return f"{what}: {names}, {at}"
    return (
        f"{what}: {names}. {link.source} ({link.source_class}), {at}, message {link.message_id},"
        f" rules version {link.rule_version}"
    )
