"""The clock, read once at an edge and passed inwards; times inside the hot path are whole microseconds."""

import time
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def now() -> datetime:
    """Return the present instant, with its time zone (UTC)."""
    return datetime.now(UTC)


def now_us() -> int:
    """Return the present instant in microseconds since 1970."""
    return time.time_ns() // 1000


def to_us(instant: datetime) -> int:
    """Return an instant in microseconds since 1970; a time without a zone counts as UTC."""
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return (instant - EPOCH) // _MICROSECOND


def from_us(microseconds: int) -> datetime:
    """Return the instant that many microseconds after 1970, in UTC."""
    return EPOCH + timedelta(microseconds=microseconds)


def isoformat_us(microseconds: int) -> str:
    """Return an instant given in microseconds as ISO 8601 with a `Z`."""
    return from_us(microseconds).isoformat().replace("+00:00", "Z")
