"""The SQL form of audiences' rules, over `customer_profiles` as `p`: what a preview and a refresh ask of everybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cdp.processing.audiences import All, Any_, Computed, Did, Given, Member, Not, Rule
from cdp.processing.sql_forms import Form, condition, form, joined, parameter
from cdp.processing.traits import Window


class Counted(NamedTuple):
    """Where the number of a person's events is kept: the key of its state in `trait_states`, and its window."""

    key: str
    window: Window | None


class Names(NamedTuple):
    """What the rules' words stand for: counts of events by `Did.key`, ids of audiences by slug."""

    counts: Mapping[str, Counted]
    audiences: Mapping[str, int]


def everyone(one: Rule, names: Names, now_us: int) -> Form:
    """Return the condition on `customer_profiles AS p` that a rule is at an instant (µs). Never NULL."""
    if isinstance(one, All):
        return joined("AND", (everyone(part, names, now_us) for part in one.rules), none="true")
    if isinstance(one, Any_):
        return joined("OR", (everyone(part, names, now_us) for part in one.rules), none="false")
    if isinstance(one, Not):
        return form("NOT {}", everyone(one.rule, names, now_us))
    if isinstance(one, Member):
        return form("({} = ANY(p.audiences))", parameter(names.audiences[one.slug], "int"))
    at = parameter(now_us, "bigint")
    if isinstance(one, Did):
        return condition(
            one.condition, form("jsonb_build_object('times', {})", _times(names.counts[one.key], now_us)), at
        )
    column = {Given: "p.traits", Computed: "p.computed_traits"}[type(one)]
    return condition(one.condition, Form(column), at)


def _times(counted: Counted, now_us: int) -> Form:
    if counted.window is None:
        return form("coalesce(p.trait_states -> {}, '0')", parameter(counted.key))
    return form(
        "(SELECT coalesce(sum(times::bigint), 0) FROM jsonb_each_text(p.trait_states -> {}) AS one (bucket, times)"
        " WHERE bucket::bigint >= {})",
        parameter(counted.key), parameter(counted.window.oldest(now_us), "bigint"),
    )  # fmt: skip
