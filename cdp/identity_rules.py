"""The rules of who is who, and changing them: for the past as well, with a look first at what that would do.

A version is a draft until somebody publishes it. From then on it counts for all new evidence, and a job brings it
upon the people whom it may concern, in canonical order like everything else: `clusters.derive` has no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
from django.db import connection, transaction

from cdp import audit, definitions, lookup, showing, unmerging
from cdp.models import IdentityRules
from cdp.processing import clusters, graph, store
from cdp.processing.clusters import ANY, Ruleset
from cdp.processing.identity import BLOCKED, MAX_NAMESPACE, MAX_VALUE, USER_ID, Identifier
from cdp.processing.pipeline import Pipeline
from martech.lib import clock
from martech.lib.errors import PermanentError, RetryableError

Status = IdentityRules.Status
# Constants that programs send for nobody: they are no identifiers in any namespace, whatever the rules say.
NOBODY = tuple(sorted(BLOCKED))
FIELDS = {"limit", "priority", "blocked", "shared_after"}
MAX_LIMIT = 1000
# People in one transaction of the job: they stay locked until it ends.
CHUNK = 20
# Profiles that a dry run looks at in one go.
TOGETHER = 200
RACES = 20
# "rulejob" in ASCII.
JOB_LOCK = 0x72756C656A6F62
EXAMPLES = 10
# The member of `progress` in which a draft's dry run is kept.
DRY_RUN = "dry_run"

# Whom rules may concern: whoever was refused something or stands for nobody, and whoever breaks them as they are.
_SEEDS = """
SELECT id FROM customer_profiles WHERE standing <> 0 AND merged_into_id IS NULL
UNION
SELECT profile_id FROM cdp_identifier i
LEFT JOIN unnest(%(names)s::text[], %(limits)s::int[]) AS rule (name, most) ON rule.name = i.namespace
GROUP BY profile_id, namespace, most HAVING count(*) > coalesce(most, %(most)s)
UNION
SELECT profile_id FROM cdp_identifier i
JOIN unnest(%(blocked_names)s::text[], %(blocked)s::text[]) AS rule (name, value)
    ON lower(trim(BOTH '"'' ' FROM i.value) COLLATE "default") = rule.value
    AND (rule.name = i.namespace OR (rule.name = '*' AND i.namespace <> ALL (%(names)s)))
