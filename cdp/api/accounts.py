"""Accounts, their members and their timelines."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from drf_spectacular.utils import OpenApiParameter, extend_schema
from msgspec import Raw
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cdp import account_edits, accounts, audit, edits, lookup, masking, timeline
from cdp.api import lists, profiles
from cdp.api.access import masks
from cdp.processing.accounts import Membership
from martech.lib import clock

READ = {"GET": "accounts:read"}
# Who belongs to an account is personal, and so is what they said of it.
READ_PEOPLE = {"GET": "profiles:read"}
REFERENCE = OpenApiParameter(
    "reference",
    str,
    OpenApiParameter.PATH,
    description="An account's id, or `namespace:value`, such as `group_id:acme`",
)


class AccountSerializer(serializers.Serializer):
    """A company or team as group calls tell of it."""

    id = serializers.UUIDField()
    identifiers = profiles.IdentifierSerializer(many=True)
    traits = serializers.DictField(help_text="What sources said")
    version = serializers.IntegerField(help_text="Counts accepted changes")
    as_of = serializers.DateTimeField(help_text="When this was true")
    created_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField()


class MembershipSerializer(serializers.Serializer):
    """Since when somebody belongs to an account, and in which role."""

    role = serializers.CharField(help_text="What the newest call says, empty where none does")
    joined_at = serializers.DateTimeField(help_text="The earliest call that says so")
    left_at = serializers.DateTimeField(allow_null=True, help_text="Where the newest call says that it ended")


class MemberSerializer(MembershipSerializer):
    """A person who belongs to an account."""

    profile = profiles.ProfileSerializer()


class BelongingSerializer(MembershipSerializer):
    """An account that a person belongs to."""

    account = AccountSerializer()


class AccountsQuery(lists.ListQuery):
    """What the list of accounts takes."""

    identifier = serializers.CharField(required=False, default="", help_text="`namespace:value`: only its account")

    def validate_identifier(self, value: str) -> str:
        """Return the identifier; it has a namespace."""
        if value and ":" not in value:
            raise serializers.ValidationError("Write it as namespace:value, such as group_id:acme.")
        return value


class MembersQuery(lists.ListQuery, profiles.PositionQuery):
    """What lists of members and of a person's accounts take."""


class CallsQuery(MembersQuery):
    """What an account's timeline takes."""

    since = serializers.DateTimeField(required=False, default=None, help_text="Included")
    until = serializers.DateTimeField(required=False, default=None, help_text="Not included")


def found(reference: str) -> UUID:
    """Return the id of the account that an address names, or answer 404."""
    account_id = accounts.by_reference(reference)
    if account_id is None:
        raise NotFound(f"There is no account {reference}. Check its namespace and spelling.")
    return account_id


def _shown(document: bytes, *, masked: bool) -> Any:
    return masking.account(msgspec.json.decode(document)) if masked else Raw(document)


def _membership(membership: Membership, *, masked: bool) -> dict[str, Any]:
    role, ended = membership.role_shown, membership.ended_us
    return {
        "role": masking.prose(role) if masked else role,
        "joined_at": clock.from_us(membership.since_us),
        "left_at": None if ended is None else clock.from_us(ended),
    }


class Accounts(APIView):
    """All accounts."""

    scopes = READ

    @extend_schema(operation_id="list_accounts", parameters=[AccountsQuery], responses=lists.page_of(AccountSerializer))
    def get(self, request: Request) -> Response:
        """List accounts, newest first."""
        query, masked = lists.read(request, AccountsQuery), masks(request)
        if query["identifier"]:
            account_id = accounts.by_identifier(*query["identifier"].split(":", 1))
            document = accounts.document(account_id) if account_id else None
            return Response({"results": [_shown(document, masked=masked)] if document else [], "next": None})
        before = lists.position(query["cursor"], lists.instant, lists.uuid)
        rows = accounts.newest(limit=query["limit"] + 1, before=before)
        return lists.respond(
            request, rows, query["limit"], position=lambda row: row[:2], show=lambda row: _shown(row[2], masked=masked)
        )


class AccountEditSerializer(serializers.Serializer):
    """What to change of an account."""

    traits = serializers.DictField(help_text="As in PATCH /v1/profiles/{reference}")


class AccountEdit(msgspec.Struct, forbid_unknown_fields=True):
    """The same as it is read, with exact numbers."""

    traits: dict[str, Any]


_edit = msgspec.json.Decoder(AccountEdit, float_hook=Decimal)


