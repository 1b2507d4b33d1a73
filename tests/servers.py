"""The test session's own PostgreSQL and Valkey servers, started before Django reads its settings.

Loaded as a pytest plugin (`-p tests.servers`). Every pytest process has servers of its own, so that workers
of a parallel run, and two runs at once, do not meet.
"""

import atexit
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import redis

from martech.embedded import guard
from martech.embedded.postgres import PostgresServer
from martech.embedded.valkey import ROLES, ValkeyServer

# What a test may lose in a power cut does not matter; speed does.
FAST = {
    "fsync": "off", "full_page_writes": "off", "max_connections": "60", "shared_buffers": "64MB",
    # Old ones are used again, so that they do not fill the memory.
    "max_wal_size": "512MB",
}  # fmt: skip
# Each test with a database of its own writes and drops a thousand files: in memory that takes a tenth of the time.
MEMORY, MEMORY_BYTES = Path("/dev/shm"), 4 * 2**30
BEGINNING_SECONDS = 10
# The descriptors by which directories are locked: until they are closed, or this process is gone.
_held: dict[Path, int] = {}


def _start() -> None:
    # Short, since a Unix socket's path may have 107 bytes at the most.
    forget_the_dead()
    home = Path(tempfile.mkdtemp(prefix=f"mt-{os.getpid()}-", dir=_place()))
    hold(home)
    # The server works as another user where root may not have a user namespace.
    home.chmod(0o711)
    postgres = PostgresServer(home / "pg", home / "s")
    postgres.prepare(durable=False)
    valkeys = [ValkeyServer(role, home / role, home / f"{role}.sock") for role in ROLES]
    commands = [postgres.command(**FAST)]
    for valkey in valkeys:
        valkey.prepare()
        commands.append(valkey.command())
    running = [_run(command, subprocess.DEVNULL) for command in commands]
    atexit.register(_stop, running, _guard(running), home)
    _wait(lambda: _create_database(postgres))
    for valkey in valkeys:
        _wait(redis.Redis.from_url(valkey.url).ping)
    # Else each of the many processes that tests start would compile all of our modules anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ |= {
        "DATABASE_URL": postgres.url(),
        **{f"{valkey.role.upper()}_URL": valkey.url for valkey in valkeys},
        "MARTECH_DATA": str(home),
        "SECRET_KEY": "tests-only-" + "0" * 50,
    }


def _place() -> Path:
    """Return where the servers' data go: into memory where there is plenty (a container often has 64 MB)."""
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES
    return MEMORY if roomy and psutil.virtual_memory().available >= MEMORY_BYTES else Path("/tmp")


def hold(home: Path) -> bool:
    """Keep others from removing a session's directory, until this process ends; False where another holds it."""
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    _held[home] = descriptor
    return True


def forget_the_dead(place: Path = MEMORY) -> None:
    """Remove from memory what killed sessions left there: those of other containers have pids that are unknown here."""
    for home in place.glob("mt-*-*"):
        # A session that begins has its directory a moment before its lock.
        with suppress(OSError):
            if time.time() - home.stat().st_mtime > BEGINNING_SECONDS and hold(home):
                shutil.rmtree(home, ignore_errors=True)
                os.close(_held.pop(home))


def _run(command: list[str], stdin: int) -> subprocess.Popen:
    null = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=stdin, stdout=null, stderr=null, start_new_session=True)


def _guard(running: list[subprocess.Popen]) -> subprocess.Popen:
    """Have the servers ended even when this process is killed."""
    watching = _run([sys.executable, "-I", "-S", guard.__file__], subprocess.PIPE)
    assert watching.stdin
    watching.stdin.write("".join(f"+ {process.pid} {signal.SIGINT.value}\n" for process in running).encode())
    watching.stdin.flush()
    return watching


def _create_database(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE martech")


def _wait(answers) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            answers()
            return
        except (psycopg.OperationalError, redis.ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _stop(running: list[subprocess.Popen], watching: subprocess.Popen, home: Path) -> None:
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    watching.communicate()
    shutil.rmtree(home, ignore_errors=True)


_start()
