"""Random lives of a few people, with decisions by others in between, as a processor of the test's own takes them."""

import random

from cdp import edits, unmerging
from cdp.models import Identifier
from cdp.processing.identity import Identifier as Named
from martech.lib import clock
from tests.platform import message

DAY_US = 86_400_000_000
NAMES = ("Order Completed", "Signed Up", "Viewed")


def play(core, *, seed, events=300, people=12, browser=0):
    """Send a random history: two sources, several namespaces, late and repeated evidence, odd texts."""
    chance = random.Random(seed)
    browser = browser or core.source("browser")
    now_us = clock.now_us()
    pending = [_random(chance, people, now_us) for _ in range(events)]
    while pending:
        size = chance.randint(1, 40)
        batch, pending = pending[:size], pending[size:]
        core.apply(*batch, source=chance.choice([1, 1, browser]), received_us=now_us - chance.randint(0, DAY_US // 2))


def decide(core, *, seed):
    """Have people edit, take apart and lift at random, between the events."""
    chance = random.Random(seed)
    for row in core.rows("SELECT id, version FROM customer_profiles WHERE merged_into_id IS NULL ORDER BY id"):
        if chance.random() < 0.5:
            traits = {"name": "Edited", "tags": ["vip"], "points": {"$add": 3}, "city": "Bonn"}
            edits.edit(profile_id=row["id"], versions=[row["version"]], traits=traits, actor="key:test",
                       consent={"email": False})  # fmt: skip
    for row in core.rows(
        "SELECT profile_id AS id, count(*) FROM cdp_identifier GROUP BY 1 HAVING count(*) > 1 ORDER BY 1"
    ):
        held = list(Identifier.objects.filter(profile_id=row["id"]).order_by("pk").values_list("namespace", "value"))
        # An unmerge before may have moved them.
        if len(held) > 1 and chance.random() < 0.7:
            taken = [Named(*one) for one in chance.sample(held, chance.randrange(1, len(held)))]
            made = unmerging.unmerge(profile_id=row["id"], identifiers=taken, author="key:test")
            if chance.random() < 0.3:
                unmerging.lift(made.decision_id, author="key:test")
    core.pipeline.forget()


def _random(chance, people, now_us):
    kind = chance.choices(["track", "identify", "alias", "page", "group"], [6, 4, 1, 1, 2])[0]
    person = chance.randrange(people)
    user = f"user-{person}"
    device = f"device-{chance.choice([person, person, chance.randrange(people)])}-{chance.randrange(3)}"
    fields = {"timestamp": clock.isoformat_us(now_us - chance.randrange(2 * DAY_US))}
    if kind == "alias":
        return message(kind, userId=user, previousId=device, **fields)
    fields |= chance.choice([{"userId": user}, {"anonymousId": device}, {"userId": user, "anonymousId": device}])
    if kind == "identify":
        traits = {"name": chance.choice(["Ann", 'Bö\n\\b "q"', "😀\t"]), "age": chance.choice([1, 2.50, None])}
        traits |= chance.choice(
            [
                {"tags": [chance.choice("abc")]},
                {"tags": {"$remove": [chance.choice("abc")]}, "points": {"$add": chance.choice([1, -0.5])}},
                {"city": chance.choice(["Rome", "Oslo"]), "plan": chance.choice(["free", "paid"])},
                {"consent": {"email": {"granted": True, "evidence": {"form": person}}, "sms": False}},
                {"consent": {"email": False, "push": {"topics": {"news": False}}}, "points": "many"},
            ]
        )
        if chance.random() < 0.4:
            traits["email"] = f"p{chance.choice([person, chance.randrange(people)])}@example.com"
        return message(kind, traits=traits, **fields)
    if kind == "group":
        return _group_call(chance, fields)
    if kind == "page":
        return message(kind, name="Home\\", **fields)
    return message(kind, event=chance.choice(NAMES), properties={"total": chance.choice([1, 0.10, "x"])}, **fields)


def _group_call(chance, fields):
    names = [{"collection": "accounts", "type": "salesforce", "id": chance.choice("xyz")}]
    told = chance.choice([{}, {"externalIds": names}, {"membership": {"role": chance.choice(["buyer", "owner"])}},
                          {"membership": {"left": True}}, {"membership": False, "externalIds": names}])  # fmt: skip
    if told.get("membership") is False and chance.random() < 0.5:
        fields = {"timestamp": fields["timestamp"]}
    traits = {"employees": chance.randrange(9), "points": {"$add": 1}, "tags": [chance.choice("abc")]}
    return message("group", groupId=f"group-{chance.randrange(3)}", traits=traits, context=told, **fields)


def define(core):
    """Have a sum as a computed trait, and a given trait of each merge policy."""
    for trait, policy, sources in (
        ("tags", "union", []), ("points", "counter", []), ("city", "ask", []), ("plan", "source_priority", [1]),
    ):  # fmt: skip
        core.connection.execute(
            "INSERT INTO cdp_mergepolicy (trait, policy, sources, version) VALUES (%s, %s, %s, 1)",
            [trait, policy, sources],
        )
    core.connection.execute(
        "INSERT INTO cdp_traitdefinition (name, kind, event_type, event_name, options, version, enabled, description)"
        " VALUES ('revenue', 'sum', 'track', 'Order Completed', '{\"property\": \"total\"}', 1, true, '')"
    )
    core.connection.execute("UPDATE cdp_definitionversion SET version = version + 1")
