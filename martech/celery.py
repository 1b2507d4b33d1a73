"""The Celery application: its settings, what beat sends and when, and what is asserted at the start.

The broker's messages may be lost or come twice (law 1), so nothing is kept in it for long: no results,
no events, no remote control, nothing that is due later than in minutes.
"""

import os
import sys
import warnings
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "martech.settings")

from celery import Celery, signals
from celery.exceptions import SecurityWarning
from celery.schedules import crontab

from martech import broker

# Celery's command puts BROKER_URL there, as it stands: it does not know what we call a Unix socket.
os.environ.pop("CELERY_BROKER_URL", None)
# It warns root about pickled messages, and only JSON is taken here.
warnings.filterwarnings("ignore", category=SecurityWarning)

broker.install()
app = Celery("martech", task_cls="martech.task:Task")
app.config_from_object("django.conf:settings", namespace="CELERY")
# The third place of the three; the shortest of them wins.
app.conf.visibility_timeout = app.conf.broker_transport_options["visibility_timeout"]
app.autodiscover_tasks()


def every(seconds: float, task: str) -> dict[str, Any]:
    """Return a line of the schedule; messages that no worker took before the next one is due are void."""
    return {"task": task, "schedule": seconds, "options": {"expire_seconds": max(int(seconds), 1)}}


def at(task: str, **when: str) -> dict[str, Any]:
    """Return a line of the schedule for times of the day, in UTC."""
    return {"task": task, "schedule": crontab(**when), "options": {"expire_seconds": 3600}}


# Beat writes these into its table when it starts; the admin can switch each off there.
app.conf.beat_schedule = {
    "Heartbeat of worker and beat": every(30, "cdp.tasks.heartbeat"),
    "Publish keys": every(60, "cdp.tasks.publish_keys"),
    "Show edits": every(60, "cdp.tasks.show_edits"),
    "Let traits fall due": every(5, "cdp.tasks.let_traits_fall"),
    "Close lost task runs": every(60, "cdp.tasks.close_lost_task_runs"),
    "Carry on lost imports": every(60, "cdp.tasks.carry_on_imports"),
    "Prune imports' files": at("cdp.tasks.prune_imports", hour="4", minute="20"),
    "Apply identity rules": every(60, "cdp.tasks.apply_identity_rules"),
    "Finish erasures": every(60, "cdp.tasks.finish_erasures"),
    "Make table partitions ahead": at("cdp.tasks.make_partitions", minute="7"),
    "Archive closed table partitions": at("cdp.tasks.archive_events", hour="1", minute="50"),
    "Drop old table partitions": at("cdp.tasks.drop_partitions", hour="3", minute="20"),
    "Prove that events have profiles": at("cdp.tasks.prove_events", hour="2", minute="40"),
    "Prune task runs": at("cdp.tasks.prune_task_runs", hour="4", minute="10"),
}


@signals.setup_logging.connect
def _leave_logging(**_: Any) -> None:
    """Django's settings have set the logs up; a receiver here keeps Celery from doing it again."""


@signals.beat_init.connect
@signals.worker_init.connect
def _refuse_wrong_settings(**_: Any) -> None:
    """End the process when its settings or its broker would lose tasks."""
    from martech.checks import celery_settings, redis_broker

    wrong = [*celery_settings(), *redis_broker()]
    for message in wrong:
        print(message, file=sys.stderr)
    if wrong:
        # Not an Exception: the signal would swallow one.
        raise SystemExit(os.EX_CONFIG)


@signals.worker_init.connect
def _no_connection_pool(**_: Any) -> None:
    """Let each pool process have one connection: a pool of them would be made and torn down for each task."""
    from django.conf import settings

    settings.DATABASES["default"]["OPTIONS"].pop("pool", None)


@signals.worker_process_shutdown.connect
def _forget_metrics(pid: int, **_: Any) -> None:
    from martech.lib import metrics

    metrics.forget_process(pid)
