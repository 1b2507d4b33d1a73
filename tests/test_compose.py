"""The containers run what `make up` runs, and have no secret by default."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from martech.embedded import programs
from martech.embedded.options import ROOT, Options
from martech.embedded.valkey import ROLES, ValkeyServer

OPTIONS = Options(
    data=ROOT, host="0.0.0.0", port=8000, web_workers=1, worker_concurrency=2, log_memory_mb=1024, cache_memory_mb=256
)
PROGRAMS = {program.name: program for program in programs.programs(OPTIONS)}


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_process_has_the_command_of_make_up(services, name):
    defaults = {"${WEB_WORKERS:-1}": "1", "${WORKER_CONCURRENCY:-2}": "2"}
    command = [defaults.get(word, word) for word in services[name]["command"]]
    assert command == ["python", *PROGRAMS[name].command[1:]]
    assert services[name]["environment"].items() >= PROGRAMS[name].environment.items()


@pytest.mark.parametrize("role", ROLES)
def test_each_valkey_has_the_settings_of_make_up(services, role):
    memory = OPTIONS.log_memory_mb if role == "log" else OPTIONS.cache_memory_mb
    ours = ValkeyServer(role, Path("/d"), Path("/s"), memory).command()
    where = ["--port", "--unixsocket", "--unixsocketperm", "--dir", "--loglevel"]
    kept = [pair for pair in zip(ours[1::2], ours[2::2], strict=True) if pair[0] not in where]
    assert services[role]["command"] == ["valkey-server", *(word for pair in kept for word in pair)]


def test_secrets_have_no_default(services):
    assert services["postgres"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")
    for name in ("migrate", *PROGRAMS):
        assert services[name]["environment"]["SECRET_KEY"].startswith("${SECRET_KEY:?")
        assert ":${POSTGRES_PASSWORD:?" in services[name]["environment"]["DATABASE_URL"]


def test_nothing_listens_beyond_this_machine(services):
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports == {"web": ["127.0.0.1:${PORT:-8000}:8000"]}


def test_compose_takes_the_file():
    compose = _compose()
    if compose is None:
        pytest.skip("neither `docker compose` nor `docker-compose` is installed")
    given = os.environ | {"SECRET_KEY": "x", "POSTGRES_PASSWORD": "y"}
    checked = subprocess.run(
        [*compose, "config", "-q"], cwd=ROOT, env=given, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def _compose():
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0
        ):
            return command
    return None
