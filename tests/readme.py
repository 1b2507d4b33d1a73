"""The README's tables that follow from the code: `python -m tests.readme` writes them where they belong."""

import os
import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def variables():
    """Return the table of all settings: their names, defaults and what they do."""
    from martech.lib import env

    declared = sorted(env.DECLARED.values(), key=lambda one: one.name)
    rows = [f"| `{one.name}` | {f'`{one.default}`' if one.default else ''} | {one.help} |" for one in declared]
    return "\n".join(["| variable | default | what it does |", "|---|---|---|", *rows])


def endpoints():
    """Return the table of all calls of the REST API and the tracking API."""
    from drf_spectacular.generators import SchemaGenerator

    paths = SchemaGenerator().get_schema(public=True)["paths"]
    rows = [
        f"| `{method.upper()} {path}` | {operation['summary']} |"
        for path, operations in paths.items()
        for method, operation in operations.items()
    ]
    return "\n".join(["| call | what it does |", "|---|---|", *rows])


TABLES = {"variable": variables, "call": endpoints}


def written(text):
    """Return the README with its tables as they should be; a table is known by its first heading."""
    for heading, table in TABLES.items():
        fresh = table()
        text = re.sub(rf"^\| {heading} \|.*\n(\|.*\n?)*", lambda _, fresh=fresh: fresh + "\n", text, flags=re.MULTILINE)
    return text


if __name__ == "__main__":
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "martech.settings")
    os.environ.setdefault("SECRET_KEY", "for-the-readme-only")
    django.setup()
    README.write_text(written(README.read_text()))
