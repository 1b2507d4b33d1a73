"""What drafts of the rules of who is who would do: found at once where that is quick, by a task where it is not.

It is kept with the draft in numbers alone: an erasure would not look for people's identifiers there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from cdp import identity_rules
from cdp.identity_rules import DRY_RUN, NotADraft, Outcome
from cdp.models import IdentityRules
from martech.lib import clock
from martech.lib.errors import RetryableError

# How long somebody who asked waits for the answer itself.
SECONDS = 5.0
RUNNING, DONE, FAILED = "running", "done", "failed"


class TooLong(RetryableError):
    """A dry run takes longer than somebody waits for it."""

    code = "dry_run_too_long"

    def __init__(self) -> None:
        super().__init__(
            "These rules concern so many people that a dry run takes long. Keep them as a draft, whose dry run goes on"
            " in the background.",
            retry_after=60,
        )


def tried(namespaces: Any, *, seconds: float | None = SECONDS) -> Outcome:
    """Say what rules would do; UnfitRules, TooLong."""
    return identity_rules.dry_run(namespaces, progress=_until(seconds))


def rehearse(version: int, *, seconds: float | None = SECONDS) -> IdentityRules:
    """Find what a draft would do, and return it with that; what takes longer goes on as a task. NotADraft."""
    row = IdentityRules.objects.filter(pk=version, status=IdentityRules.Status.DRAFT).first()
    if row is None:
        raise NotADraft(f"There is no draft {version} of the identity rules.")
    _keep(row, {"state": RUNNING})
    try:
        _keep(row, {"state": DONE, **_numbers(tried(row.namespaces, seconds=seconds))})
    except TooLong:
        _send(version)
    except Exception:
        _keep(row, {"state": FAILED})
        raise
    return row


def dry_run_of(row: IdentityRules) -> dict[str, Any] | None:
    """Return what is kept of a draft's dry run, with the same in words once it is done; None where none was made."""
    found: dict[str, Any] | None = row.progress.get(DRY_RUN)
    if found is None or found["state"] != DONE:
        return found
    return {**found, "words": str(Outcome(**{name: found[name] for name in asdict(Outcome())}))}


def examples_of(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the examples of an outcome without anybody's identifiers."""
    return [{name: value for name, value in one.items() if name != "parts"} for one in outcome.examples]


def _numbers(outcome: Outcome) -> Mapping[str, Any]:
    return asdict(outcome) | {"examples": examples_of(outcome)}


def _keep(row: IdentityRules, found: Mapping[str, Any]) -> None:
    """Keep what a dry run found, and as against which version that is; whoever published it meanwhile stays."""
    against = identity_rules.current().version
    row.progress = {DRY_RUN: {**found, "at": clock.now().isoformat(), "against": against}}
    IdentityRules.objects.filter(pk=row.pk, status=IdentityRules.Status.DRAFT).update(progress=row.progress)


def _send(version: int) -> None:
    from cdp.tasks import try_identity_rules

    try_identity_rules.delay(version)


def _until(seconds: float | None) -> Callable[[int, int], None]:
    end = None if seconds is None else time.monotonic() + seconds

    def stop(done: int, of: int) -> None:
        if end is not None and done < of and time.monotonic() > end:
            raise TooLong

    return stop
