"""Faults at random while events flow in: nothing lost, nothing doubled, nothing stuck, every trait as it was sent.

ROUNDS says how many rounds of EVENTS events there are, SEED where chance begins (round r uses SEED + r), and
FAULTS_REPORT names a file for the counts. The platform stays up from round to round.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import msgspec
import pytest

from tests.faults import comparing
from tests.faults.bed import Bed
from tests.faults.faults import FAULTS
from tests.faults.firing import Fire
from tests.faults.sending import Ledger, Plan
from tests.running import ROOT

pytestmark = pytest.mark.faults

ROUNDS = int(os.environ.get("ROUNDS", "3"))
EVENTS = int(os.environ.get("EVENTS", "200000"))
SEED = int(os.environ.get("SEED", "1"))
REPORT = os.environ.get("FAULTS_REPORT")
PEOPLE = 3000
EVENTS_PER_SECOND = 5000.0
SENDING_SECONDS = 600
# What a server may say instead of 200 while parts of it are away.
REFUSALS = {"429", "503"}


def send(plan, directory):
    """Start a sender; return its process and the file for its ledger."""
    path = directory / f"{plan.tag}.json"
    with path.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.sending"], cwd=ROOT, stdin=subprocess.PIPE, stdout=output
        )
    with process.stdin:
        process.stdin.write(msgspec.json.encode(plan))
    return process, path


def fire_until_sent(bed, sender, fire):
    """Bring faults about until the sender has ended."""
    deadline = time.monotonic() + SENDING_SECONDS
    try:
        while sender.poll() is None:
            assert time.monotonic() < deadline, f"The sender has not ended in {SENDING_SECONDS} s.\n{bed.last_lines()}"
            fire.step()
    finally:
        sender.kill()
        sender.wait()
        fire.end()
    assert sender.returncode == 0, f"The sender gave up.\n{bed.last_lines()}"


def fight(bed, number, directory):
    """Play one round; return its counts and what is not as it was sent."""
    chance = Random(SEED + number)
    tag = f"s{SEED + number}r{number}"
    since, started = datetime.now(UTC) - timedelta(seconds=5), time.monotonic()
    plan = Plan(
        port=bed.port, write_key=bed.write_key, tag=tag, seed=SEED + number, events=EVENTS,
        people=min(PEOPLE, EVENTS // 10), rate=EVENTS_PER_SECOND,
    )  # fmt: skip
    sender, path = send(plan, directory)
    fire = Fire(bed, chance)
    fire_until_sent(bed, sender, fire)
    bed.heal()
    drained = bed.drain()
    ledger = msgspec.json.decode(path.read_bytes(), type=Ledger)
    found = comparing.differences(bed, ledger, tag=tag, since=since, chance=chance)
    found += [
        f"answered with {one}" for one in sorted(ledger.answers) if one.isdigit() and one not in {"200", *REFUSALS}
    ]
    return fire.counts, found, {
        "seed": SEED + number, "events": len(ledger.messages), "requests": ledger.requests, "again": ledger.again,
        "answers": ledger.answers, "faults": fire.counts.total(), "sending_seconds": round(ledger.seconds, 1),
        "drain_seconds": round(drained, 1), "seconds": round(time.monotonic() - started, 1), "differences": len(found),
    }  # fmt: skip


def report(counts, rounds):
    """Print what happened, and write it where FAULTS_REPORT says."""
    print(f"\n{len(rounds)} rounds, SEED={SEED}")
    for one in rounds:
        print("  ".join(f"{name} {value}" for name, value in one.items()))
    for words in map(str, FAULTS):
        print(f"{counts[words]:6} × {words}")
    if REPORT:
        Path(REPORT).write_text(json.dumps({"seed": SEED, "rounds": rounds, "faults": counts}, indent=1) + "\n")


def test_whatever_fails_while_events_flow_in_the_platform_says_what_was_sent(tmp_path, capsys):
    counts: Counter[str] = Counter()
    rounds = []
    with Bed(tmp_path / "platform.log") as bed:
        for number in range(ROUNDS):
            with capsys.disabled():
                print(f"\nround {number + 1} of {ROUNDS}, seed {SEED + number}", flush=True)
            hit, found, told = fight(bed, number, tmp_path)
            counts += hit
            rounds.append(told)
            if found:
                break
        lines = bed.last_lines()
    with capsys.disabled():
        report(counts, rounds)
    # A list's own difference would be cut short.
    assert not found, "\n".join([f"seed {SEED + number}", *found, f"{tmp_path}/platform.log ends with", lines])
