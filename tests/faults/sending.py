"""The sender of the fault suite, a process of its own: sends known totals and keeps a ledger of what was taken.

Each request is sent until it is answered with 200. Some are sent twice at the same time, some again later.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import accumulate
from random import Random
from typing import Any, NamedTuple

import httpx
import msgspec

# As SDKs: they give up a request after 10 or 15 s, and send it again.
REQUEST_SECONDS = 15.0
LONGEST_PAUSE_SECONDS = 1.0
AGAIN_SECONDS = 15.0
# Event times lie within this before the start, in no order.
PAST_MS = 2 * 24 * 3600 * 1000
NAMES = ("Product Viewed", "Product Added", "Order Completed", "Order Completed")

_encode = msgspec.json.Encoder(decimal_format="number").encode


class Plan(msgspec.Struct, kw_only=True):
    """What to send: `events` of `people`, whose names begin with `tag`, about `rate` events a second (0: at once).

    `again` is the part of the requests that is sent twice; half of these at the same time.
    """

    port: int
    write_key: str
    tag: str
    seed: int
    events: int
    people: int
    rate: float = 0.0
    connections: int = 16
    again: float = 0.05
    # How long a request is tried before the sender gives up.
    patience: float = 240.0


class Person(msgspec.Struct):
    """What was sent of one person; `spent` is exact, `traits` are those with the latest event time."""

    events: int = 0
    spent: Decimal = Decimal(0)
    traits: dict[str, Any] = {}


class Ledger(msgspec.Struct, kw_only=True):
    """What was acknowledged: message ids with their person, and the people's totals.

    `answers` counts all answers by status, `requests` the acknowledged requests without the `again` repeated ones.
    """

    messages: dict[str, str]
    people: dict[str, Person]
    answers: dict[str, int]
    requests: int
    again: int
    seconds: float


class Fact(NamedTuple):
    """One event as the ledger books it; `at_ms` is its time."""

    message_id: str
    person: int
    at_ms: int
    total: Decimal
    traits: dict[str, Any]


def user_id(tag: str, person: int) -> str:
    """Return the user id of a person."""
    return f"{tag}-user-{person}"


def visitor_id(tag: str, person: int) -> str:
    """Return the anonymous id of a person."""
    return f"{tag}-visitor-{person}"


def requests(plan: Plan) -> Iterator[tuple[bytes, list[Fact]]]:
    """Give the bodies of all requests, each with what it says."""
    chance = Random(plan.seed)
    weights = list(accumulate(1 / (rank + 10) for rank in range(plan.people)))
    chosen = chance.choices(range(plan.people), cum_weights=weights, k=plan.events - plan.people)
    # Everybody is identified once at least, which joins their two ids; it comes early or late.
    calls = [*((person, True) for person in range(plan.people)), *((person, False) for person in chosen)]
    chance.shuffle(calls)
    now_ms = int(time.time() * 1000)
    number = 0
    while number < len(calls):
        body, facts = [], []
        for person, identifies in calls[number : number + chance.randint(50, 100)]:
            fact = Fact(f"{plan.tag}-{number}", person, now_ms - chance.randrange(PAST_MS), Decimal(0), {})
            event, fact = _event(plan.tag, fact, chance, identifies or chance.random() < 0.1)
            body.append(event)
            facts.append(fact)
            number += 1
        yield _encode({"batch": body}), facts


def _event(tag: str, fact: Fact, chance: Random, identifies: bool) -> tuple[dict[str, Any], Fact]:
    """Return an event as it is sent, and the fact with what it adds."""
    event: dict[str, Any] = {
        "messageId": fact.message_id,
        "timestamp": datetime.fromtimestamp(fact.at_ms / 1000, UTC).isoformat(timespec="milliseconds"),
    }
    user, visitor = {"userId": user_id(tag, fact.person)}, {"anonymousId": visitor_id(tag, fact.person)}
    if identifies:
        traits = {"plan": chance.choice(["free", "team", "company"]), f"answer_{chance.randrange(3)}": fact.message_id}
        return event | user | visitor | {"type": "identify", "traits": traits}, fact._replace(traits=traits)
    event |= chance.choice([user, visitor, user | visitor])
    if chance.random() < 0.2:
        return event | {"type": "page", "name": "Album", "properties": {"path": "/music/jazz"}}, fact
    name = chance.choice(NAMES)
    properties: dict[str, Any] = {"sku": "CD-20117", "title": "Blue Train"}
    if name == "Order Completed":
        total = Decimal(chance.randrange(100_000)).scaleb(-2)
        properties["total"] = total
        fact = fact._replace(total=total)
    return event | {"type": "track", "event": name, "properties": properties}, fact


class Sender:
    """Carries out a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._chance = Random(plan.seed + 1)
        self._requests = requests(plan)
        self._taken = 0
        self._client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{plan.port}",
            auth=(plan.write_key, ""),
            headers={"Content-Type": "application/json"},
            timeout=REQUEST_SECONDS,
            limits=httpx.Limits(max_connections=4 * plan.connections),
        )
        self._ledger = Ledger(messages={}, people={}, answers={}, requests=0, again=0, seconds=0.0)
        self._answers: Counter[str] = Counter()
        # When each trait of a person was said last: (time, message id).
        self._said: dict[tuple[str, str], tuple[int, str]] = {}

    async def run(self) -> Ledger:
        """Send everything; TimeoutError when a request is never taken."""
        started = time.monotonic()
        async with self._client, asyncio.TaskGroup() as tasks:
            for _ in range(self.plan.connections):
                tasks.create_task(self._work(tasks, started))
        self._ledger.seconds = time.monotonic() - started
        self._ledger.answers = dict(self._answers)
        return self._ledger

    async def _work(self, tasks: asyncio.TaskGroup, started: float) -> None:
        """Send one request after the other, each when it is due."""
        for body, facts in self._requests:
            due = started + self._taken / self.plan.rate if self.plan.rate else started
            self._taken += len(facts)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            drawn = self._chance.random()
            if drawn < self.plan.again / 2:
                await asyncio.gather(self._deliver(body), self._deliver(body))
            else:
                await self._deliver(body)
            self._book(facts)
            if drawn < self.plan.again:
                self._ledger.again += 1
            if self.plan.again / 2 <= drawn < self.plan.again:
                tasks.create_task(self._deliver_again(body))

    async def _deliver_again(self, body: bytes) -> None:
        await asyncio.sleep(self._chance.uniform(0, AGAIN_SECONDS))
        await self._deliver(body)

    async def _deliver(self, body: bytes) -> None:
        """Send until it is taken."""
        deadline = time.monotonic() + self.plan.patience
        pause = 0.05
        while (said := await self._post(body)) is not None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"A request was not taken in {self.plan.patience:.0f} s; at last: {said}")
            pause = min(said or 2 * pause, LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause * self._chance.uniform(0.5, 1.0))

    async def _post(self, body: bytes) -> float | None:
        """Send once; return None when it was taken, else the pause that was asked for, 0 without one."""
        try:
            answer = await self._client.post("/v1/batch", content=body)
        except httpx.TransportError as error:
            self._answers[type(error).__name__] += 1
            return 0.0
        self._answers[str(answer.status_code)] += 1
        return None if answer.status_code == 200 else float(answer.headers.get("Retry-After", 0))

    def _book(self, facts: list[Fact]) -> None:
        self._ledger.requests += 1
        for fact in facts:
            name = user_id(self.plan.tag, fact.person)
            self._ledger.messages[fact.message_id] = name
            person = self._ledger.people.setdefault(name, Person())
            person.events += 1
            person.spent += fact.total
            said = (fact.at_ms, fact.message_id)
            for trait, value in fact.traits.items():
                if said > self._said.get((name, trait), (0, "")):
                    self._said[name, trait] = said
                    person.traits[trait] = value


def main() -> None:
    """Carry out the plan on standard input; the ledger goes to standard output."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(Sender(plan).run())))


if __name__ == "__main__":
    main()
