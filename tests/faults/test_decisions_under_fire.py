"""People's decisions while processes are killed and events flow in: what was answered as done is, and stays so.

Identifiers overlap, and while they are joined by events, people are taken apart, edited and erased through the API, and
the rules of who is who are changed. ROUNDS says how many rounds there are, SEED where chance begins (round r uses
SEED + r). The platform stays up from round to round.
"""

import os
import time
from collections import Counter
from random import Random

import pytest

from tests.faults import faults, promises
from tests.faults.bed import Bed
from tests.faults.deciding import Decider, stop
from tests.faults.firing import Fire
from tests.faults.overlapping import Crowd, Sender

pytestmark = pytest.mark.faults

ROUNDS = int(os.environ.get("ROUNDS", "3"))
SEED = int(os.environ.get("SEED", "1"))
FIRE_SECONDS = 20.0
EVENTS_PER_SECOND = 60.0
# After two deaths a processor takes a partition's next events one by one, for up to 5 s each.
PARTITIONS = 4
# PostgreSQL takes a second or two to come back, and decisions are taken in between.
KILL_EVERY_SECONDS = (0.5, 1.5)
KILLS = [
    fault
    for fault in faults.FAULTS
    if fault.inject
    in {
        faults.kill_processor, faults.kill_second_processor, faults.kill_worker,
        faults.kill_pool_process, faults.kill_backend, faults.kill_postgres, faults.kill_cache,
    }
]  # fmt: skip


def fight(bed, number):
    """Play one round; return what was done, and what is not as it was promised."""
    seed, started = SEED + number, time.monotonic()
    crowd = Crowd(f"s{seed}r{number}", Random(f"{seed} crowd"))
    senders = [
        Sender(bed.url, bed.write_key, crowd, Random(f"{seed} sender {one}"), rate=EVENTS_PER_SECOND) for one in "ab"
    ]
    deciders = [Decider(bed.url, bed.api_key, crowd, Random(f"{seed} decider {one}")) for one in "ab"]
    fire = Fire(bed, Random(seed), KILLS, KILL_EVERY_SECONDS)
    for one in (*senders, *deciders):
        one.start()
    while time.monotonic() < started + FIRE_SECONDS:
        fire.step()
    fire.end()
    stop(*senders, *deciders)
    bed.heal()
    promises.settle(bed)
    settled = time.monotonic()
    taken = senders[0].taken | senders[1].taken
    kept = promises.Promises(bed, crowd, taken, deciders)
    found = [one.trouble for one in senders if one.trouble] + kept.broken()
    answers = sum((one.answers for one in deciders), Counter())
    return found, {
        "seed": seed, "events": len(taken), "faults": dict(fire.counts), "answers": dict(sorted(answers.items())),
        "erased": len(kept.erased), "settled_seconds": round(settled - started, 1),
        "seconds": round(time.monotonic() - started, 1), "differences": len(found),
    }  # fmt: skip


def test_whatever_is_killed_while_people_decide_what_was_answered_stands_and_a_replay_is_equal(tmp_path, capsys):
    with Bed(tmp_path / "platform.log", LOG_PARTITIONS=PARTITIONS) as bed:
        promises.hurry(bed)
        for number in range(ROUNDS):
            found, done = fight(bed, number)
            with capsys.disabled():
                print(f"\nround {number + 1} of {ROUNDS}: " + "  ".join(f"{name} {one}" for name, one in done.items()))
            if found:
                break
        lines = bed.last_lines()
    assert not found, "\n".join([f"seed {SEED + number}", *found, f"{tmp_path}/platform.log ends with", lines])
