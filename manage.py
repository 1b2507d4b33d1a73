#!/usr/bin/env python
"""Run a management command; see `manage.py help`."""

import os
import sys


def main() -> None:
    """Find or start the servers the command needs, then run it; say in one line what a person has to correct."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "martech.settings")
    try:
        from django.core.management import execute_from_command_line

        from martech.embedded import servers_for
    except ImportError as error:
        sys.exit(f"manage.py: {error.name} is not installed: run `make install`, then .venv/bin/python manage.py.")
    try:
        with servers_for(sys.argv):
            execute_from_command_line(sys.argv)
    except Exception as error:
        line = _explain(error)
        if not line or "--traceback" in sys.argv:
            raise
        sys.exit(f"manage.py: {line}")


def _explain(error: Exception) -> str:
    """Return the one line that a person needs, empty where only a traceback helps."""
    from martech.lib.errors import MartechError

    if isinstance(error, MartechError):
        return " ".join(error.message.split())
    if type(error.__cause__).__name__ == "UndefinedTable":
        return "The database lacks tables: start the platform with `make up`, or run `manage.py migrate`."
    return ""


if __name__ == "__main__":
    main()
