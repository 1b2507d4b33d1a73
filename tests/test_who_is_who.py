"""Who is who is a function of the evidence: not of the order, the batches or the number in which it came."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp import lookup, unmerging
from cdp.processing import clusters
from cdp.processing.pipeline import again
from cdp.processing.store import Raced
from tests import histories
from tests.conftest import pointed_at
from tests.histories import calls, consistent, from_scratch, identifiers_of, messages, prefix, stored


@pytest.fixture(scope="module")
def sources(own_core):
    """Return the ids of a server's and a browser's source."""
    return (own_core.source("server"), own_core.source("browser", {"refused_namespaces": [], "refused_traits": []}))


STRICT = {
    "user_id": {"limit": 1, "priority": 0, "blocked": [], "shared_after": 0},
    "email": {"limit": 2, "priority": 10, "blocked": [], "shared_after": 0},
    "anonymous_id": {"limit": 2, "priority": 90, "blocked": [], "shared_after": 2},
    "*": {"limit": 5, "priority": 50, "blocked": [], "shared_after": 0},
}


@pytest.fixture(scope="module", params=["default", "strict"])
def rules(request, own_core):
    """Let rules count, and return them."""
    if request.param == "default":
        return clusters.DEFAULT
    row = own_core.rows(
        "INSERT INTO cdp_identityrules (status, namespaces, note, author, created_at, progress)"
        " VALUES ('applied', %s, '', '', now(), '{}') RETURNING version",
        json.dumps(STRICT),
    )
    own_core.rows("UPDATE cdp_definitionversion SET version = version + 1 RETURNING 1")
    return clusters.Ruleset.of(row[0]["version"], STRICT)


def bring(core, sources, sent, sizes):
    """Send messages through the core in batches of these sizes, over and over."""
    left = list(sent)
    while left:
        for size in sizes:
            batch, left = left[:size], left[size:]
            arrivals = []
            for source_class, received, body in batch:
                arrivals += core.arrivals(body, source=sources[source_class], received_us=received)
            if arrivals:
                take(core, arrivals)


def take(core, arrivals):
    """Send a batch through the core, and again where somebody was taken apart since, as the engine does."""
    try:
        core.take(arrivals)
    except Raced:
        core.pipeline.forget()
        core.take(again(arrivals))


@given(
    history=calls(), random=st.randoms(use_true_random=False), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3)
)
def test_any_order_any_batches_and_any_repetition_make_the_same_people(
    own_core, sources, rules, history, random, sizes
):
    mark = prefix()
    sent = messages(history, mark)
    wanted = from_scratch(sent, rules)
    arrived = random.sample(sent, len(sent))
    again = [
        (one[0], one[1], one[2] | {"messageId": one[2]["messageId"]}) for one in random.sample(sent, len(sent) // 2)
    ]
    bring(own_core, sources, arrived + again, sizes)
    assert stored(own_core, mark) == {frozenset(one) for one in wanted.clusters}
    rows = own_core.rows(
        "SELECT l.namespace AS ln, l.value AS lv, r.namespace AS rn, r.value AS rv, refused FROM cdp_edge"
        " JOIN cdp_identifier l ON l.id = left_id JOIN cdp_identifier r ON r.id = right_id WHERE l.value LIKE %s",
        mark + "%",
    )
    found = {histories.paired((row["ln"], row["lv"]), (row["rn"], row["rv"])): row["refused"] for row in rows}
    assert found == wanted.refused
    consistent(own_core, mark)
    anchors = Counter(identifiers_of(body)[0] for _, _, body in sent)
    events = own_core.rows("SELECT count(*) AS n FROM event_stream WHERE message_id LIKE %s", mark + "%")
    assert events[0]["n"] == sum(anchors.values())


@pytest.fixture(scope="module")
def django(own_core, django_db_setup, django_db_blocker):
    """Point Django at the database of the core."""
    with pointed_at(own_core.url, django_db_blocker):
        yield


changes = st.lists(st.tuples(st.sampled_from(["unmerge", "lift"]), st.randoms(use_true_random=False)), max_size=4)


@given(history=calls(), steps=changes, random=st.randoms(use_true_random=False))
def test_merges_and_retractions_in_any_order_equal_a_build_from_scratch(
    own_core, sources, rules, django, history, steps, random
):
    mark = prefix()
    sent = messages(history, mark)
    parts = [sent[number :: len(steps) + 1] for number in range(len(steps) + 1)]
    unmerges = {}
    bring(own_core, sources, parts[0], [3])
    for (step, choice), part in zip(steps, parts[1:], strict=True):
        {"unmerge": take_apart, "lift": put_together}[step](own_core, mark, choice, unmerges)
        bring(own_core, sources, part, [2])
    wanted = from_scratch(sent, rules, list(unmerges.values()))
    assert stored(own_core, mark) == {frozenset(one) for one in wanted.clusters}
    consistent(own_core, mark)
    while unmerges:
        put_together(own_core, mark, random, unmerges)
    assert stored(own_core, mark) == {frozenset(one) for one in from_scratch(sent, rules).clusters}
    consistent(own_core, mark)


def take_apart(core, mark, random, unmerges):
    """Unmerge some of the identifiers of somebody who has several."""
    several = sorted(sorted(one) for one in stored(core, mark) if len(one) > 1)
    if not several:
        return
    person = random.choice(several)
    taken = random.sample(person, random.randint(1, len(person) - 1))
    decision = unmerging.unmerge(profile_id=lookup.by_identifier(*person[0]), identifiers=taken, author="test")
    sides = {one: int(one in taken) for one in person}
    unmerges[decision.decision_id] = clusters.Unmerge(decision.decision_id, decision.decision_id, sides)
    last = decision.parts[-1]
    assert set(taken) & set(last.identifiers)
    for part in decision.parts:
        assert len({sides[one] for one in part.identifiers if one in sides}) < 2


def put_together(core, mark, random, unmerges):
    """Lift one of the unmerges that stand."""
    if unmerges:
        chosen = random.choice(sorted(unmerges))
        del unmerges[chosen]
        unmerging.lift(chosen, author="test")
