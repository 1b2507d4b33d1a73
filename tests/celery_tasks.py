"""Tasks that the tests run in a real worker."""

import os
import random
import signal
import time

from celery import shared_task
from celery.exceptions import Ignore, SoftTimeLimitExceeded
from django.db import connection, transaction

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


@shared_task(bind=True)
def come_too_late(self):
    self.retry(countdown=3600)


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


@shared_task(max_attempts=100)
def work(number):
    """Do a piece of work: its row says whether it is done, and the effect comes with it or not at all."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT done FROM work WHERE number = %s", [number])
        if cursor.fetchone()[0]:
            return
    time.sleep(random.uniform(0.02, 0.2))
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE work SET done = true WHERE number = %s AND NOT done", [number])
        if cursor.rowcount:
            cursor.execute("INSERT INTO effects VALUES (%s)", [str(number)])
    time.sleep(random.uniform(0.0, 0.1))


@shared_task
def find_work():
    """Send what no message came for."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE work SET sent_at = now() WHERE NOT done AND sent_at < now() - interval '6 s' RETURNING number"
        )
        found = cursor.fetchall()
    for (number,) in found:
        work.delay(number)


@shared_task
def leave_effect(key):
    """Have an effect each time it runs."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO effects VALUES (%s)", [key])
    time.sleep(0.3)


@shared_task(time_limit=30, soft_time_limit=29)
def outlast_redelivery():
    """Run for longer than the broker waits before it delivers the message again."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO effects VALUES ('outlasted')")
    time.sleep(7)


@shared_task(bind=True)
def tick(self):
    """Have an effect for each run of a slot."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO effects VALUES (%s)", [self.request.slot])
