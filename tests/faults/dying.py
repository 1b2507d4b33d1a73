"""A process that kills itself on the way: dying.py [TARGET WHEN NUMBER --] archive | drop | erase ID.

TARGET is a function as `module:name`; just before or after its call of that NUMBER there is SIGKILL, as from outside.
Without one it does its work to the end.
"""

import importlib
import os
import signal
import sys
from typing import Any
from uuid import UUID

import django
from django.core.management import call_command


def lay(target: str, when: str, number: int) -> None:
    """Have a call of a function be the last thing that this process does."""
    module, _, name = target.partition(":")
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for one in path:
        owner = getattr(owner, one)
    real, left = getattr(owner, last), [number]

    def wrapped(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if not left[0] and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*given, **named)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, last, wrapped)


def work(what: str, *given: str) -> None:
    """Do what is asked for."""
    from cdp import privacy, tasks

    if what == "archive":
        call_command("archive_events")
    elif what == "drop":
        tasks.drop_partitions()
    else:
        privacy.run(UUID(given[0]), patience=5)


def main() -> None:
    """Die, or do the work."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "martech.settings"
    django.setup()
    arguments = sys.argv[1:]
    if "--" in arguments:
        end = arguments.index("--")
        target, when, number = arguments[:end]
        lay(target, when, int(number))
        arguments = arguments[end + 1 :]
    work(*arguments)


if __name__ == "__main__":
    main()