UNION
SELECT i.profile_id FROM (
    SELECT one, count(DISTINCT other) AS users FROM (
        SELECT left_id AS one, right_id AS other FROM cdp_edge UNION ALL SELECT right_id, left_id FROM cdp_edge
    ) AS pair
    JOIN cdp_identifier u ON u.id = other
        AND (u.namespace = ANY (%(single)s) OR (%(most)s = 1 AND u.namespace <> ALL (%(names)s)))
    GROUP BY one HAVING count(DISTINCT other) > %(least_shared)s
) AS shared
JOIN cdp_identifier i ON i.id = one
ORDER BY 1
"""
_LARGEST = """
SELECT profile_id, count(*) FROM cdp_identifier GROUP BY profile_id ORDER BY count(*) DESC, profile_id
"""


class UnfitRules(PermanentError):
    """Rules that cannot be."""

    code = "unfit_rules"


class NotADraft(PermanentError):
    """The version was published before, or there is none such."""

    code = "not_a_draft"


class Underway(RetryableError):
    """Another version is being applied."""

    code = "rules_underway"


@dataclass(slots=True)
class Outcome:
    """What rules do to the people there are: profiles that split and that join, and the sizes of the largest.

    `looked_at` are the profiles that were made anew; `examples` say of some who would become what.
    """

    looked_at: int = 0
    split: int = 0
    merged: int = 0
    largest_before: int = 0
    largest_after: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"would split {self.split:,}, merge {self.merged:,};"
            f" largest cluster {self.largest_before:,} → {self.largest_after:,}"
        )


def current() -> IdentityRules:
    """Return the version that counts."""
    found = IdentityRules.objects.exclude(status=Status.DRAFT).order_by("-version").first()
    return found or IdentityRules(version=0, namespaces=plain(clusters.DEFAULT), status=Status.APPLIED)


def plain(rules: Ruleset) -> dict[str, Any]:
    """Return rules as JSON data."""
    return {name: one._asdict() | {"blocked": sorted(one.blocked)} for name, one in rules.namespaces.items()}


def checked(namespaces: Any) -> dict[str, Any]:
    """Return rules as they are kept, every namespace with all its fields; UnfitRules says what is wrong."""
    if not isinstance(namespaces, Mapping) or ANY not in namespaces:
        raise UnfitRules(f'Rules are an object of namespaces; "{ANY}" has to be among them, for all others.')
    found = {str(name): _checked(str(name), rules) for name, rules in namespaces.items()}
    if found.get(USER_ID, found[ANY])["limit"] < 1:
        raise UnfitRules("user_id needs a limit of 1 at least.")
    return found


def _checked(name: str, rules: Any) -> dict[str, Any]:
    if not isinstance(rules, Mapping) or (unknown := sorted(set(rules) - FIELDS)):
        what = f"unknown: {', '.join(map(str, unknown))}" if isinstance(rules, Mapping) else "not an object"
        raise UnfitRules(f"{name}: {what}. Its fields are {', '.join(sorted(FIELDS))}.")
    if not 0 < len(name) <= MAX_NAMESPACE:
        raise UnfitRules(f"A namespace has 1 to {MAX_NAMESPACE} characters.")
    default = clusters.DEFAULT[name]
    blocked = rules.get("blocked", [])
    if not isinstance(blocked, list) or not all(isinstance(one, str) and 0 < len(one) <= MAX_VALUE for one in blocked):
        raise UnfitRules(f"{name}: `blocked` is a list of texts of at most {MAX_VALUE} characters.")
    return {
        "limit": _number(name, "limit", rules.get("limit", default.limit), least=1),
        "priority": _number(name, "priority", rules.get("priority", default.priority), least=0),
        "blocked": sorted({one.strip("\"' ").lower() for one in blocked} - {""}),
        "shared_after": _number(name, "shared_after", rules.get("shared_after", default.shared_after), least=0),
    }


def _number(name: str, what: str, value: Any, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_LIMIT:
        raise UnfitRules(f"{name}: `{what}` is a whole number from {least} to {MAX_LIMIT}.")
    return value


def draft(namespaces: Any, *, author: str, note: str = "") -> IdentityRules:
    """Keep rules as a draft; UnfitRules."""
    row = IdentityRules.objects.create(
        namespaces=checked(namespaces), author=author[:255], note=note, created_at=clock.now()
    )
    audit.record(actor=author, action="identity_rules.draft", object_type="identity_rules", object_id=row.pk)
    return row


def dry_run(namespaces: Any, *, progress: Callable[[int, int], None] | None = None) -> Outcome:
    """Say what rules would do to the people there are; nothing is written. `progress` is told (done, of)."""
    rules = Ruleset.of(0, checked(namespaces))
    with transaction.atomic():
        connection.ensure_connection()
        driver = connection.connection
        driver.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return _looked(driver, rules, progress or (lambda done, of: None))


def _looked(driver: store.Connection, rules: Ruleset, progress: Callable[[int, int], None]) -> Outcome:
    seeds, still = _concerned(driver, rules)
    outcome, seen, largest = Outcome(), set[UUID](), 0
    for start in range(0, len(seeds), TOGETHER):
        fresh = [one for one in seeds[start : start + TOGETHER] if one not in seen]
        if fresh:
            whole = graph.closure(driver, fresh, rules, still)
            seen |= {row.profile for row in whole.rows.values()}
            largest = max(largest, _compare(whole, rules, outcome))
        progress(min(start + TOGETHER, len(seeds)), len(seeds))
    outcome.looked_at = len(seen)
    outcome.largest_before, others = _largest(driver, seen)
    outcome.largest_after = max(largest, others)
    return outcome


def _compare(whole: graph.Whole, rules: Ruleset, outcome: Outcome) -> int:
    """Count what becomes of people that hang together; return the size of the largest."""
    found = clusters.derive(whole.rows, whole.links.values(), rules, whole.unmerges, blocked=whole.blocked)
    made = [one & whole.rows.keys() for one in found.clusters if one & whole.rows.keys()]
    became: dict[UUID, list[set[Any]]] = {}
    for cluster in made:
        before = {whole.rows[one].profile for one in cluster}
        outcome.merged += len(before) > 1
        for profile in before:
            became.setdefault(profile, []).append(cluster)
    for profile, parts in became.items():
        outcome.split += len(parts) > 1
        if len(parts) > 1 and len(outcome.examples) < EXAMPLES:
            shown = [sorted(map(str, one))[:EXAMPLES] for one in sorted(parts, key=len, reverse=True)[:EXAMPLES]]
            sizes = sorted(map(len, parts), reverse=True)[:EXAMPLES]
            example = {"profile_id": str(profile), "becomes": len(parts), "sizes": sizes, "parts": shown}
            outcome.examples.append(example)
    return max(map(len, made), default=0)


def _largest(driver: store.Connection, seen: set[UUID]) -> tuple[int, int]:
    """Return the number of identifiers of the largest profile, and of the largest that is not among `seen`."""
    largest = 0
    with driver.cursor() as cursor:
        for profile, size in cursor.stream(_LARGEST):
            largest = largest or size
            if profile not in seen:
                return largest, size
    return largest, 0


def _concerned(driver: store.Connection, rules: Ruleset) -> tuple[list[UUID], dict[Identifier, str]]:
    """Return whom rules may concern, and the identifiers that stay blocked, which nothing changes for."""
    still, profiles = graph.blocked(driver, rules)
    return [one for one in _seeds(driver, rules) if one not in profiles], still


def _seeds(driver: store.Connection, rules: Ruleset) -> list[UUID]:
    named = {name: one for name, one in rules.namespaces.items() if name != ANY}
    blocked = [(name, value) for name, one in rules.namespaces.items() for value in one.blocked]
    shared = [one.shared_after for one in rules.namespaces.values() if one.limit != 1 and one.shared_after]
    rows = driver.execute(
        _SEEDS,
        {
            "names": list(named), "limits": [one.limit for one in named.values()], "most": rules[ANY].limit,
            "blocked_names": [name for name, _ in blocked], "blocked": [value for _, value in blocked],
            "single": [name for name, one in named.items() if one.limit == 1],
            "least_shared": min(shared, default=2**31 - 1),
        },
    ).fetchall()  # fmt: skip
    return [row[0] for row in rows]


def publish(version: int, *, author: str) -> IdentityRules:
    """Let a draft count from now on, and have a job bring it upon the past; NotADraft, Underway."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            # Batches under the old rules end first: what they wrote is seen by the job.
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [store.RULES_LOCK])
        if IdentityRules.objects.filter(status=Status.APPLYING).exists():
            raise Underway("Another version is being applied. Wait until it is done.", retry_after=30)
        row = IdentityRules.objects.filter(pk=version, status=Status.DRAFT).first()
        if row is None:
            raise NotADraft(f"There is no draft {version} of the identity rules.")
        if version < current().version:
            # The newest version counts: an older draft becomes a new one.
            row = IdentityRules.objects.create(
                namespaces=row.namespaces, note=row.note, author=row.author, created_at=clock.now()
            )
        row.status = Status.APPLYING
        row.author = author[:255]
        row.save()
        definitions.raise_version()
        audit.record(actor=author, action="identity_rules.publish", object_type="identity_rules", object_id=row.pk)
        transaction.on_commit(_send, robust=True)
    return row


