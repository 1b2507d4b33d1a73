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
        from martech.lib.errors import MartechError
    except ImportError as error:
        sys.exit(f"manage.py: {error.name} is not installed: run `make install`, then .venv/bin/python manage.py.")
    try:
        with servers_for(sys.argv):
            execute_from_command_line(sys.argv)
    except MartechError as error:
        if "--traceback" in sys.argv:
            raise
        sys.exit(f"manage.py: {' '.join(error.message.split())}")


if __name__ == "__main__":
    main()
