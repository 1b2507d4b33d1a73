"""Tasks that the tests run in a real worker."""

import os
import signal
import time

from celery import shared_task
from celery.exceptions import Ignore, SoftTimeLimitExceeded

from martech.lib.errors import PermanentError, RetryableError


@shared_task
def succeed(*ids):
    return ids


@shared_task
def fail():
    raise PermanentError("This can never work.")


@shared_task
def break_down():
    raise ZeroDivisionError("a bug")


@shared_task
def ignore():
    raise Ignore("of no interest")


@shared_task(max_attempts=3)
def come_later():
    raise RetryableError("Not yet.", retry_after=0.05)


@shared_task
def come_much_later():
    raise RetryableError("Not today.", retry_after=3600)


@shared_task(max_attempts=1)
def poison():
    os._exit(1)


@shared_task(soft_time_limit=0.5, time_limit=1.0)
def run_for_long():
    time.sleep(30)


@shared_task(soft_time_limit=0.2, time_limit=0.7)
def run_for_ever():
    while True:
        try:
            time.sleep(30)
        except SoftTimeLimitExceeded:
            continue


@shared_task
def kill_the_worker_once(path):
    """Kill the whole worker, as a machine that loses power does, the first time."""
    if not os.path.exists(path):
        with open(path, "w"):
            os.kill(os.getppid(), signal.SIGKILL)
            os._exit(1)
