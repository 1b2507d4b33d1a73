"""The identity graph, bounded, and its picture."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp import identity_graph
from cdp.admin import graph_picture
from cdp.identity_graph import Graph, Link, Node
from cdp.models import Edge, UnmergeSide
from tests.factories import NOON, make_decision, make_profile, make_source

OURS, OTHERS = (f"00000000-0000-0000-0000-00000000000{number}" for number in (1, 2))


def join(profile, other, source, refused=""):
    """Put down evidence of the first identifiers of each of two profiles, or of all of one with its first."""
    mine = list(profile.identifiers.order_by("pk"))
    for one in mine[1:] if other is profile else other.identifiers.all():
        Edge.objects.create(
            left=min(mine[0], one, key=lambda row: row.pk), right=max(mine[0], one, key=lambda row: row.pk),
            source=source, source_class=0, occurred_at=NOON, message_id=f"m-{one.pk}", refused=refused,
        )  # fmt: skip


@pytest.mark.django_db
def test_of_many_identifiers_the_first_are_shown_and_the_rest_counted():
    shop = make_source("shop")
    ann = make_profile(*(("crm_id", f"c{number:03}") for number in range(75)))
    join(ann, ann, shop)
    found = identity_graph.read(ann.pk)
    assert (len(found.nodes), found.more_nodes, len(found.links)) == (60, 15, 59)
    assert [one.value for one in found.nodes[:2]] == ["c000", "c001"]


@pytest.mark.django_db
def test_of_a_kiosk_some_neighbours_are_shown(django_assert_max_num_queries):
    shop, kiosk = make_source("shop"), make_profile(("anonymous_id", "kiosk"))
    for number in range(30):
        join(kiosk, make_profile(("user_id", f"u{number}")), shop, "shared_identifier")
    with django_assert_max_num_queries(8):
        found = identity_graph.read(kiosk.pk)
    assert (len(found.nodes), len(found.links), found.more_links) == (21, 20, True)
    assert [one.inside for one in found.nodes] == [True] + [False] * 20


@pytest.mark.django_db
def test_an_unmerge_leads_to_a_neighbour_without_evidence_too():
    ann, tablet = make_profile(("user_id", "ann")), make_profile(("anonymous_id", "tablet-1"))
    decision = make_decision(ann, tablet, kind="unmerge", reason="by_hand")
    for side, profile in enumerate((ann, tablet)):
        UnmergeSide.objects.create(decision=decision, identifier=profile.identifiers.get(), side=side)
    [link] = identity_graph.read(ann.pk).links
    assert (link.id, link.refused, link.decision_id) == (None, "unmerged", decision.pk)
    assert {link.left.value, link.right.value} == {"ann", "tablet-1"}
    [masked] = identity_graph.read(tablet.pk, masked=True).links
    assert {masked.left.value, masked.right.value} == {"•••", "t•••"}


def node(number, namespace="email", profile=OURS):
    return Node(number, namespace, f"value-{number}", profile, profile == OURS, NOON)


def link(number, left, right, refused=""):
    return Link(number, left, right, refused, "shop", "Server", NOON, f"m-{number}", 1)


def graph_of(given, pairs):
    nodes = [node(number, *one) for number, one in enumerate(given, 1)]
    ends = [(nodes[one % len(nodes)], nodes[other % len(nodes)]) for one, other in pairs]
    return Graph(nodes, [link(number, *pair) for number, pair in enumerate(ends, 1)])


namespaces, owners = st.sampled_from(["user_id", "email", "anonymous_id", "crm_id"]), st.sampled_from([OURS, OTHERS])
graphs = st.builds(
    graph_of,
    st.lists(st.tuples(namespaces, owners), min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), min_size=1, max_size=60),
)


@given(graphs)
def test_no_two_identifiers_are_drawn_in_one_place_and_all_are_inside(graph):
    picture = graph_picture.draw(graph)
    places = {(box.x, box.y) for box in picture.boxes}
    assert len(places) == len(picture.boxes) == len(graph.nodes)
    for box in picture.boxes:
        assert 0 <= box.x <= picture.width - graph_picture.BOX_WIDTH
        assert 0 <= box.y <= picture.height - graph_picture.BOX_HEIGHT
        below = (box.x, box.y + graph_picture.BOX_HEIGHT)
        assert all(x != box.x or y == box.y or abs(y - box.y) >= graph_picture.BOX_HEIGHT for x, y in places), below
    assert picture == graph_picture.draw(graph)
    assert len(picture.curves) == len(graph.links)


def test_there_is_no_picture_of_one_identifier():
    assert graph_picture.draw(Graph([node(1)])) == graph_picture.Picture()
