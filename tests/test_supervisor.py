"""What the supervisor does to programs that crash, cling on, or leave children; with small stand-ins."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from martech.embedded import leftovers, supervisor
from martech.embedded.supervisor import Program, Supervisor
from tests.running import ROOT, wait_until

# Runs the programs that its arguments give as JSON, until its standard input ends.
HOST = """
import json, os, sys
from pathlib import Path
from martech.embedded.supervisor import Program, Supervisor
with Supervisor(pids=Path(sys.argv[1]), environment=os.environ, cwd=Path.cwd()) as supervisor:
    for name, command in json.loads(sys.argv[2]).items():
        supervisor.start(Program(name=name, command=command, stage=0))
    sys.stdin.read()
"""
SLEEP = ["sleep", "300"]


@pytest.fixture
def output():
    return io.StringIO()


@pytest.fixture
def running(tmp_path, output):
    with Supervisor(pids=tmp_path, environment=os.environ, cwd=tmp_path, output=output) as running:
        yield running


def shell(script):
    return ["sh", "-c", script]


def started(running, name):
    return wait_until(lambda: running.pid(name))


def lines(output):
    """Return the printed lines without their times."""
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in output.getvalue().splitlines()]


def test_each_line_has_its_program_before_it(running, output):
    running.start(Program(name="web", command=shell("echo one; echo two >&2; sleep 300"), stage=0))
    wait_until(lambda: len(lines(output)) == 2)
    assert lines(output) == ["web       | one", "web       | two"]


def test_a_crashed_program_starts_again_and_says_so(running, output):
    running.start(Program(name="web", command=SLEEP, stage=0))
    first = started(running, "web")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: running.pid("web") not in (None, first))
    assert lines(output) == ["platform  | web was ended by SIGKILL; it starts again in 0.5 s"]


def test_the_pause_doubles_while_crashes_follow_each_other(running, output, monkeypatch):
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_SECONDS", 0.04)
    running.start(Program(name="beat", command=shell("exit 3"), stage=0))
    wait_until(lambda: len(lines(output)) >= 4)
    assert lines(output)[:4] == [
        f"platform  | beat ended with exit status 3; it starts again in {pause} s" for pause in (0.01, 0.02, 0.04, 0.04)
    ]


def test_a_program_that_ran_well_starts_again_after_the_first_pause(running, output, monkeypatch):
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "WELL_SECONDS", 0.0)
    running.start(Program(name="beat", command=shell("exit 3"), stage=0))
    wait_until(lambda: len(lines(output)) >= 3)
    assert {line.rpartition(" again in ")[2] for line in lines(output)} == {"0.01 s"}


def test_a_command_that_does_not_exist_is_said_and_tried_again(running, output):
    running.start(Program(name="worker", command=["/nowhere/celery"], stage=0))
    wait_until(lambda: len(lines(output)) >= 2)
    assert "/nowhere/celery" in lines(output)[0]
    assert lines(output)[1] == "platform  | worker ended with exit status 127; it starts again in 0.5 s"
    assert running.ends("worker") == (1, lines(output)[0].removeprefix("worker    | "))


def test_children_of_a_dead_leader_are_ended_before_it_starts_again(running, tmp_path):
    running.start(Program(name="web", command=shell("sleep 301 & echo $! >> children; wait"), stage=0))
    children = tmp_path / "children"
    wait_until(lambda: children.exists() and children.read_text())
    orphan = int(children.read_text())
    os.kill(started(running, "web"), signal.SIGKILL)
    wait_until(lambda: len(children.read_text().split()) == 2)
    assert not alive(orphan)


def test_processes_that_left_the_group_are_known_by_name_and_workplace(running, tmp_path):
    workplace = tmp_path / "cluster"
    workplace.mkdir()
    shutil.copy(shutil.which("sleep"), tmp_path / "postgres")
    script = f"cd {workplace}; setsid ../postgres 302 & echo $! > {tmp_path}/child; wait"
    running.start(Program(name="postgres", command=shell(script), stage=0, workplace=workplace))
    child = tmp_path / "child"
    wait_until(lambda: child.exists() and child.read_text())
    with subprocess.Popen(SLEEP, cwd=workplace) as visitor:
        os.kill(started(running, "postgres"), signal.SIGKILL)
        wait_until(lambda: not alive(int(child.read_text())))
        assert visitor.poll() is None
        visitor.kill()


def test_lower_stages_stop_first(running, output):
    for name, stage in (("postgres", 20), ("log", 10), ("web", 0)):
        script = f"trap 'echo {name} stops; exit 0' TERM; echo {name} runs; while :; do sleep 0.02; done"
        running.start(Program(name=name, command=shell(script), stage=stage))
    wait_until(lambda: len(lines(output)) == 3)
    running.stop()
    assert [line.partition("| ")[2] for line in lines(output)[3:]] == ["web stops", "log stops", "postgres stops"]


def test_a_program_that_clings_on_is_told_again_then_killed(running, output):
    # A shell cannot trap SIGQUIT where whoever started the tests in the background has it ignored.
    script = "trap 'echo told' TERM; trap 'echo told again' USR1; echo runs; while :; do sleep 0.02; done"
    program = Program(
        name="worker", command=shell(script), stage=0, stop_signals=(signal.SIGTERM, signal.SIGUSR1), grace=1.0
    )
    running.start(program)
    pid = started(running, "worker")
    wait_until(lambda: lines(output))
    began = time.monotonic()
    running.stop()
    assert time.monotonic() - began >= 2.0
    assert not alive(pid)
    # The last line may still be on its way.
    wait_until(lambda: len(lines(output)) == 3)
    assert lines(output)[1:] == ["worker    | told", "worker    | told again"]


def test_haste_cuts_the_patience_but_for_what_has_to_be_left_in_order(running, output):
    script = "trap 'echo told' TERM; echo runs; while :; do sleep 0.02; done"
    for name, stage, least in (("worker", 0, 0.0), ("postgres", 20, 0.4)):
        running.start(Program(name=name, command=shell(script), stage=stage, grace=30.0, least_grace=least))
    wait_until(lambda: len(lines(output)) == 2)
    running.hurry.set()
    began = time.monotonic()
    running.stop()
    assert 0.4 <= time.monotonic() - began < 20


def test_a_killed_supervisor_leaves_no_process(tmp_path):
    programs = {"web": shell("sleep 303 & sleep 304"), "log": SLEEP}
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(tmp_path), json.dumps(programs)], cwd=ROOT, stdin=subprocess.PIPE
    )
    # Two shells or sleeps, the shell's two sleeps, the guard.
    wait_until(lambda: len(psutil.Process(host.pid).children(recursive=True)) == 5)
    family = psutil.Process(host.pid).children(recursive=True)
    host.kill()
    host.communicate()
    _, left = psutil.wait_procs(family, timeout=5)
    assert left == []


def test_what_a_killed_guard_could_not_end_is_ended_at_the_next_start(tmp_path):
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(tmp_path), json.dumps({"web": SLEEP})], cwd=ROOT, stdin=subprocess.PIPE
    )
    wait_until(lambda: (tmp_path / "web.pid").exists() and (tmp_path / "web.pid").read_text())
    family = psutil.Process(host.pid).children(recursive=True)
    [left_over] = [one for one in family if one.name() == "sleep"]
    for process in [one for one in family if one.pid != left_over.pid]:
        process.kill()
    host.kill()
    host.communicate()
    assert left_over.is_running()
    with Supervisor(pids=tmp_path, environment=os.environ, cwd=tmp_path, output=io.StringIO()):
        assert not alive(left_over.pid)


def test_another_process_with_the_noted_id_is_left_alone(tmp_path):
    with subprocess.Popen(SLEEP, start_new_session=True) as stranger:
        leftovers.note(tmp_path, "web", stranger.pid, signal.SIGKILL)
        entry = json.loads((tmp_path / "web.pid").read_text())
        (tmp_path / "web.pid").write_text(json.dumps(entry | {"started": entry["started"] - 60}))
        leftovers.end(tmp_path)
        assert stranger.poll() is None
        assert list(tmp_path.iterdir()) == []
        stranger.kill()


def test_an_output_that_nobody_reads_is_noticed_and_the_programs_live_on(tmp_path):
    reading, writing = os.pipe()
    output = os.fdopen(writing, "w")
    with Supervisor(pids=tmp_path, environment=os.environ, cwd=tmp_path, output=output) as running:
        os.close(reading)
        running.start(Program(name="web", command=shell("echo one; sleep 300"), stage=0))
        assert running.unheard.wait(5)
        assert alive(started(running, "web"))
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), writing)
    output.close()


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
