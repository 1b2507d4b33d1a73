"""An erasure finds a person among many without reading all of them."""

import json

import pytest
from django.db import connection

from cdp import aliases, erasing
from cdp.processing.identity import Identifier
from tests.conftest import pointed_at

PEOPLE = 100_000


@pytest.fixture(scope="module")
def many(own_core, django_db_setup, django_db_blocker):
    """Make many people of two identifiers and a link each, in a database whose statistics are nobody else's."""
    with pointed_at(own_core.url, django_db_blocker), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO customer_profiles (id, identity_graph, traits, computed_traits, version, timestamp,"
            " created_at, registers, trait_states) SELECT md5(n::text)::uuid, '{}', '{}', '{}', 1, now(), now(), '{}',"
            " '{}' FROM generate_series(1, %s) AS n", [PEOPLE],
        )  # fmt: skip
        cursor.execute(
            "INSERT INTO cdp_identifier (id, namespace, value, profile_id, created_at, registers, trait_states)"
            " SELECT 2 * n + of, (ARRAY['user_id', 'anonymous_id'])[1 + of], 'u' || n, md5(n::text)::uuid, now(), '{}',"
            " '{}' FROM generate_series(1, %s) AS n, generate_series(0, 1) AS of", [PEOPLE],
        )  # fmt: skip
        cursor.execute(
            "INSERT INTO cdp_edge (left_id, right_id, source_id, source_class, occurred_at, message_id, rule_version,"
            " refused) SELECT 2 * n, 2 * n + 1, 1, 0, now(), 'm' || n, 1, '' FROM generate_series(1, %s) AS n",
            [PEOPLE],
        )  # fmt: skip
        cursor.execute("ANALYZE customer_profiles, cdp_identifier, cdp_edge")
        yield


def scanned(query, values):
    """Return the tables that PostgreSQL means to read from end to end."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (FORMAT json) {query}", values)
        plan = cursor.fetchone()[0]
    return set(_scanned((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]))


def _scanned(node):
    if node["Node Type"] == "Seq Scan":
        yield node["Relation Name"]
    for inner in node.get("Plans", ()):
        yield from _scanned(inner)


def test_the_living_profiles_of_a_person_are_found_by_index(many):
    person = erasing.Person([Identifier("user_id", "u7"), Identifier("email", "u7@example.com")])
    with connection.cursor() as cursor:
        cursor.execute("SELECT md5('9')::uuid")
        person.profiles = [cursor.fetchone()[0]]
    assert len(erasing.select(erasing.LIVING, erasing.named(person))) == 2
    assert scanned(erasing.LIVING, erasing.named(person)) == set()


def test_those_beside_a_person_and_the_aliases_are_found_by_index(many):
    assert len(erasing.select(erasing.NEIGHBOURS, {"anchors": [14]})) == 1
    assert scanned(erasing.NEIGHBOURS, {"anchors": [14]}) <= {"cdp_unmergeside", "cdp_identitydecision"}
    assert len(erasing.select(aliases.NAMESAKES, [["u7"], []])) == 1
    assert scanned(aliases.NAMESAKES, [["u7"], []]) == set()
