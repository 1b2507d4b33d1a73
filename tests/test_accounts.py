"""Accounts as group calls make them: their traits, what they are called, and who belongs to them."""

import itertools
import json
import threading
from contextlib import closing
from datetime import UTC, datetime

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdp.processing import accounts
from cdp.processing.store import Raced
from martech.lib import clock
from tests.platform import Core, message

RECEIVED = clock.to_us(datetime(2026, 6, 1, tzinfo=UTC))


def at(day):
    return datetime(2026, 1, day, tzinfo=UTC)


def group(group_id="acme", *, day=1, traits=None, membership=None, external=(), **fields):
    """Return a group call of the first days of January."""
    context = {} if membership is None else {"membership": membership}
    if external:
        named = [{"id": value, "type": kind, "collection": "accounts"} for kind, value in external]
        context["externalIds"] = named
    sent = {"userId": "u1"} | fields
    return message("group", groupId=group_id, traits=traits or {}, context=context, timestamp=at(day).isoformat(),
                   **sent)  # fmt: skip


def account(core, reference="group_id:acme"):
    """Return the row of an account, None where it is unknown."""
    namespace, _, value = reference.partition(":")
    found = core.rows(
        "SELECT a.* FROM cdp_account a JOIN cdp_accountidentifier i ON i.account_id = a.id"
        " WHERE i.namespace = %s AND i.value = %s", namespace, value,
    )  # fmt: skip
    return found[0] if found else None


def members(core, reference="group_id:acme"):
    """Return the members of an account by identifier: role, when they joined and when they left."""
    rows = core.rows(
        "SELECT i.namespace, i.value, m.role, m.joined_at, m.left_at FROM cdp_accountmember m"
        " JOIN cdp_identifier i ON i.id = m.identifier_id WHERE m.account_id = %s ORDER BY i.namespace, i.value",
        account(core, reference)["id"],
    )
    return {f"{row['namespace']}:{row['value']}": (row["role"], row["joined_at"], row["left_at"]) for row in rows}


def test_a_group_call_makes_an_account_with_traits_and_a_member(core):
    core.apply(group(traits={"name": "Acme", "employees": 12}, membership={"role": "owner"}, day=3))
    made = account(core)
    assert (made["traits"], made["version"]) == ({"name": "Acme", "employees": 12}, 1)
    assert made["created_at"] == made["timestamp"]
    assert members(core) == {"user_id:u1": ("owner", at(3), None)}


def test_a_group_call_stays_in_the_timeline_and_says_nothing_of_the_person(core):
    core.apply(group(traits={"name": "Acme"}))
    (event,) = core.events()
    assert (event["event_type"], event["properties"], event["extra"]) == (
        "group",
        {"name": "Acme"},
        {"groupId": "acme"},
    )
    profile = core.profile("user_id:u1")
    assert (profile["traits"], profile["computed_traits"]["event_count"]) == ({}, 1)


def test_account_traits_go_by_time_and_not_by_arrival(core):
    core.apply(group(day=2, traits={"plan": "new", "city": "Bonn"}))
    core.apply(group(day=1, traits={"plan": "old", "size": 9}, userId="u2"))
    core.apply(group(day=3, traits={"city": None}, userId="u3"))
    assert account(core)["traits"] == {"plan": "new", "size": 9}
    assert account(core)["version"] == 3


def test_a_batch_of_many_calls_on_one_account_writes_it_once(core):
    core.apply(*[group(day=1 + n % 9, traits={"n": n}, userId=f"u{n}") for n in range(1000)])
    core.apply(*[group(day=10, traits={"n": n}, userId=f"u{n % 2}", messageId=f"z{n:04}") for n in range(1000)])
    assert account(core)["version"] == 2000
    assert account(core)["traits"] == {"n": 999}
    assert len(members(core)) == 1000
    core.writer.execute("SELECT pg_stat_force_next_flush()")
    assert core.rows("SELECT n_tup_upd AS updates FROM pg_stat_user_tables WHERE relname = 'cdp_account'") == [
        {"updates": 2}
    ]


