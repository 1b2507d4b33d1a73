"""Nothing a user can set, run or call is missing from the README, and nothing there is made up."""

import re
from pathlib import Path

from django.core.management import get_commands

from martech.lib import env
from tests.readme import README, endpoints, variables, written

ROOT = README.parent
OURS = {"martech", "cdp", "crm", "emails"}
# Not settings of ours: Django's, Celery's and prometheus_client's own, set by whoever starts the processes.
FOREIGN = {"DJANGO_SETTINGS_MODULE", "CELERY_BROKER_URL", "PROMETHEUS_MULTIPROC_DIR", "XDG_RUNTIME_DIR"}


def test_the_table_of_settings_is_what_the_code_declares():
    assert variables() in README.read_text(), "run `python -m tests.readme`"


def test_the_table_of_calls_is_what_the_api_describes():
    assert endpoints() in README.read_text(), "run `python -m tests.readme`"


def test_the_tables_are_written_where_they_belong():
    stale = "# A\n\n| variable | default | what it does |\n|---|---|---|\n| `OLD` |  | Gone |\n\nafter\n"
    assert written(stale) == f"# A\n\n{variables()}\n\nafter\n"
    assert written(README.read_text()) == README.read_text()


def test_every_command_is_in_the_readme():
    ours = {name for name, app in get_commands().items() if str(app).partition(".")[0] in OURS}
    told = set(re.findall(r"^\| `([a-z_]+)[^|]*` \|", README.read_text(), flags=re.MULTILINE))
    assert ours - told == set()


def test_every_environment_variable_that_is_read_is_declared():
    read = {
        name
        for folder in sorted(OURS)
        for file in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"(?:environ(?:\.get|\.pop|\.setdefault)?|getenv)[\[(]\"([A-Z_]+)\"", file.read_text())
    }
    assert read - set(env.DECLARED) - FOREIGN == set()


def test_every_page_of_the_platform_itself_is_in_the_readme():
    text = README.read_text()
    assert [
        page
        for page in ("/healthz", "/readyz", "/metrics", "/v1/openapi.json", "/v1/docs", "/admin/")
        if page not in text
    ] == []


def test_the_modules_of_the_wiring_are_all_in_a_layer():
    layers = re.search(r"layers = \[(.*?)\n\]", (ROOT / "pyproject.toml").read_text(), flags=re.DOTALL)[1]
    there = {f"martech.{path.stem}" for path in (ROOT / "martech").iterdir() if is_module(path)}
    assert there - set(re.findall(r"[a-z._]+", layers)) == set()


def is_module(path: Path) -> bool:
    return (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
