"""The benchmarks' frame: honest latencies, known traffic, medians, and nothing left behind."""

import io
import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from socket import create_server

import pytest
from rich.console import Console

from tests.benchmarks import table, traffic
from tests.benchmarks.bed import run_load
from tests.benchmarks.load import Plan, quantile
from tests.benchmarks.table import Figure
from tests.running import ROOT, environment

ANSWER = b"HTTP/1.1 %d OK\r\nContent-Length: 2\r\n\r\n{}"


@contextmanager
def answering(answer):
    """Serve one connection: call `answer` with each request's number and send the status that it returns."""
    with create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_serve, args=(server, answer), daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)


def _serve(server, answer):
    client, _ = server.accept()
    with client, client.makefile("rb") as lines:
        number = 0
        while line := lines.readline():
            length = 0
            while line != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
                line = lines.readline()
            lines.read(length)
            number += 1
            status = answer(number)
            if status is None:
                return
            client.sendall(ANSWER % status)


def plan(port, **changes):
    fields = {
        "port": port,
        "authorization": "Basic eA==",
        "rate": 200.0,
        "seconds": 1.0,
        "people": 10,
        "connections": 1,
    }
    return Plan(**(fields | changes))


def test_a_stall_is_charged_to_every_request_that_came_due_meanwhile():
    def stall_once(number):
        time.sleep(0.7 if number == 20 else 0)
        return 200

    with answering(stall_once) as port:
        result = run_load(plan(port))
    # A closed loop would have seen one slow answer of 200: most of them were due during the stall.
    assert result.succeeded == result.sent
    assert (result.refused, result.unanswered) == (0, 0)
    assert result.p99 > 500
    assert result.p50 > 50
    assert result.worst >= 680


def test_refusals_and_broken_connections_are_told_apart():
    with answering({1: 200, 2: 503, 3: 200}.get) as port:
        result = run_load(plan(port, rate=0.0, requests=3))
    assert (result.sent, result.succeeded, result.refused, result.unanswered) == (3, 2, 1, 0)


def test_a_quantile_is_the_value_that_so_many_do_not_exceed():
    values = [float(number) for number in range(1, 101)]
    assert [quantile(values, part) for part in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert quantile([], 0.5) == 0.0


@pytest.mark.parametrize(("kind", "size"), [("server", 545), ("browser", 981)])
def test_events_have_the_size_that_is_stated_and_ids_of_their_own(kind, size):
    (first, body), (_, second) = islice(traffic.requests(kind, 100, 50, tag="abcdefgh", seed=1), 2)
    assert first == "/v1/batch"
    assert len(body) // 100 == size
    events = json.loads(body)["batch"] + json.loads(second)["batch"]
    assert len({event["messageId"] for event in events}) == 200
    assert {(event["userId"][-7:], event["type"]) for event in events} <= {
        (event["anonymousId"][-7:], event["type"]) for event in events
    }


def test_single_events_go_to_the_endpoint_of_their_call():
    made = list(islice(traffic.requests("server", 1, 50, tag="t", seed=1), 4))
    assert [path for path, _ in made] == ["/v1/track", "/v1/page", "/v1/track", "/v1/track"]
    assert [f"/v1/{json.loads(body)['type']}" for _, body in made] == [path for path, _ in made]


def test_people_are_not_equally_busy():
    drawn = traffic.people(1000, seed=1)
    first, tenth = drawn.count(0), drawn.count(9)
    assert drawn == traffic.people(1000, seed=1)
    assert 8 < first / tenth < 12


def figure(value, **fields):
    return Figure(row="r", unit="events", figure=value, reference_name="x", reference=2 * value, **fields)


def test_of_several_runs_the_median_counts():
    runs = [
        figure(3.0, p99=1.0, cpu={"web": 5.0}),
        figure(9.0, p99=7.0, cpu={"web": 6.0}),
        figure(4.0, p99=2.0, cpu={}),
    ]
    median = table.middle(runs[::-1])
    assert (median.figure, median.reference, median.p99, median.cpu) == (4.0, 8.0, 2.0, {"web": 5.0})
    assert median.ratio == 0.5


def test_the_table_has_the_reference_beside_the_figure():
    text = io.StringIO()
    table.render([figure(1234.0, offered=1000.0, p50=1.25, p99=9.5, cpu={"web": 7.25})], Console(file=text, width=130))
    row = next(line for line in text.getvalue().splitlines() if line.strip().startswith("r "))
    assert row.split() == ["r", "1,234", "2,468", "0.50", "1,000", "1.2", "9.5", "7.2"]


def test_a_short_run_measures_the_real_parts_and_leaves_nothing(tmp_path):
    before = set(Path("/tmp").glob("mb-*"))
    arguments = (
        "--runs 1 --seconds 0.3 --people 50 --events 2000 --window 1000 --json --only collector-20 --only processor"
        " --only dedupe --only fsync-always --only import-csv --only import-ndjson --only reads"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *arguments.split()],
        cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    figures = {one["row"]: one for one in json.loads(done.stdout)["figures"]}
    assert list(figures) == [
        "collector-20",
        "processor",
        "dedupe",
        "fsync-always",
        "import-csv",
        "import-ndjson",
        "reads",
    ]
    for one in figures.values():
        assert one["figure"] > 0
        assert one["reference"] > 0
        assert "refused" not in one["remark"]
    assert set(Path("/tmp").glob("mb-*")) <= before