@pytest.mark.parametrize("given_id", [42, "42", " 42 "])
def test_a_group_id_is_cleaned_like_other_values(core, given_id):
    core.apply(group(given_id))
    assert account(core, "group_id:42")["version"] == 1
    assert core.events()[0]["extra"] == {"groupId": "42"}


@pytest.mark.parametrize("given_id", ["", None, "null", "undefined", 0, True, {}, ["acme"], " "])
def test_a_group_call_without_a_usable_group_id_is_put_aside(core, given_id):
    core.apply(group(given_id))
    assert core.letters() == ["missing_group_id"]
    assert core.rows("SELECT id FROM cdp_account") == []


def test_a_name_of_an_account_that_is_too_long_is_put_aside(core):
    core.apply(group("x" * 512), group("x" * 513), group(external=[("crm", "x" * 513)]))
    assert core.letters() == ["identifier_too_long"] * 2
    assert account(core, "group_id:" + "x" * 512)["version"] == 1


def test_external_ids_of_the_collection_accounts_name_the_account_and_not_the_person(core):
    core.apply(group(external=[("salesforce", "001"), ("hubspot", 77)]))
    assert account(core, "salesforce:001") == account(core, "hubspot:77") == account(core)
    assert core.profile("user_id:u1")["identity_graph"] == {"user_id": ["u1"]}
    core.apply(message(userId="u2", context={"externalIds": [{"id": "001", "type": "x", "collection": "accounts"}]}))
    assert core.profile("user_id:u2")["identity_graph"] == {"user_id": ["u2"]}


def test_two_group_ids_are_two_accounts_and_the_first_call_keeps_a_shared_name(core):
    core.apply(group("b", day=2, external=[("salesforce", "001")], traits={"name": "B"}))
    assert account(core, "salesforce:001")["traits"] == {"name": "B"}
    core.apply(group("a", day=1, external=[("salesforce", "001")], traits={"name": "A"}))
    assert account(core, "salesforce:001")["traits"] == {"name": "A"}
    core.apply(group("c", day=3, external=[("salesforce", "001")]))
    assert account(core, "salesforce:001") == account(core, "group_id:a") != account(core, "group_id:b")


def test_a_browser_that_backdates_takes_no_name_from_a_server(core):
    core.apply(group("mine", day=9, external=[("salesforce", "001")]))
    core.apply(group("evil", day=1, external=[("salesforce", "001")]), source=core.source("browser"))
    assert account(core, "salesforce:001") == account(core, "group_id:mine")


def test_a_name_of_group_id_is_the_calls_own(core):
    core.apply(group("a", external=[("group_id", "b")]))
    assert account(core, "group_id:b") is None


def test_the_newest_role_counts_and_the_earliest_call_joins(core):
    core.apply(group(day=5, membership={"role": "admin"}))
    core.apply(group(day=7))
    core.apply(group(day=2, membership={"role": "guest"}))
    assert members(core) == {"user_id:u1": ("admin", at(2), None)}
    core.apply(group(day=8, membership={"role": None}))
    assert members(core) == {"user_id:u1": ("", at(2), None)}


def test_a_member_leaves_and_comes_back_in_whatever_order_that_is_told(core):
    calls = [group(day=1), group(day=2, membership={"left": True}), group(day=3)]
    for number, order in enumerate(itertools.permutations(calls)):
        for call in order:
            core.apply(call | {"groupId": f"g{number}", "messageId": f"{call['messageId']}.{number}"})
        assert members(core, f"group_id:g{number}") == {"user_id:u1": ("", at(1), None)}
    core.apply(group("g0", day=4, membership={"left": True, "role": "guest"}))
    assert members(core, "group_id:g0") == {"user_id:u1": ("guest", at(1), at(4))}


def test_who_is_only_known_to_have_left_is_a_member_of_the_past(core):
    core.apply(group(day=4, membership={"left": True}))
    assert members(core) == {"user_id:u1": ("", at(4), at(4))}
    core.apply(group(day=1))
    assert members(core) == {"user_id:u1": ("", at(1), at(4))}


