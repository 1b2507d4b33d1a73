"""Real workers and beats on a database and a broker of their own, to be killed and counted."""

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter

import psutil
import redis
from django.db import connection
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from prometheus_client.parser import text_string_to_metric_families

from cdp.models import TaskRun
from martech.celery import app
from martech.lib import metrics
from martech.settings import _broker
from tests import celery_tasks as tasks

LIMITS = {"TASK_SECONDS": "2", "TASK_REDELIVERY_SECONDS": "3"}
TABLES = """
CREATE TABLE work (number int PRIMARY KEY, done boolean NOT NULL DEFAULT false, sent_at timestamptz DEFAULT now());
CREATE TABLE effects (key text NOT NULL)
"""


class Fleet:
    """The processes of one test, by name of their part; what they do is in two tables: `work` and `effects`."""

    def __init__(self, database_url, broker, logs):
        self._environment = os.environ | LIMITS | {"DATABASE_URL": database_url, "BROKER_URL": broker.url}
        self._running = []
        self._logs = logs
        self.broker = broker
        self.client = redis.Redis.from_url(broker.url)
        self.sent = 0
        with connection.cursor() as cursor:
            cursor.execute(TABLES)

    def worker(self, *, concurrency=2):
        """Start a worker."""
        options = ["-I", "tests.celery_tasks", "--concurrency", str(concurrency), "-n", f"{len(self._running)}@%h"]
        return self._start("worker", *options, "--without-gossip", "--without-mingle")

    def beat(self):
        """Start a beat."""
        return self._start("beat")

    def _start(self, *command):
        with (self._logs / f"{len(self._running)}-{command[0]}.log").open("w") as log:
            running = subprocess.Popen(
                [sys.executable, "-m", "celery", "-q", "-A", "martech.celery", *command],
                env=self._environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._running.append(running)
        return running

    def kill(self, process):
        """Kill a process with its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def children(self, worker):
        """Return the processes of a worker's pool."""
        return psutil.Process(worker.pid).children()

    def end(self):
        """Kill all that runs."""
        for process in self._running:
            if process.poll() is None:
                self.kill(process)
        self.client.close()

    def schedule(self, name, task, *, seconds):
        """Write a line of the schedule."""
        interval, _ = IntervalSchedule.objects.get_or_create(every=seconds, period="seconds")
        PeriodicTask.objects.create(name=name, task=f"tests.celery_tasks.{task}", interval=interval)

    def send_work(self, count, *, told=True):
        """Store pieces of work, and tell the worker of them."""
        numbers = range(self.sent, self.sent + count)
        self.sent += count
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO work (number) VALUES (%s)", [[number] for number in numbers])
        for number in numbers if told else ():
            self.send(tasks.work, number)

    def send(self, task, *ids, **options):
        """Send a task."""
        with app.connection_for_write(_broker(self.broker.url)) as producer:
            return task.apply_async(ids, connection=producer, **options)

    def waiting(self):
        """Return how many messages the broker holds."""
        return self.client.llen("default") + self.client.hlen("unacked")

    def done(self):
        """Return how many pieces of work are done."""
        return _rows("SELECT count(*) FROM work WHERE done")[0][0]

    def effects(self):
        """Count the effects by key."""
        return Counter(key for (key,) in _rows("SELECT key FROM effects"))


def open_runs():
    """Return the runs that came to no end yet."""
    return TaskRun.objects.filter(status__in=["started", "retrying"]).count()


def _rows(query):
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def counted(name, *labels):
    """Return what the worker's metrics say, by task and further labels."""
    body, _ = metrics.render("")
    return {
        (sample.labels["task"].rpartition(".")[2], *(sample.labels[label] for label in labels)): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == name
    }