def _send() -> None:
    """Have a worker begin at once; where the broker is away, beat finds the row."""
    from cdp.tasks import apply_identity_rules

    apply_identity_rules.delay()


def apply(*, progress: Callable[[int, int], None] | None = None) -> IdentityRules | None:
    """Bring published rules upon the past, and return their version; None where nothing waits, or another is at it.

    It may be killed at any time: the next one goes on where it was, and whoever is made anew twice is the same.
    `progress` is told (done, of).
    """
    with _alone() as alone:
        row = IdentityRules.objects.filter(status=Status.APPLYING).order_by("-version").first()
        if row is None or not alone:
            return None
        return _applied(row, progress or (lambda done, of: None))


@contextmanager
def _alone() -> Iterator[bool]:
    """Say whether no other process applies rules, and keep others off."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [JOB_LOCK])
        alone = bool(cursor.fetchone()[0])
    try:
        yield alone
    finally:
        if alone and connection.connection is not None and not connection.connection.broken:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [JOB_LOCK])


def _applied(row: IdentityRules, progress: Callable[[int, int], None]) -> IdentityRules:
    rules = Ruleset.of(row.version, row.namespaces)
    seeds, still = _concerned(connection.connection, rules)
    after = row.progress.get("after", "")
    left = [one for one in seeds if str(one) > after]
    done = Outcome(len(seeds) - len(left), row.progress.get("split", 0), row.progress.get("merged", 0))
    pipeline, seen = Pipeline(), set[UUID]()
    for start in range(0, len(left), CHUNK):
        chunk = left[start : start + CHUNK]
        fresh = [one for one in chunk if one not in seen]
        if fresh:
            seen |= _rebuilt(pipeline, fresh, still, row.author, done)
        done.looked_at += len(chunk)
        row.progress = _tried(row) | _progress(done, len(seeds)) | {"after": str(chunk[-1])}
        row.save(update_fields=["progress"])
        progress(done.looked_at, len(seeds))
    row.status, row.applied_at = Status.APPLIED, clock.now()
    row.progress = _tried(row) | _progress(done, len(seeds))
    row.save(update_fields=["status", "applied_at", "progress"])
    return row


def _tried(row: IdentityRules) -> dict[str, Any]:
    """Return what is kept of the dry run."""
    return {name: row.progress[name] for name in (DRY_RUN,) if name in row.progress}


def _progress(done: Outcome, of: int) -> dict[str, Any]:
    found = {name: value for name, value in asdict(done).items() if name in {"looked_at", "split", "merged"}}
    return found | {"of": of}


def _rebuilt(
    pipeline: Pipeline, profiles: Sequence[UUID], still: Mapping[Identifier, str], author: str, done: Outcome
) -> set[UUID]:
    """Make people anew in a transaction of their own; return whose profiles they are now."""
    for _ in range(RACES):
        try:
            with transaction.atomic():
                connection.ensure_connection()
                living = sorted({found for one in profiles if (found := lookup.survivor(one))})
                applied = pipeline.look_at_all(
                    connection.connection, living, reason="rules", author=author, still=still
                )
                unmerging.tell(applied)
                transaction.on_commit(partial(showing.show, applied), robust=True)
            done.split += applied.splits
            done.merged += len(applied.merged)
            return set(living)
        except (store.Raced, psycopg.errors.DeadlockDetected):
            continue
    raise unmerging.Busy("Others are changing the same people all the time. It goes on later.", retry_after=30)