@pytest.mark.parametrize("said", [None, "owner", [], {"role": 7}, {"role": {}, "left": "true"}, {"left": 1}])
def test_a_membership_of_another_form_only_joins(core, said):
    core.apply(group(membership=said))
    assert members(core) == {"user_id:u1": ("", at(1), None)}
    assert core.letters() == []


def test_a_long_role_is_cut(core):
    core.apply(group(membership={"role": "r" * 300}))
    assert members(core) == {"user_id:u1": ("r" * 255, at(1), None)}


def test_a_membership_follows_its_identifier_through_a_merge(core):
    core.apply(group(userId=None, anonymousId="a1", membership={"role": "visitor"}))
    core.apply(message("identify", userId="u1", anonymousId="a1"))
    core.apply(group(day=2, anonymousId="a1"))
    assert core.profile("user_id:u1") == core.profile("anonymous_id:a1")
    assert members(core) == {"anonymous_id:a1": ("visitor", at(1), None), "user_id:u1": ("", at(2), None)}


def test_a_browser_may_group_but_not_set_what_it_may_not_say_of_people(core):
    core.apply(group(traits={"name": "Acme", "email": "x@acme.com"}), source=core.source("browser"))
    assert account(core)["traits"] == {"name": "Acme"}


def test_rules_of_a_source_refuse_group_calls_traits_and_names(core):
    core.apply(group(), source=core.source("server", {"refused_calls": ["group"]}))
    assert (core.letters(), account(core)) == (["refused_call"], None)
    core.apply(group(), source=core.source("server", {"refused_namespaces": ["group_id"]}))
    assert (len(core.events()), account(core)) == (1, None)
    careful = core.source("server", {"refused_traits": ["plan"], "refused_namespaces": ["crm"]})
    core.apply(group(traits={"plan": "gold", "size": 1}, external=[("crm", "1"), ("erp", "2")]), source=careful)
    assert account(core)["traits"] == {"size": 1}
    assert account(core, "crm:1") is None
    assert account(core, "erp:2") == account(core)


def test_a_server_counts_before_a_browser_at_the_same_time(core):
    browser = core.source("browser")
    core.apply(group(traits={"plan": "server"}, membership={"role": "server"}, messageId="a"))
    core.apply(group(traits={"plan": "browser"}, membership={"role": "browser"}, messageId="b"), source=browser)
    assert account(core)["traits"] == {"plan": "server"}
    assert members(core) == {"user_id:u1": ("server", at(1), None)}


def test_an_event_that_cannot_be_read_leaves_accounts_alone(core):
    core.apply(group(), b'{"type": "group", "userId": "u1", "groupId": "acme", "traits": []}')
    assert core.letters() == ["not_an_object"]
    assert account(core)["version"] == 1


calls = st.fixed_dictionaries(
    {
        "who": st.sampled_from([("userId", "u1"), ("userId", "u2"), ("anonymousId", "a1")]),
        "group": st.sampled_from(["g1", "g2"]),
        "day": st.integers(1, 3),
        "traits": st.dictionaries(st.sampled_from("ab"), st.one_of(st.none(), st.integers(0, 2)), max_size=2),
        "role": st.sampled_from(["admin", "guest", None, False]),
        "left": st.booleans(),
        "name": st.sampled_from(["", "e1", "e2"]),
        "source": st.sampled_from([1, 2]),
    }
)


def told(core, run, number, call):
    """Return a drawn call as a message in a world of its own."""
    key, value = call["who"]
    membership = {"left": call["left"]} | ({} if call["role"] is False else {"role": call["role"]})
    made = group(f"{run}{call['group']}", day=call["day"], traits=call["traits"], membership=membership,
                 external=[("crm", run + call["name"])] if call["name"] else (), messageId=f"{number}-{run}",
                 **{"userId": None, key: run + value})  # fmt: skip
    return core.arrivals(made, source=call["source"], received_us=RECEIVED)[0]


def send(core, arrivals):
    """Send arrivals of any sources as one batch."""
    with core.writer.transaction():
        applied = core.pipeline.apply(core.writer, arrivals)
    core.pipeline.remember(applied)


