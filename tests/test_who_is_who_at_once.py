"""Processes that bring evidence on the same people at once come to what one would have come to."""

import multiprocessing
import random
from contextlib import closing

import psycopg
import pytest

from cdp.processing.pipeline import again
from cdp.processing.store import Raced
from tests import histories
from tests.histories import consistent, from_scratch, messages, random_histories, stored
from tests.platform import Core, message

PROCESSES = 4
CALLS = 240
RACES = 50


def work(url, sources, sent):
    """Bring messages, a few at a time, as the engine does; called in a process of its own."""
    with closing(Core(url, has_source=True)) as core:
        while sent:
            batch, sent = sent[:4], sent[4:]
            arrivals = []
            for source_class, received, body in batch:
                arrivals += core.arrivals(body, source=sources[source_class], received_us=received)
            take(core, arrivals)


def take(core, arrivals):
    for _ in range(RACES):
        try:
            return core.take(arrivals)
        except (Raced, psycopg.errors.DeadlockDetected):
            core.pipeline.forget()
            arrivals = again(arrivals)
    raise AssertionError(f"{RACES} races in a row")


@random_histories(0, 1, 2)
def test_processes_on_overlapping_people_equal_one_after_another(core, seed):
    chance = random.Random(seed)
    some = {name: ["", *(f"{name[0]}{number}" for number in range(12))] for name in histories.NAMESPACES}
    history = [
        (chance.choice((0, 1)), chance.randrange(50), *(chance.choice(some[name]) for name in histories.NAMESPACES))
        for _ in range(CALLS)
    ]
    history = [one for one in history if any(one[2:])]
    sent = messages(history, "x-")
    sources = (core.source("server"), core.source("browser", {"refused_namespaces": [], "refused_traits": []}))
    spawn = multiprocessing.get_context("spawn")
    shares = [sent[number::PROCESSES] for number in range(PROCESSES)]
    workers = [spawn.Process(target=work, args=(core.url, sources, share), daemon=True) for share in shares]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * PROCESSES
    assert stored(core, "x-") == {frozenset(one) for one in from_scratch(sent).clusters}
    consistent(core, "x-")
    assert len(core.events()) == len(sent)


def test_a_merge_between_a_look_up_and_its_use_is_noticed(core):
    with closing(Core(core.url, has_source=True)) as other:
        core.apply(message(userId="u1"), message(anonymousId="a1"))
        other.apply(message(userId="u1", anonymousId="a1"))
    remembered = core.arrivals(message("identify", anonymousId="a1", traits={"plan": "gold"}))
    with pytest.raises(Raced):
        core.take(remembered)
    take(core, remembered)
    assert core.profile("user_id:u1")["traits"] == {"plan": "gold"}