class Account(APIView):
    """One account."""

    scopes = {"GET": "accounts:read", "PATCH": "accounts:write"}

    @extend_schema(
        operation_id="get_account", parameters=[REFERENCE, profiles.PositionQuery], responses=AccountSerializer
    )
    def get(self, request: Request, reference: str) -> Response:
        """Get an account by its id, its group id or whatever else it is called."""
        profiles.wait_for(lists.read(request, profiles.PositionQuery)["min_position"])
        document = accounts.document(found(reference)) or b"{}"
        return _answer(request, document, msgspec.json.decode(document, type=profiles.Version).version)

    @extend_schema(
        operation_id="change_account",
        parameters=[REFERENCE, profiles.IF_MATCH],
        request=AccountEditSerializer,
        responses=AccountSerializer,
    )
    def patch(self, request: Request, reference: str) -> Response:
        """Change traits of an account that is as it was read; 412 where somebody was quicker."""
        versions = profiles.versions_of(request)
        try:
            given = _edit.decode(request.body)
        except msgspec.DecodeError as error:
            raise profiles.BadEdit(f"The body is no edit: {error}. Send an object with `traits`.") from error
        try:
            edited = account_edits.edit(
                account_id=found(reference), versions=versions, traits=given.traits, actor=audit.actor_of(request)
            )
        except edits.Moved as error:
            raise profiles.VersionMoved(error) from error
        except account_edits.UnknownAccount as error:
            raise NotFound(error.message) from error
        except edits.Overruled as error:
            raise profiles.Refused(error.message, error.code) from error
        return _answer(request, edited.document, edited.version)


def _answer(request: Request, document: bytes, version: int) -> Response:
    return Response(_shown(document, masked=masks(request)), headers={"ETag": f'"{version}"'})


class Members(APIView):
    """An account's people."""

    scopes = READ_PEOPLE

    @extend_schema(
        operation_id="list_account_members",
        parameters=[REFERENCE, MembersQuery],
        responses=lists.page_of(MemberSerializer),
    )
    def get(self, request: Request, reference: str) -> Response:
        """List the people of an account, newest first, those who left too."""
        query, masked = lists.read(request, MembersQuery), masks(request)
        before = lists.position(query["cursor"], lists.row_id)
        profiles.wait_for(query["min_position"])
        rows = accounts.members(found(reference), limit=query["limit"] + 1, before=before[0] if before else None)
        documents = lookup.documents(row.profile_id for row in rows)
        return lists.respond(
            request,
            rows,
            query["limit"],
            position=lambda row: (row.identifier_id,),
            show=lambda row: {
                "profile": profiles.shown(documents[row.profile_id], masked=masked),
                **_membership(row.membership, masked=masked),
            },
        )


class Calls(APIView):
    """An account's timeline."""

    scopes = READ_PEOPLE

    @extend_schema(
        operation_id="list_account_events",
        parameters=[REFERENCE, CallsQuery],
        responses=lists.page_of(profiles.EventSerializer),
    )
    def get(self, request: Request, reference: str) -> Response:
        """List the group calls that name an account, newest first."""
        query = lists.read(request, CallsQuery)
        before = lists.position(query["cursor"], lists.instant, lists.row_id)
        profiles.wait_for(query["min_position"])
        rows = timeline.of_account(
            accounts.group_id(found(reference)),
            limit=query["limit"] + 1,
            before=timeline.Position(*before) if before else None,
            wanted=timeline.Filter(since=query["since"], until=query["until"]),
        )
        return profiles.events(request, rows, query["limit"])


class OfProfile(APIView):
    """A person's accounts."""

    scopes = READ_PEOPLE

    @extend_schema(
        operation_id="list_profile_accounts",
        parameters=[profiles.REFERENCE, MembersQuery],
        responses=lists.page_of(BelongingSerializer),
    )
    def get(self, request: Request, reference: str) -> Response:
        """List the accounts that a profile belongs to, newest first, those it left too."""
        query, masked = lists.read(request, MembersQuery), masks(request)
        before = lists.position(query["cursor"], lists.instant, lists.uuid)
        profiles.wait_for(query["min_position"])
        rows = accounts.of_profile(profiles.found(reference), limit=query["limit"] + 1, before=before)
        documents = accounts.documents(row.account_id for row in rows)
        return lists.respond(
            request,
            rows,
            query["limit"],
            position=lambda row: row[:2],
            show=lambda row: {
                "account": _shown(documents[row.account_id], masked=masked),
                **_membership(row.membership, masked=masked),
            },
        )
