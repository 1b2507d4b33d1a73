"""The demo itself: send the purchases, wait until they are processed, compare."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

import httpx
import psycopg
from django.db import OperationalError as DatabaseAway
from django.db import connections

from cdp import keys
from cdp.config import Config
from cdp.models import ApiKey, Source
from martech.demo import comparing, story
from martech.demo.backlog import Backlog
from martech.demo.cdnow import Purchase
from martech.demo.comparing import Line
from martech.demo.screen import Screen
from martech.demo.sending import Sender
from martech.lib import clock
from martech.lib.errors import MartechError, RetryableError

T = TypeVar("T")

SOURCE = "CDNOW purchases"
API_KEY = "CDNOW comparison"
TICK_SECONDS = 0.2
# A program that was killed runs again sooner: its supervisor pauses for 30 s at the most.
PATIENCE_SECONDS = 180.0
# Repeated events are recognised up to the window's end, and sending takes a while.
SENDING = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where the demo is played: the platform's address and settings, a way to say a line, and the screen."""

    url: str
    config: Config
    say: Callable[[str], None]
    screen: Screen


@dataclass(frozen=True, slots=True)
class Report:
    """The comparison, how many events were sent, and the seconds until all were acknowledged and processed."""

    lines: list[Line]
    events: int
    acknowledged_seconds: float
    processed_seconds: float

    @property
    def equal(self) -> bool:
        """Whether the platform says what the file says."""
        return all(line.equal for line in self.lines)


def play(stage: Stage, purchases: Sequence[Purchase]) -> Report:
    """Send the purchases, unless they were sent too long ago to be recognised, and compare."""
    source = _patiently(_source)
    since = _patiently(lambda: _sent_long_ago(stage.config, source.pk))
    with Backlog(stage.config) as backlog:
        if since is None:
            report = _send(stage, source.write_key, purchases, backlog)
        else:
            stage.say(_not_again(since, stage.config))
            report = Report([], 0, 0.0, 0.0)
        position = _patiently(backlog.token)
    return replace(report, lines=_patiently(lambda: _compare(stage, source.pk, purchases, position)))


def _patiently(ask: Callable[[], T]) -> T:
    """Return what `ask` does; ask again while a server is away, for PATIENCE_SECONDS at the most."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except (DatabaseAway, psycopg.OperationalError, httpx.TransportError, RetryableError):
            if time.monotonic() > deadline:
                raise
        finally:
            connections.close_all()
        time.sleep(1)


def _source() -> Source:
    return Source.objects.filter(name=SOURCE).first() or keys.create_source(name=SOURCE)


def _sent_long_ago(config: Config, source_id: int) -> datetime | None:
    """Return when the purchases came first, if that is too long ago for a repetition to be recognised."""
    with psycopg.connect(config.database_url) as connection:
        row = connection.execute("SELECT min(received_at) FROM event_stream WHERE source_id = %s", [source_id])
        first: datetime | None = (row.fetchone() or [None])[0]
    window = timedelta(days=config.duplicate_window_days) - SENDING
    return first if first is not None and clock.now() - first > window else None


def _not_again(since: datetime, config: Config) -> str:
    return (
        f"the purchases came on {since:%Y-%m-%d}, and repeated events are recognised for "
        f"{config.duplicate_window_days} days only: they are compared without being sent again "
        f"(start with an empty MARTECH_DATA to send them)"
    )


def _send(stage: Stage, write_key: str, purchases: Sequence[Purchase], backlog: Backlog) -> Report:
    """Send everything and return when it is processed; RetryableError when nothing moves any more."""
    total = comparing.from_file(purchases).events
    began, acknowledged_at = time.monotonic(), 0.0
    still = _Stillness()
    with (
        stage.screen.progress(["sent", "acknowledged", "processed"], total, stage.say) as show,
        Sender(stage.url, write_key) as sender,
    ):
        sender.start(story.calls(purchases))
        while True:
            # In this order: what was appended by then is what the backlog is asked for.
            finished = sender.finished
            behind = backlog.look()
            counts = sender.counts
            now = {"sent": counts.sent, "acknowledged": counts.acknowledged, "processed": backlog.processed}
            show(now)
            if finished and not acknowledged_at:
                acknowledged_at = time.monotonic()
            if finished and not behind:
                return Report([], total, acknowledged_at - began, time.monotonic() - began)
            if still.for_too_long(now):
                raise _stuck(now, finished, behind)
            time.sleep(TICK_SECONDS)


class _Stillness:
    """Notices that nothing has moved for too long."""

    def __init__(self) -> None:
        self._last: object = None
        self._deadline = 0.0

    def for_too_long(self, progress: object) -> bool:
        """Say whether `progress` has been the same for PATIENCE_SECONDS."""
        if progress != self._last:
            self._last, self._deadline = progress, time.monotonic() + PATIENCE_SECONDS
        return time.monotonic() > self._deadline


def _stuck(counts: dict[str, int], finished: bool, behind: dict[int, str]) -> MartechError:
    if finished:
        waiting = ", ".join(f"{partition} (up to {position or '?'})" for partition, position in behind.items())
        what, who = f"partitions of the log are not processed: {waiting}", "processor and postgres say"
    else:
        what = f"{counts['sent'] - counts['acknowledged']:,} events are sent and not acknowledged"
        who = "web and log say"
    return RetryableError(
        f"Nothing has moved for {PATIENCE_SECONDS:.0f} s; {what}. See what {who} above, then start again: what was "
        "sent twice counts once."
    )


def _compare(stage: Stage, source_id: int, purchases: Sequence[Purchase], position: str) -> list[Line]:
    file = comparing.from_file(purchases)
    platform = comparing.from_platform(stage.config.database_url, source_id)
    _, secret = keys.create_api_key(name=API_KEY, scopes=["profiles:read"])
    read = comparing.read_profiles(stage.url, secret, comparing.top(platform.customers), position)
    for key in ApiKey.objects.filter(name=API_KEY, revoked_at=None):
        keys.revoke_api_key(key)
    return comparing.lines(file, platform, read)
