"""The servers a platform or a command needs, minus those that the environment replaces."""

import os
import signal
import time
from collections.abc import Callable

from martech.embedded.home import Home
from martech.embedded.options import Options
from martech.embedded.postgres import PostgresServer, address_of
from martech.embedded.supervisor import Program, Supervisor
from martech.embedded.valkey import ROLES, ValkeyServer
from martech.lib.errors import ConfigurationError

ADDRESSES = {"DATABASE_URL": "postgres", **{f"{role.upper()}_URL": role for role in ROLES}}
STAGE_PROGRAMS, STAGE_VALKEY, STAGE_POSTGRES = 0, 10, 20
OUTSIDE_PATIENCE_SECONDS = 5.0
# A server that ended so often before its first answer will not come up.
HOPELESS_ENDS = 3


class Servers:
    """The embedded servers of a data directory: what to run, where they answer, and the wait until they do."""

    def __init__(self, home: Home, options: Options) -> None:
        self.home = home
        sockets = home.sockets()
        memory = {"log": options.log_memory_mb, "cache": options.cache_memory_mb}
        self._postgres_sockets = sockets / "postgres"
        self._postgres_wanted = _ours("DATABASE_URL", self._postgres_url("martech"))
        valkeys = [
            ValkeyServer(role, home.path / role, sockets / f"{role}.sock", memory.get(role, 256)) for role in ROLES
        ]
        self.valkeys = [valkey for valkey in valkeys if _ours(f"{valkey.role.upper()}_URL", valkey.url)]

    def environment(self) -> dict[str, str]:
        """Return where the embedded servers answer, as environment variables."""
        found = {f"{valkey.role.upper()}_URL": valkey.url for valkey in self.valkeys}
        if self._postgres_wanted:
            found["DATABASE_URL"] = self._postgres_url("martech")
        return found

    def _postgres_url(self, database: str) -> str:
        return address_of(self._postgres_sockets, database)

    def start(self, supervisor: Supervisor) -> None:
        """Prepare the servers and have them run."""
        self.home.require_room()
        self.home.create_sockets()
        programs = [self._valkey(valkey) for valkey in self.valkeys]
        if self._postgres_wanted:
            programs.append(self._postgres())
        for program in programs:
            supervisor.start(program)

    def _valkey(self, valkey: ValkeyServer) -> Program:
        valkey.prepare()
        return Program(
            name=valkey.role,
            command=valkey.command(),
            stage=STAGE_VALKEY,
            grace=1.0,
            least_grace=1.0,
            abandoned_signal=signal.SIGTERM,
        )

    def _postgres(self) -> Program:
        postgres = PostgresServer(self.home.path / "postgres", self._postgres_sockets)
        if postgres.identity.borrows:
            self.home.let_pass()
        postgres.prepare()
        return Program(
            name="postgres",
            command=postgres.command(),
            stage=STAGE_POSTGRES,
            # Fast, then immediate: what that leaves is recovered at the next start.
            stop_signals=(signal.SIGINT, signal.SIGQUIT),
            grace=1.2,
            least_grace=1.0,
            abandoned_signal=signal.SIGINT,
            workplace=postgres.data,
        )

    def wait(self, supervisor: Supervisor) -> None:
        """Return when every server answers, embedded or not; ConfigurationError when one will not."""
        embedded = self.environment()
        for address, name in ADDRESSES.items():
            if address not in embedded:
                _await_outside(_check(os.environ[address]), address)
            elif name == "postgres":
                _await_embedded(_check(self._postgres_url("postgres")), name, supervisor)
                _create_database(self._postgres_url("postgres"), "martech")
            else:
                _await_embedded(_check(embedded[address]), name, supervisor)


def _ours(name: str, address: str) -> bool:
    """Say whether the environment leaves a server to us: unset, or set to the address that we give it."""
    return os.environ.get(name, "") in ("", address)


def _check(url: str) -> Callable[[], str]:
    """Return a function that says why the server at `url` does not answer; empty when it does."""
    if url.startswith("postgres"):
        return lambda: _postgres_silence(url)
    if url.startswith(("redis", "unix")):
        return lambda: _redis_silence(url)
    # Other logs have their own ways: who opens them says what is wrong.
    return lambda: ""


def _postgres_silence(url: str) -> str:
    import psycopg

    try:
        with psycopg.connect(url, connect_timeout=5):
            return ""
    except psycopg.Error as error:
        return str(error).strip()


def _create_database(url: str, name: str) -> None:
    import psycopg
    from psycopg import sql

    with psycopg.connect(url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _redis_silence(url: str) -> str:
    import redis

    try:
        with redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=5) as client:
            client.ping()
            return ""
    except redis.RedisError as error:
        return str(error)


def _await_embedded(check: Callable[[], str], name: str, supervisor: Supervisor) -> None:
    """Wait as long as the server lives: a recovery after a crash may take minutes."""
    told = time.monotonic()
    while why := check():
        ends, last_line = supervisor.ends(name)
        if ends >= HOPELESS_ENDS:
            raise ConfigurationError(f"The embedded server {name} does not start ({last_line}): correct that first.")
        if time.monotonic() - told > 5:
            told = time.monotonic()
            supervisor.say(f"waiting for {name}: {why}")
        time.sleep(0.03)


def _await_outside(check: Callable[[], str], address: str) -> None:
    deadline = time.monotonic() + OUTSIDE_PATIENCE_SECONDS
    while why := check():
        if time.monotonic() > deadline:
            raise ConfigurationError(f"{address} does not answer ({why}): start that server, or correct {address}.")
        time.sleep(0.2)
