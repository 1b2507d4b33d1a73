"""What `/metrics` shows of many processes."""

import os
import subprocess
import sys
import time

import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from martech.lib import metrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PROCESS = """
import os, sys, time
from prometheus_client import Counter, Gauge, Histogram
Counter("martech_things_total", "Things", ["kind"]).labels("a").inc(int(sys.argv[1]))
Gauge("martech_open", "Open now", multiprocess_mode="livesum").set(int(sys.argv[1]))
Histogram("martech_wait_seconds", "Waits", buckets=(1, 10)).observe(int(sys.argv[1]))
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a process that counts so many things, and return it once it has."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    running = []

    def begin(count):
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        process.stdout.readline()
        running.append(process)
        return process

    yield begin
    for process in running:
        end(process)


def end(process):
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def samples(accept=OPENMETRICS):
    body, _ = metrics.render(accept)
    families = (openmetrics if accept == OPENMETRICS else classic)(body.decode())
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if family.name.startswith("martech_")
    }


def test_processes_are_added_up(start):
    start(2)
    start(5)
    assert samples() == {
        ("martech_things_total", "a"): 7,
        ("martech_open",): 7,
        ("martech_wait_seconds_bucket", "1.0"): 0,
        ("martech_wait_seconds_bucket", "10.0"): 2,
        ("martech_wait_seconds_bucket", "+Inf"): 2,
        ("martech_wait_seconds_count",): 2,
        ("martech_wait_seconds_sum",): 7,
    }


def test_both_formats_say_the_same(start):
    start(3)
    assert samples("text/plain") == samples()


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("text/plain", "text/plain; version=0.0.4; charset=utf-8"),
        ("", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_the_format_follows_accept(accept, content_type):
    assert metrics.render(accept)[1].partition("; escaping")[0] == content_type


def test_a_dead_process_keeps_its_counts_and_loses_its_gauges(start):
    end(start(2))
    start(5)
    told = samples()
    assert told["martech_things_total", "a"] == 7
    assert told["martech_open",] == 5


def test_a_process_can_be_forgotten_before_its_end_is_noticed(start):
    process = start(2)
    metrics.forget_process(process.pid)
    assert ("martech_open",) not in samples()


def test_the_files_of_many_dead_processes_become_one_and_their_counts_stay(start, tmp_path):
    count = metrics.DEAD_FILES_KEPT // 2 + 1
    for _ in range(count):
        end(start(1))
    before = {key: value for key, value in samples().items() if key != ("martech_open",)}
    assert before["martech_things_total", "a"] == count
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["counter_retired.db", "histogram_retired.db"]
    start(1)
    assert samples()["martech_things_total", "a"] == count + 1
    for _ in range(count):
        end(start(1))
    assert samples()["martech_things_total", "a"] == 2 * count + 1


def test_a_file_just_made_does_not_break_the_page(start, tmp_path):
    start(2)
    (tmp_path / f"counter_{os.getpid()}.db").touch()
    assert samples()["martech_things_total", "a"] == 2


def test_one_process_alone_shows_its_own(monkeypatch):
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    metrics.forget_process(1)
    body, _ = metrics.render("")
    assert b"python_info" in body


def test_the_cpu_time_of_a_process_is_counted_as_it_is_used():
    metrics.count_cpu("test")
    before = REGISTRY.get_sample_value("martech_process_cpu_seconds_total", {"process": "test"})
    used = time.process_time()
    while time.process_time() < used + 0.05:
        pass
    metrics.count_cpu("test")
    after = REGISTRY.get_sample_value("martech_process_cpu_seconds_total", {"process": "test"})
    assert 0.05 <= after - before < 0.5
