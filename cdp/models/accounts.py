"""Accounts: what people belong to, such as the company they work for."""

from __future__ import annotations

import uuid

from django.db import models

from cdp.models.identity import Identifier


class Account(models.Model):
    """A company or team as `group` calls tell of it; `registers` and `traits` are as on a profile."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    traits = models.JSONField(db_default={})
    registers = models.JSONField(db_default={}, help_text="As Profile.registers")
    version = models.BigIntegerField(db_default=0, help_text="Counts accepted changes")
    timestamp = models.DateTimeField(help_text="When the account last changed")
    created_at = models.DateTimeField()

    class Meta:
        indexes = [
            # The admin's and the API's list: newest first.
            models.Index(fields=["-created_at", "-id"], name="account_newest"),
        ]

    def __str__(self) -> str:
        name = self.traits.get("name")
        return name if isinstance(name, str) and name else str(self.id)


class AccountIdentifier(models.Model):
    """What an account is called by a sender: a group id, or a CRM's id of a company."""

    id = models.BigAutoField(primary_key=True)
    namespace = models.CharField(max_length=64, help_text="group_id, or a CRM's")
    value = models.CharField(max_length=512, db_collation="C")
    account = models.ForeignKey(Account, models.PROTECT, related_name="identifiers")
    evidence = models.JSONField(
        db_default=[], help_text="What orders the calls that gave it: source class, time µs, message id, source"
    )
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["namespace", "value"], name="account_identifier_namespace_value")
        ]

    def __str__(self) -> str:
        return f"{self.namespace}:{self.value}"


class AccountMember(models.Model):
    """An identifier's membership in an account: so it follows the identifier through merges and unmerges."""

    id = models.BigAutoField(primary_key=True)
    account = models.ForeignKey(Account, models.PROTECT, related_name="members")
    identifier = models.ForeignKey(Identifier, models.CASCADE, related_name="accounts")
    role = models.CharField(max_length=255, db_default="", blank=True)
    joined_at = models.DateTimeField(help_text="The earliest event that said so")
    left_at = models.DateTimeField(null=True, blank=True, help_text="When it ended, if the newest event said so")
    register = models.JSONField(db_default={}, help_text="What orders the events that said so")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["account", "identifier"], name="account_member_account_identifier")
        ]

    def __str__(self) -> str:
        return f"{self.identifier} in {self.account}"
