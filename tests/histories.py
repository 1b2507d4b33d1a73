"""Random histories of people, and what the rules make of them from scratch."""

from collections import Counter
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from cdp.processing import clusters, registers
from cdp.processing.clusters import Evidence, Link, paired
from cdp.processing.identity import Identifier, anchor_of

_numbers = count(1)
START_US = 1_780_000_000_000_000
NAMESPACES = ("user_id", "email", "anonymous_id")
# The examples of each property in `make test-laws`.
FULL = 200


def random_histories(*seeds):
    """Run a test with seeds: with one beside all other tests, with all of them among the laws."""

    def marked(test):
        some = seeds if settings().max_examples >= FULL else seeds[:1]
        return pytest.mark.laws(pytest.mark.parametrize("seed", some)(test))

    return marked


class Call(dict):
    """A message of a history, with its source class."""


def calls(people=4, most=14, sources=(0, 1), aliases=False):
    """Return a strategy of lists of (source class, time, user, email, anonymous id); an absent one is "".

    With `aliases` some are of four: source class, time, user, and the user id that an alias says they had before.
    """
    some = {name: st.sampled_from(["", *(f"{name[0]}{number}" for number in range(people))]) for name in NAMESPACES}
    one = st.tuples(st.sampled_from(sources), st.integers(0, 20), *(some[name] for name in NAMESPACES))
    one = one.filter(lambda call: any(call[2:]))
    if aliases:
        users = st.sampled_from([f"u{number}" for number in range(people)])
        one = one | st.tuples(st.sampled_from(sources), st.integers(0, 20), users, users)
    return st.lists(one, min_size=1, max_size=most)


def prefix():
    """Return a text that sets one example's identifiers apart from those of all others."""
    return f"x{next(_numbers)}-"


def messages(history, mark):
    """Return (source class, received, message) for each call of a history."""
    found = []
    for number, (source_class, at, *said) in enumerate(history):
        body = {
            "messageId": f"{mark}{number}", "timestamp": (START_US + at * 1_000_000) // 1000,
            **(_alias(mark, *said) if len(said) == 2 else _identify(mark, *said)),
        }  # fmt: skip
        found.append((source_class, START_US + (100 + number) * 1_000_000, body))
    return found


def _identify(mark, user, email, anonymous):
    return {
        "type": "identify", "traits": {"email": mark + email} if email else {},
        **({"userId": mark + user} if user else {}),
        **({"anonymousId": mark + anonymous} if anonymous else {}),
    }  # fmt: skip


def _alias(mark, user, previous):
    return {"type": "alias", "userId": mark + user, "previousId": mark + previous, "traits": {}}


def identifiers_of(body):
    """Return a message's identifiers, the anchor first."""
    given = [("user_id", body.get("userId")), ("email", body["traits"].get("email")),
             ("anonymous_id", body.get("anonymousId")), ("anonymous_id", body.get("previousId"))]  # fmt: skip
    found = [Identifier(namespace, value) for namespace, value in given if value]
    anchor = anchor_of(found)
    return [anchor, *(one for one in found if one != anchor)]


def named_by(body):
    """Return all that a message may name: an alias's previous id is a user's, or an anonymous one."""
    previous = body.get("previousId")
    return [*identifiers_of(body), *([Identifier("user_id", previous)] if previous else [])]


def links(sent):
    """Return the links of messages, each pair with its strongest evidence."""
    found = {}
    for source_class, received, body in sent:
        anchor, *others = identifiers_of(body)
        at = received if source_class else min(body["timestamp"] * 1000, received)
        for other in others:
            link = Link(*paired(anchor, other), Evidence(source_class, at, body["messageId"]), 1 + source_class)
            held = found.get(link.pair)
            if held is None or link.evidence < held.evidence:
                found[link.pair] = link
    return found


def from_scratch(sent, rules=clusters.DEFAULT, unmerges=()):
    """Return what the rules make of messages: a set of frozen sets of identifiers."""
    everyone = [one for _, _, body in sent for one in identifiers_of(body)]
    return clusters.derive(everyone, links(sent).values(), rules, unmerges)


def stored(core, mark):
    """Return what PostgreSQL says: a set of frozen sets of identifiers."""
    rows = core.rows("SELECT namespace, value, profile_id FROM cdp_identifier WHERE value LIKE %s", mark + "%")
    found = {}
    for row in rows:
        found.setdefault(row["profile_id"], set()).add(Identifier(row["namespace"], row["value"]))
    return {frozenset(one) for one in found.values()}


def consistent(core, mark):
    """Fail where profiles are not what their identifiers say."""
    profiles = core.rows(
        "SELECT id, identity_graph, registers::text, trait_states, merged_into_id FROM customer_profiles"
        " WHERE id IN (SELECT profile_id FROM cdp_identifier WHERE value LIKE %s)",
        mark + "%",
    )
    for profile in profiles:
        held = core.rows(
            "SELECT namespace, value, registers::text, trait_states FROM cdp_identifier WHERE profile_id = %s",
            profile["id"],
        )
        graph = {(namespace, value) for namespace, values in profile["identity_graph"].items() for value in values}
        assert graph == {(row["namespace"], row["value"]) for row in held}
        combined, counts = {}, Counter()
        for row in held:
            combined = registers.combine(combined, registers.load(row["registers"]))
            counts.update({"1.1": row["trait_states"].get("1.1", 0)})
        assert registers.load(profile["registers"]) == combined
        assert profile["trait_states"].get("1.1", 0) == counts["1.1"]
        assert profile["merged_into_id"] is None
