"""The whole platform by `manage.py up`: ready, an event through it, crashes, the end, and the second start."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.running import free_port, manage, processes_of, wait_until
from tests.up import STOP_SECONDS, Up

POSTGRESQL_15 = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture
def ups():
    """Keep what a test starts, and end it with the test."""
    started: list[Up] = []
    yield started
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
            up.process.wait()
        wait_until(lambda up=up: processes_of(up.data) == [])


def test_up_runs_the_platform_survives_crashes_and_keeps_the_data(tmp_path, ups):
    data, port = tmp_path / "data", free_port()
    up = Up(data, port)
    ups.append(up)
    up.wait_ready()
    assert up.ready()
    password = up.found(r"admin / (\S+)")
    assert password == (data / "admin-password").read_text().strip()

    assert up.identify("ada", name="Ada")[0] == 200
    assert wait_until(lambda: up.traits("ada")) == {"name": "Ada"}

    second = manage(data, "up", PORT=free_port())
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr == (
        f"manage.py: The platform is up already on {data} (process {up.process.pid}): use that one, stop it first, or "
        "choose another directory with MARTECH_DATA=… and another port with PORT=….\n"
    )
    shown = manage(data, "shell", "-c", "from cdp.models import Source; print(Source.objects.get().write_key)")
    assert shown.stdout.splitlines()[-1] in up.said()

    crashed = {
        name: up.pid(name) for name in ("web", "processor", "worker", "beat", "log", "broker", "cache", "postgres")
    }
    for pid in crashed.values():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: all(up.pid(name) not in (None, pid) for name, pid in crashed.items()))
    for name in crashed:
        assert f"platform  | {name} was ended by SIGKILL; it starts again in 0.5 s" in up.said()
    wait_until(up.ready, 40)
    assert wait_until(lambda: up.identify("bob", name="Bob")[0] == 200)
    assert wait_until(lambda: up.traits("bob")) == {"name": "Bob"}

    assert up.stop() < STOP_SECONDS
    assert up.process.returncode == 0
    assert processes_of(data) == []

    again = Up(data, port)
    ups.append(again)
    again.wait_ready()
    assert again.found(r"admin / (\S+)") == password
    assert again.traits("ada") == {"name": "Ada"}
    again.process.kill()
    again.process.wait()
    wait_until(lambda: processes_of(data) == [])


def test_a_stop_during_the_start_leaves_nothing(tmp_path, ups):
    up = Up(tmp_path / "data", free_port())
    ups.append(up)
    wait_until(lambda: up.pid("postgres"))
    assert up.stop(signal.SIGTERM) < STOP_SECONDS
    assert up.process.returncode == 0
    assert processes_of(up.data) == []


def test_a_taken_port_gets_one_line_and_starts_nothing(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = manage(tmp_path / "data", "up", PORT=port)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"manage.py: The address 127.0.0.1:{port} is taken by another program: stop that, or choose another port with "
        "PORT=….\n"
    )


def test_a_setting_that_cannot_be_used_gets_one_line(tmp_path):
    refused = manage(tmp_path / "data", "up", WEB_WORKERS="many")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "manage.py: WEB_WORKERS='many' is not usable: expected a whole number from 1 to 256. "
        "Correct it, or unset it for 1.\n"
    )


def test_a_command_on_a_database_without_tables_gets_one_line(tmp_path):
    refused = manage(tmp_path / "data", "create_source", "Shop")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "manage.py: The database lacks tables: start the platform with `make up`, or run `manage.py migrate`.\n"
    )


@pytest.fixture
def debian(tmp_path):
    """Run Debian's PostgreSQL 15 and three of its Redis 7 servers; yield their addresses."""
    if not (POSTGRESQL_15 / "initdb").exists() or not shutil.which("redis-server"):
        pytest.skip("PostgreSQL 15 or redis-server is not installed (apt install postgresql redis-server)")
    with contextlib.ExitStack() as stack:
        found = {"DATABASE_URL": stack.enter_context(_postgresql_15(tmp_path))}
        for role, options in (
            ("log", ["--appendonly", "yes", "--appendfsync", "always"]),
            ("broker", []),
            ("cache", []),
        ):
            found[f"{role.upper()}_URL"] = stack.enter_context(_redis_7(tmp_path / role, options))
        yield found


@contextlib.contextmanager
def _postgresql_15(home):
    from martech.embedded.unprivileged import Unprivileged

    prefix = Unprivileged(POSTGRESQL_15 / "postgres", home).prefix
    port = free_port()
    subprocess.run(
        [*prefix, POSTGRESQL_15 / "initdb", "-D", home / "pg15", "-U", "martech", "-A", "trust", "--no-sync"],
        check=True, capture_output=True,
    )  # fmt: skip
    options = [f"-cport={port}", "-cfsync=off", "-clisten_addresses=127.0.0.1", "-cunix_socket_directories="]
    with _running([*prefix, str(POSTGRESQL_15 / "postgres"), "-D", str(home / "pg15"), *options], signal.SIGINT):
        wait_until(lambda: _listens(port))
        url = f"postgresql://martech@127.0.0.1:{port}"
        wait_until(
            lambda: subprocess.run(
                [POSTGRESQL_15 / "psql", "-qc", "CREATE DATABASE martech", f"{url}/postgres"],
                check=False, capture_output=True,
            ).returncode == 0
        )  # fmt: skip
        yield f"{url}/martech"


@contextlib.contextmanager
def _redis_7(home, options):
    home.mkdir()
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(home), "--save", "", *options]
    with _running(command, signal.SIGTERM):
        wait_until(lambda: _listens(port))
        yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def _running(command, stop_signal):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        process.send_signal(stop_signal)
        process.wait(10)


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_debians_servers_replace_the_embedded_ones(tmp_path, debian, ups):
    up = Up(tmp_path / "data", free_port(), **debian)
    ups.append(up)
    up.wait_ready()
    assert up.identify("ada", name="Ada")[0] == 200
    assert wait_until(lambda: up.traits("ada")) == {"name": "Ada"}
    assert sorted(path.name for path in (up.data / "run").glob("*.pid")) == [
        "beat.pid", "processor.pid", "web.pid", "worker.pid",
    ]  # fmt: skip
    assert up.stop() < STOP_SECONDS
    for name, url in debian.items():
        assert _listens(urlsplit(url).port), name
