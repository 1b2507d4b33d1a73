#!/usr/bin/env python
"""Run a management command; see `manage.py help`."""

import os
import sys


def main() -> None:
    """Find or start the servers the command needs, then run it."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "martech.settings")
    from django.core.management import execute_from_command_line

    from martech.embedded import servers_for

    with servers_for(sys.argv):
        execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
