"""The platform's own processes and how each is run."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace

from martech.embedded.options import Options
from martech.embedded.servers import STAGE_PROGRAMS
from martech.embedded.supervisor import Program

QUEUES = "default,traits,crm,email,email-transactional,ml"
# Granian counts open connections here, idle ones too: SDKs keep theirs open. What requests may take of memory is
# the collector's to bound.
CONNECTIONS = "4096"
# Clients that keep their connection would hold a worker's end up for ever.
WEB_STOP_SECONDS = 2
# Celery waits 5 s for running tasks before it gives them back to the broker.
WORKER_STOP_SECONDS = 6.0


def programs(options: Options) -> list[Program]:
    """Return web, processor, worker and beat."""
    return [
        replace(program, environment={**program.environment, "MARTECH_PROCESS": program.name})
        for program in _programs(options, sys.executable)
    ]


def _programs(options: Options, python: str) -> list[Program]:
    return [
        Program(name="web", command=_web(options), stage=STAGE_PROGRAMS, grace=WEB_STOP_SECONDS + 1),
        Program(name="processor", command=[python, "manage.py", "process_events"], stage=STAGE_PROGRAMS, grace=4.0),
        Program(
            name="worker",
            command=[
                python, "-m", "celery", "-q", "-A", "martech.celery", "worker", "-Q", QUEUES, "-n", "worker@%h",
                "--concurrency", str(options.worker_concurrency), "--without-gossip", "--without-mingle",
            ],
            stage=STAGE_PROGRAMS,
            grace=WORKER_STOP_SECONDS,
            # A plain SIGTERM would wait for running tasks without end.
            environment={"REMAP_SIGTERM": "SIGQUIT"},
        ),
        Program(
            name="beat",
            command=[
                python, "-m", "celery", "-q", "-A", "martech.celery", "beat", "-S",
                "martech.beat:SlotScheduler",
            ],
            stage=STAGE_PROGRAMS,
        ),
    ]  # fmt: skip


def _web(options: Options) -> list[str]:
    return [
        sys.executable, "-m", "granian", "--interface", "asgi", "--host", options.host, "--port", str(options.port),
        "--workers", str(options.web_workers), "--loop", "uvloop", "--backlog", "2048", "--backpressure", CONNECTIONS,
        "--respawn-failed-workers", "--workers-kill-timeout", str(WEB_STOP_SECONDS), "--no-access-log",
        "martech.asgi:application",
    ]  # fmt: skip


def environment(addresses: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the processes: ours, with the addresses of the servers."""
    return {**os.environ, **addresses, "DJANGO_SETTINGS_MODULE": "martech.settings", "PYTHONUNBUFFERED": "1"}
