"""The page on which people change a profile: its given traits, its conflicts, and consent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from django.contrib import messages
from django.contrib.admin import ModelAdmin
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from cdp import audit, edits, masking
from cdp.admin.base import context_of
from cdp.models import Profile, Source
from cdp.processing import registers, store
from cdp.processing.consent import TRAIT as CONSENT
from cdp.processing.policies import COUNTER, UNION, Policies
from cdp.processing.states import Conflict
from martech.lib import clock
from martech.lib.errors import MartechError

PERMISSION = "cdp.change_profile"
STATUSES = {edits.Moved.code: 412, edits.Overruled.code: 409, edits.Busy.code: 503}
KEEP, GRANT, WITHDRAW = "", "grant", "withdraw"


class Option(NamedTuple):
    """A value that a source gave, to choose from; `key` is its JSON."""

    key: str
    text: str
    source: str
    at: Any


class Field(NamedTuple):
    """A trait as it can be changed: `text` is what stands in its field."""

    name: str
    policy: str
    text: str
    value: Any
    options: list[Option]


class Choice(NamedTuple):
    """A purpose or topic of consent; `key` names it in the form."""

    key: str
    purpose: str
    topic: str
    granted: bool
    at: str
    evidence: str


def may(request: HttpRequest) -> bool:
    """Return whether somebody may change profiles, of which they see everything."""
    return request.user.has_perm(PERMISSION) and not masking.applies_to(request.user)


def shown(request: HttpRequest, profile: Profile) -> dict[str, Any]:
    """Return what the profile's page shows of this: consent, traits that sources disagree on, and whether to edit."""
    editable = may(request) and profile.merged_into_id is None
    return {
        "editable": editable,
        "consent": list(choices(profile.consent)),
        "conflicts": [field for field in _fields(profile) if field.options] if editable else [],
    }


def view(page: ModelAdmin, request: HttpRequest, profile: Profile) -> HttpResponse:
    """Show the form, or do what it asks for."""
    if not may(request):
        raise PermissionDenied
    if request.method != "POST":
        return _form(page, request, profile)
    traits, consent = _asked(request.POST, _fields(profile)), _asked_consent(request.POST)
    try:
        edits.edit(
            profile_id=profile.pk, versions=[_version(request.POST)], traits=traits, consent=consent,
            actor=audit.actor_of(request),
        )  # fmt: skip
    except MartechError as error:
        profile.refresh_from_db()
        wanted = {one: _text(value) for one, value in traits.items()}
        return _form(page, request, profile, error=error, wanted=wanted, status=STATUSES.get(error.code, 400))
    page.message_user(request, "The profile is changed.", messages.SUCCESS)
    return HttpResponseRedirect(reverse("admin:cdp_profile_change", args=[profile.pk]))


def _form(
    page: ModelAdmin, request: HttpRequest, profile: Profile, *, status: int = 200, **more: Any
) -> TemplateResponse:
    context = context_of(
        page, request, title=f"Change {profile.display_name}", original=profile, profile=profile,
        fields=_fields(profile), choices=list(choices(profile.consent)), **more,
    )  # fmt: skip
    return TemplateResponse(request, "cdp/profile_edit.html", context, status=status)


def _fields(profile: Profile) -> list[Field]:
    """Return the traits that a profile has, with what sources disagree on."""
    connection.ensure_connection()
    policies = Policies(store.merge_policies(connection.connection))
    with connection.cursor() as cursor:
        cursor.execute("SELECT registers::text FROM customer_profiles WHERE id = %s", [profile.pk])
        held = registers.load(cursor.fetchone()[0])
    conflicts = registers.conflicts(held)
    names = dict(Source.objects.values_list("pk", "name")) if conflicts else {}
    return [
        Field(
            name, policies.of(name), _lines(value) if policies.of(name) == UNION else _text(value), value,
            [_option(one, names) for one in conflicts.get(name, [])],
        )
        for name, value in sorted(profile.traits.items())
    ]  # fmt: skip


def _option(one: Conflict, names: Mapping[int, str]) -> Option:
    value = msgspec.json.decode(one.value)
    return Option(
        bytes(one.value).decode(), _text(value), names.get(int(one.source), one.source), clock.from_us(one.at_us)
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _lines(value: Any) -> str:
    return "\n".join(value) if isinstance(value, list) and all(isinstance(one, str) for one in value) else _text(value)


def _version(given: Mapping[str, str]) -> int:
    return int(given["version"]) if given.get("version", "").isdecimal() else -1


def _asked(given: Mapping[str, str], fields: list[Field]) -> dict[str, Any]:
    """Return the traits that a form changes: what stands in a field as it was shown is no change."""
    traits: dict[str, Any] = {}
    for field in fields:
        text = given.get(f"trait:{field.name}", "").replace("\r\n", "\n")
        if f"remove:{field.name}" in given:
            traits[field.name] = None
        elif field.policy == COUNTER:
            if text.strip():
                traits[field.name] = {"$add": _read(text, "")}
        elif f"choose:{field.name}" in given:
            traits[field.name] = _read(given[f"choose:{field.name}"], None)
        elif f"trait:{field.name}" in given and text != field.text.replace("\r\n", "\n"):
            traits[field.name] = {"$set": _set(text)} if field.policy == UNION else _read(text, field.value)
    if given.get("new_name", "").strip():
        traits[given["new_name"].strip()] = _read(given.get("new_value", ""), None)
    return traits


def _set(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _read(text: str, before: Any) -> Any:
    """Return what is meant by a text: where there was a text before a text, else JSON if it is such."""
    if isinstance(before, str) and before:
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def choices(consent: Mapping[str, Any]) -> Iterator[Choice]:
    """Yield purposes and their topics."""
    for purpose, whole in sorted(consent.items()):
        for topic, one in [("", whole), *sorted(whole["topics"].items())]:
            key = json.dumps([purpose, topic])
            yield Choice(key, purpose, topic, one["granted"], one.get("at", ""), _text(one.get("evidence", "")))


def _asked_consent(given: Mapping[str, str]) -> dict[str, Any]:
    """Return the consent that a form changes, as a message carries it."""
    asked = [
        (json.loads(name.partition(":")[2]), what) for name, what in given.items() if name.startswith(f"{CONSENT}:")
    ]
    if given.get("new_purpose", "").strip():
        asked.append(([given["new_purpose"].strip(), ""], given.get("new_choice", WITHDRAW)))
    proof = {"evidence": {"note": given.get("evidence", "").strip()}} if given.get("evidence", "").strip() else {}
    consent: dict[str, Any] = {}
    for (purpose, topic), what in asked:
        if what != KEEP:
            choice = {"granted": what == GRANT, **(proof if what == GRANT else {})}
            whole = consent.setdefault(purpose, {})
            whole |= {"topics": {**whole.get("topics", {}), topic: choice}} if topic else choice
    return consent
