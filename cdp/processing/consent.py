"""Consent by purpose and topic: granted only where an opt-in with evidence is strictly later than every opt-out.

Pure functions. `granted` is the one place that says whether somebody may be written to, or told of to others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from cdp.processing.states import Dot, Misfit, Origin, State, decoded, shown_at

TRAIT = "consent"
VERSION = 1
WITHOUT_EVIDENCE = "consent_without_evidence"
# Under which a purpose itself stands among its topics.
WHOLE = ""

_encode = msgspec.json.Encoder().encode


class Grant(NamedTuple):
    """An opt-in: event time (µs), message id, and what proves it, a JSON object."""

    at_us: int
    message_id: str
    evidence: Raw


class Choice(msgspec.Struct, frozen=True, omit_defaults=True):
    """What somebody said of a purpose or topic: the latest opt-in and the latest opt-out."""

    opt_in: Grant | None = None
    opt_out: Dot | None = None

    def join(self, other: Choice) -> Choice:
        """Return the later of each."""
        grants = filter(None, (self.opt_in, other.opt_in))
        refusals = filter(None, (self.opt_out, other.opt_out))
        return Choice(max(grants, key=lambda one: one[:2], default=None), max(refusals, default=None))

    @property
    def granted(self) -> bool:
        """Whether the opt-in is strictly later than the opt-out."""
        return self.opt_in is not None and (self.opt_out is None or self.opt_in.at_us > self.opt_out.at_us)

    @property
    def newest_us(self) -> int:
        """The time of the latest."""
        return max(one.at_us for one in (self.opt_in, self.opt_out, Dot(0, "")) if one is not None)


class Consent(State, frozen=True, tag="consent"):
    """Choices by purpose and topic; a purpose's own stands under the topic ""."""

    choices: dict[str, dict[str, Choice]] = {}

    def join(self, other: Consent) -> Consent:
        """Return the later opt-in and opt-out of each topic."""
        joined = dict(self.choices)
        for purpose, topics in other.choices.items():
            mine = dict(joined.get(purpose, {}))
            for topic, choice in topics.items():
                mine[topic] = mine[topic].join(choice) if topic in mine else choice
            joined[purpose] = mine
        return Consent(self.version, joined)

    def present(self) -> Raw | None:
        """Return what `granted` takes: by purpose whether and since when, with the evidence, and its topics alike."""
        shown = {
            purpose: {
                **_shown(topics.get(WHOLE, Choice())),
                "topics": {topic: _shown(topics[topic]) for topic in sorted(topics) if topic != WHOLE},
            }
            for purpose, topics in sorted(self.choices.items())
        }
        return Raw(_encode(shown))

    def newest_us(self) -> int:
        """Return the time of the latest choice."""
        return max((one.newest_us for topics in self.choices.values() for one in topics.values()), default=0)


def _shown(choice: Choice) -> dict[str, Any]:
    at = {"at": shown_at(choice.newest_us)} if choice.newest_us else {}
    evidence = {"evidence": choice.opt_in.evidence} if choice.opt_in and choice.granted else {}
    return {"granted": choice.granted, **at, **evidence}


def granted(consent: Mapping[str, Any], purpose: str, topic: str = "") -> bool:
    """Return whether a purpose is granted, and the topic within it not refused.

    `consent` is a profile's, as its column and document have it (`Consent.present`). What was never said is refused;
    a topic of which nothing was said is as its purpose.
    """
    choice = consent.get(purpose)
    if not choice or choice["granted"] is not True:
        return False
    named = choice["topics"].get(topic) if topic else None
    return named is None or named["granted"] is True


def lift_consent(value: Raw, origin: Origin, version: int = VERSION) -> tuple[Consent, dict[str, Misfit]]:
    """Return the choices in a trait `consent`, and by purpose or topic what was left out and why.

    `{"email": {"granted": true, "evidence": {…}, "topics": {"news": {"granted": false}}}, "sms": false}`: false
    restricts, true counts with evidence alone; a topic's may be its purpose's.
    """
    given = decoded(value)
    if not isinstance(given, dict):
        return Consent(version), {TRAIT: Misfit("Consent is an object: purpose → choice.")}
    raw = msgspec.json.decode(value, type=dict[str, Raw])
    choices: dict[str, dict[str, Choice]] = {}
    misfits: dict[str, Misfit] = {}
    for purpose in given:
        topics = choices[purpose] = {}
        for topic, said in _said(purpose, given[purpose], raw[purpose], misfits):
            try:
                topics[topic] = _choice(said, origin)
            except Misfit as misfit:
                misfits[".".join(filter(None, (TRAIT, purpose, topic)))] = misfit
    return Consent(version, {purpose: topics for purpose, topics in choices.items() if topics}), misfits


class _Said(NamedTuple):
    granted: Any
    evidence: Raw | None


def _said(purpose: str, given: Any, raw: Raw, misfits: dict[str, Misfit]) -> list[tuple[str, _Said]]:
    """Return what is said of a purpose itself and of each of its topics."""
    if not isinstance(given, dict):
        return [(WHOLE, _Said(given, None))]
    topics = given.get("topics", {})
    if not isinstance(topics, dict) or WHOLE in topics or not {"granted", "topics"} & given.keys():
        misfits[f"{TRAIT}.{purpose}"] = Misfit("A choice has `granted`, `topics` (topic → choice) or both.")
        return []
    parts = msgspec.json.decode(raw, type=dict[str, Raw])
    evidence = _evidence(given, parts)
    found = [(WHOLE, _Said(given["granted"], evidence))] if "granted" in given else []
    inner = msgspec.json.decode(parts["topics"], type=dict[str, Raw]) if topics else {}
    for topic, choice in topics.items():
        if isinstance(choice, dict):
            own = _evidence(choice, msgspec.json.decode(inner[topic], type=dict[str, Raw]))
            found.append((topic, _Said(choice.get("granted"), own or evidence)))
        else:
            found.append((topic, _Said(choice, evidence)))
    return found


def _evidence(given: dict[str, Any], raw: dict[str, Raw]) -> Raw | None:
    evidence = given.get("evidence")
    return raw["evidence"] if isinstance(evidence, dict) and evidence else None


def _choice(said: _Said, origin: Origin) -> Choice:
    # Whose clock is ahead must not outlast an opt-out that comes a minute later.
    at_us = origin.at_us if origin.received_us is None else min(origin.at_us, origin.received_us)
    if said.granted is False:
        return Choice(opt_out=Dot(at_us, origin.message_id))
    if said.granted is not True:
        raise Misfit("`granted` is true or false.")
    if said.evidence is None:
        raise Misfit("An opt-in without evidence does not count. Send `evidence`, an object.", WITHOUT_EVIDENCE)
    return Choice(opt_in=Grant(at_us, origin.message_id, said.evidence))
