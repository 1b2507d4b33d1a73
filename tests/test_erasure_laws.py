"""An erasure leaves exactly what a history without the person would have made of everybody else."""

import json
from random import Random

import pytest
from django.db import connection, transaction
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from cdp import privacy, replay
from cdp.models import IdentityRules, Profile
from tests.conftest import pointed_at
from tests.histories import calls, from_scratch, identifiers_of, messages, named_by, prefix, stored
from tests.test_who_is_who import STRICT, bring, consistent, rules, sources  # noqa: F401 - fixtures


@pytest.fixture(scope="module")
def django(own_core, django_db_setup, django_db_blocker):
    """Point Django at the database of the core."""
    with pointed_at(own_core.url, django_db_blocker):
        yield


def without(sent, gone):
    """Return the messages of others, as an erasure leaves them."""
    left = []
    for source_class, received, body in sent:
        anchor, *others = identifiers_of(body)
        if anchor in gone:
            continue
        kept = json.loads(json.dumps(body))
        for namespace, value in others:
            if (namespace, value) in gone and namespace == "email":
                kept["traits"] = {}
            elif (namespace, value) in gone:
                del kept["previousId" if kept["type"] == "alias" else "anonymousId"]
        left.append((source_class, received, kept))
    return left


def erase(identifier):
    """Erase a person from PostgreSQL, as an erasure does it store by store."""
    asked = privacy.request(reference=str(identifier), actor="test", enqueue=False)
    turn = privacy.Run(asked.pk, privacy.msgspec.convert(asked.work, privacy.Work), 0.0)
    for store in ("postgresql", "clusters", "mentions"):
        with transaction.atomic():
            privacy.STEPS[store](turn)
    return set(turn.work.person.names)


def reached(core, chosen, sent):
    """Return whom an erasure by an identifier is of: its profile's, and what aliases made of its user ids."""
    namespace, value = chosen
    rows = core.rows(
        "SELECT namespace, value FROM cdp_identifier WHERE profile_id ="
        " (SELECT profile_id FROM cdp_identifier WHERE namespace = %s AND value = %s)", namespace, value,
    )  # fmt: skip
    theirs = {(row["namespace"], row["value"]) for row in rows}
    named = {body["previousId"] for _, _, body in sent if body["type"] == "alias"}
    return theirs | {("anonymous_id", one) for _, one in theirs.intersection(("user_id", one) for one in named)}


@given(
    history=calls(aliases=True),
    later=calls(most=5, aliases=True),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    data=st.data(),
)
def test_the_others_are_what_they_would_be_without_the_person(
    own_core, sources, rules, django, history, later, sizes, data  # noqa: F811
):  # fmt: skip
    mark = prefix()
    sent = messages(history, mark)
    bring(own_core, sources, sent, sizes)
    everybody = sorted({one for _, _, body in sent for one in identifiers_of(body)})
    chosen = data.draw(st.sampled_from(everybody))
    wanted_gone = reached(own_core, chosen, sent)
    gone = erase(chosen)
    assert gone == wanted_gone
    left = without(sent, gone)
    wanted = from_scratch(left, rules)
    assert stored(own_core, mark) == {frozenset(one) for one in wanted.clusters}
    consistent(own_core, mark)
    # All of it comes again, and more: what carries somebody who was erased stays out.
    bring(own_core, sources, sent, sizes)
    assert stored(own_core, mark) == {frozenset(one) for one in wanted.clusters}
    more = [(one, received + 500_000_000, body | {"messageId": body["messageId"] + "-later"})
            for one, received, body in messages(later, mark)]  # fmt: skip
    bring(own_core, sources, more, sizes)
    come = [one for one in more if gone.isdisjoint(named_by(one[2]))]
    assert stored(own_core, mark) == {frozenset(one) for one in from_scratch(left + come, rules).clusters}
    consistent(own_core, mark)
    assert not Profile.objects.filter(erased_at__isnull=False).exclude(identity_graph={}).exists()
    with connection.cursor() as cursor:
        cursor.execute("SELECT anchor_id FROM event_stream WHERE anchor_id NOT IN (SELECT id FROM cdp_identifier)")
        assert cursor.fetchall() == []


@pytest.mark.parametrize("namespaces", [None, STRICT])
def test_a_replay_of_what_is_left_comes_to_what_is_held(core, own_database, namespaces):
    if namespaces:
        IdentityRules.objects.create(status="applied", namespaces=namespaces, created_at=timezone.now())
    both = (1, core.source("browser", {"refused_namespaces": [], "refused_traits": []}))
    random = Random(4)
    for _ in range(30):
        some = ["", "0", "1", "2", "3"]
        history = [
            (
                random.randint(0, 1),
                number,
                *(one and letter + one for letter, one in zip("uea", random.choices(some, k=3), strict=True)),
            )
            for number in range(12)
        ]
        aliases = [(random.randint(0, 1), number, *("u" + one for one in random.choices(some[1:], k=2)))
                   for number in range(2)]  # fmt: skip
        sent = messages([one for one in history if any(one[2:])] + aliases, prefix())
        bring(core, both, sent, [random.randint(1, 5)])
        erase(random.choice(sorted({one for _, _, body in sent for one in identifiers_of(body)})))
    assert replay.verify().examples == []
