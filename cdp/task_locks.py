"""Who runs a task now: a lock of PostgreSQL on its id, which ends with the process that holds it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from django.db import connection

# The first key of the advisory locks on tasks; the second is the end of the task's id.
LOCK_CLASS = 0x7461736B
# A machine that lost its power says no farewell: PostgreSQL asks, and lets go of its locks within a minute.
OPTIONS = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3 -c idle_session_timeout=0"


@dataclass(slots=True)
class _Session:
    """A connection for locks alone, since a task may close Django's, and what it holds."""

    address: dict[str, Any]
    connection: psycopg.Connection[Any]
    held: set[str] = field(default_factory=set)


# A session may take a lock twice: threads of one process must not share it.
_mine = threading.local()


def take(task_id: str) -> bool:
    """Lock a task for this thread; False while another one runs it. psycopg.OperationalError: PostgreSQL is away."""
    try:
        return _take(_session(), task_id)
    except psycopg.OperationalError:
        # The session may have been ended while it had nothing to do.
        close()
    return _take(_session(), task_id)


def _take(session: _Session, task_id: str) -> bool:
    if task_id not in session.held:
        row = session.connection.execute("SELECT pg_try_advisory_lock(%s, %s)", _keys(task_id)).fetchone()
        if not (row and row[0]):
            return False
        session.held.add(task_id)
    return True


def holds(task_id: str) -> bool:
    """Tell whether this thread took a task and has not let go of it."""
    session: _Session | None = getattr(_mine, "session", None)
    return session is not None and task_id in session.held


def release(task_id: str) -> None:
    """Let go of a task, if this thread holds it."""
    session: _Session | None = getattr(_mine, "session", None)
    if session is None or task_id not in session.held:
        return
    session.held.discard(task_id)
    try:
        session.connection.execute("SELECT pg_advisory_unlock(%s, %s)", _keys(task_id))
    except psycopg.OperationalError:
        close()


def _keys(task_id: str) -> list[int]:
    # Two ids with one end: the later task waits for the other, as if it were the same.
    return [LOCK_CLASS, int.from_bytes(UUID(task_id).bytes[-4:], signed=True)]


def _session() -> _Session:
    wanted = address()
    session: _Session | None = getattr(_mine, "session", None)
    if session is None or session.connection.closed or session.address != wanted:
        close()
        session = _mine.session = _Session(wanted, psycopg.connect(**wanted, autocommit=True))
    return session


def address() -> dict[str, Any]:
    """Return how to connect for locks: by a session of its own, which keeps them however long it has nothing to do."""
    parameters = connection.get_connection_params()
    for ours in ("context", "cursor_factory"):
        parameters.pop(ours, None)
    return {**parameters, "options": f"{parameters.get('options', '')} {OPTIONS}".strip()}


def close() -> None:
    """End this thread's session, and its locks with it."""
    session: _Session | None = getattr(_mine, "session", None)
    if session is not None:
        session.connection.close()
        _mine.session = None