def state(core, run):
    """Return all that is known of the accounts of a world, less its prefix."""
    rows = core.rows(
        "SELECT g.value AS name, a.traits, a.version, a.registers,"
        " ARRAY(SELECT n.value FROM cdp_accountidentifier n WHERE n.account_id = a.id ORDER BY n.value) AS names,"
        " ARRAY(SELECT format('%%s %%s %%s %%s', i.value, m.role, m.joined_at, m.left_at) FROM cdp_accountmember m"
        " JOIN cdp_identifier i ON i.id = m.identifier_id WHERE m.account_id = a.id ORDER BY i.value) AS members"
        " FROM cdp_account a JOIN cdp_accountidentifier g ON g.account_id = a.id AND g.namespace = 'group_id'"
        " WHERE g.value LIKE %s ORDER BY g.value",
        run + "%",
    )
    return json.loads(json.dumps(rows).replace(run, ""))


worlds = itertools.count()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(calls, min_size=1, max_size=8), shuffled=st.randoms(use_true_random=False), parts=st.integers(1, 4)
)
def test_order_of_arrival_and_batches_do_not_matter(core, history, shuffled, parts):
    if len(core.rows("SELECT id FROM cdp_source")) == 1:
        core.source("browser")
    one, other = (f"w{next(worlds):06}." for _ in range(2))
    send(core, [told(core, one, number, call) for number, call in enumerate(history)])
    again = [told(core, other, number, call) for number, call in enumerate(history)]
    again = shuffled.sample(again, len(again))
    for start in range(parts):
        send(core, again[start::parts])
    assert state(core, one) == state(core, other)
    assert len(state(core, one)) == len({call["group"] for call in history})
    assert core.letters() == []


saids = st.builds(
    accounts.Said, st.sampled_from(["a", "b"]), st.integers(0, 2), st.integers(0, 1), st.sampled_from("xy")
)
memberships = st.builds(
    accounts.Membership,
    st.one_of(st.none(), st.integers(0, 3)),
    st.builds(accounts.Said, st.booleans(), st.integers(0, 2), st.integers(0, 1), st.sampled_from("xy")),
    st.one_of(st.none(), saids),
)


@given(memberships, memberships, memberships)
def test_memberships_combine_in_any_order_grouping_and_number(a, b, c):
    assert a.combine(b) == b.combine(a)
    assert a.combine(b.combine(c)) == a.combine(b).combine(c)
    assert a.combine(a) == a
    assert accounts.load_membership(msgspec.json.encode(a)) == a


def test_two_processors_on_one_account_lose_nothing(core, database_url):
    with closing(Core(database_url)) as other:
        start, troubles = threading.Barrier(2), []

        def work(one, name):
            try:
                start.wait(10)
                for batch in range(15):
                    calls = [
                        group(f"g{(n + batch) % 5}", day=1 + n % 9, traits={f"{name}{n}": batch}, userId=f"{name}{n}",
                              external=[("crm", f"{name}{n % 3}")], messageId=f"{name}-{batch:02}-{n}")
                        for n in range(20)
                    ]  # fmt: skip
                    persist(one, calls)
            except Exception as error:
                troubles.append(error)

        threads = [
            threading.Thread(target=work, args=(one, name), daemon=True) for one, name in ((core, "x"), (other, "y"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert troubles == []
    assert core.rows("SELECT sum(version)::int AS calls, count(*) AS accounts FROM cdp_account") == [
        {"calls": 600, "accounts": 5}
    ]
    assert core.rows("SELECT count(*) AS all FROM cdp_accountmember") == [{"all": 200}]
    traits = [row["traits"] for row in core.rows("SELECT traits FROM cdp_account")]
    assert [len(one) for one in traits] == [40] * 5


def persist(core, calls):
    """Send a batch again until it is not raced, as engines do."""
    while True:
        try:
            return core.apply(*calls)
        except (Raced, psycopg.errors.DeadlockDetected):
            core.pipeline.forget()
