"""Log lines: of our own code and of libraries alike, for machines or for people, each once."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import logging
import structlog
from martech import logging as ours
ours.configure()
log = structlog.get_logger("martech.test")
structlog.contextvars.bind_contextvars(task_id="t1")
log.info("something happened", count=3)
logging.getLogger("a.library").warning("it said %s", "so")
logging.getLogger("httpx").info("HTTP Request: GET https://example.com/?secret=1")
log.debug("unseen")
def break_down():
    password = "hunter2-secret"
    1 / 0
try:
    break_down()
except ZeroDivisionError:
    logging.getLogger("a.library").exception("it broke")
"""
DJANGO = """
import django, logging
django.setup()
logging.getLogger("django.server").warning("once")
logging.getLogger("django.db").warning("once")
"""


def lines(program, **environment):
    base = {name: value for name, value in os.environ.items() if not name.startswith("LOG_F")}
    run = subprocess.run(
        [sys.executable, "-c", program], env=base | environment, stderr=subprocess.PIPE, text=True, check=True
    )
    return run.stderr.splitlines()


def test_machines_get_one_object_a_line():
    happened, said, broke = (json.loads(line) for line in lines(PROGRAM, LOG_FORMAT="json"))
    assert happened.pop("timestamp").endswith("Z")
    assert happened == {
        "event": "something happened", "count": 3, "level": "info", "logger": "martech.test", "task_id": "t1",
    }  # fmt: skip
    assert (said["event"], said["level"], said["logger"], said["task_id"]) == (
        "it said so",
        "warning",
        "a.library",
        "t1",
    )
    [error] = broke["exception"]
    assert "secret" not in str(broke)
    assert (error["exc_type"], error["exc_value"]) == ("ZeroDivisionError", "division by zero")


def test_people_get_lines_and_plain_tracebacks():
    told = lines(PROGRAM, LOG_FORMAT="console")
    assert told[0].partition(" ")[2] == "[info     ] something happened [martech.test] count=3 task_id=t1"
    assert told[1].partition(" ")[2] == "[warning  ] it said so [a.library] task_id=t1"
    assert told[-1] == "ZeroDivisionError: division by zero"
    assert "secret" not in "".join(told)


@pytest.mark.parametrize(("level", "count"), [("DEBUG", 4), ("WARNING", 2), ("ERROR", 1)])
def test_the_level_is_a_setting(level, count):
    assert len(lines(PROGRAM, LOG_FORMAT="json", LOG_LEVEL=level)) == count


def test_django_says_everything_once():
    assert [json.loads(line)["event"] for line in lines(DJANGO, LOG_FORMAT="json")] == ["once", "once"]


def test_addresses_that_name_people_are_cut_short():
    program = """
from django.test import Client
import django
django.setup()
Client().get("/v1/profiles/email:ann@example.com/nothing", headers={"Authorization": "Bearer x"})
import logging
logging.getLogger("django.request").error("Internal Server Error: %s", "/v1/profiles/user_id:ann-1/export")
logging.getLogger("django.request").warning("Not Found: /v1/profiles/user_id:ann-1")
"""
    told = [json.loads(line)["event"] for line in lines(program, LOG_FORMAT="json")]
    assert told[-2:] == ["Internal Server Error: /v1/profiles/…", "Not Found: /v1/profiles/…"]
    assert "ann" not in "".join(told)
