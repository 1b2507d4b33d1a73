"""Reversible identity, accounts, consent, privacy, the archive and imports."""

import uuid
from datetime import UTC, datetime

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

# The rules as they were before they could be changed; "*" stands for every other namespace.
FIRST_RULES = {
    "user_id": {"limit": 1, "priority": 0, "blocked": [], "shared_after": 10},
    "email": {"limit": 5, "priority": 10, "blocked": [], "shared_after": 10},
    "anonymous_id": {"limit": 5, "priority": 90, "blocked": [], "shared_after": 10},
    "*": {"limit": 5, "priority": 50, "blocked": [], "shared_after": 10},
}
BEFORE = """
UPDATE cdp_identifier SET origin = profile_id;
UPDATE customer_profiles SET standing = 1 WHERE id IN (
    SELECT i.profile_id FROM cdp_edge e JOIN cdp_identifier i ON i.id IN (e.left_id, e.right_id) WHERE e.refused <> ''
);
"""
# An account's timeline: its group calls, newest first. Other events cost nothing but the look at their type.
GROUP_CALLS = """
CREATE INDEX event_stream_group ON event_stream ((extra->>'groupId'), occurred_at DESC, event_id DESC)
WHERE event_type = 'group';
-- What an account is said to be need not be about a person: it has no profile, and the anchor 0.
ALTER TABLE event_stream ALTER COLUMN profile_id DROP NOT NULL;
"""


def first_rules(apps, schema_editor):
    """Put down the rules that counted so far, and what they refused."""
    now = datetime.now(UTC)
    # People there are already were made in the order in which their events came: a job looks at them again.
    past = apps.get_model("cdp", "Profile").objects.exists()
    apps.get_model("cdp", "IdentityRules").objects.create(
        status="applying" if past else "applied", namespaces=FIRST_RULES, note="As from the start", created_at=now,
        applied_at=None if past else now,
    )  # fmt: skip
    schema_editor.execute(BEFORE)


class Migration(migrations.Migration):
    dependencies = [
        ("cdp", "0005_leases_and_duplicates"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="profile",
            options={
                "permissions": [
                    ("view_personal_data", "Can see personal data unmasked"),
                    ("unmerge_profile", "Can take profiles apart, and lift that"),
                ]
            },
        ),
        migrations.CreateModel(
            name="Account",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("traits", models.JSONField(db_default={})),
                ("registers", models.JSONField(db_default={}, help_text="As Profile.registers")),
                ("version", models.BigIntegerField(db_default=0, help_text="Counts accepted changes")),
                ("timestamp", models.DateTimeField(help_text="When the account last changed")),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="AccountIdentifier",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("namespace", models.CharField(help_text="group_id, or a CRM's", max_length=64)),
                ("value", models.CharField(db_collation="C", max_length=512)),
                (
                    "evidence",
                    models.JSONField(
                        db_default=[],
                        help_text="What orders the calls that gave it: source class, time µs, message id, source",
                    ),
                ),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="AccountMember",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("role", models.CharField(blank=True, db_default="", max_length=255)),
                ("joined_at", models.DateTimeField(help_text="The earliest event that said so")),
                (
                    "left_at",
                    models.DateTimeField(blank=True, help_text="When it ended, if the newest event said so", null=True),
                ),
                ("register", models.JSONField(db_default={}, help_text="What orders the events that said so")),
            ],
        ),
        migrations.CreateModel(
            name="ArchiveFile",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "table",
                    models.CharField(help_text="The partition of event_stream that it was written from", max_length=63),
                ),
                ("bucket", models.PositiveSmallIntegerField(help_text="The anchor's id modulo the number of buckets")),
                ("buckets", models.PositiveSmallIntegerField()),
                ("path", models.CharField(help_text="In the storage `archive`", max_length=512, unique=True)),
                ("start", models.DateTimeField(help_text="The first instant of the partition")),
                ("end", models.DateTimeField(help_text="The first instant after it")),
                ("rows", models.BigIntegerField()),
                ("size", models.BigIntegerField(help_text="Bytes")),
                ("sha256", models.CharField(max_length=64)),
                ("written_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="AuditEntry",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("at", models.DateTimeField()),
                ("actor", models.CharField(help_text="admin:NAME, key:NAME or command:USER", max_length=255)),
                (
                    "action",
                    models.CharField(help_text="Such as profile.edit, profile.export or profile.erase", max_length=64),
                ),
                ("object_type", models.CharField(max_length=64)),
                ("object_id", models.CharField(max_length=255)),
                ("detail", models.JSONField(blank=True, default=dict)),
            ],
        ),
        migrations.CreateModel(
            name="Erasure",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "status",
                    models.CharField(
                        choices=[("requested", "Requested"), ("running", "Running"), ("done", "Done")],
                        default="requested",
                        max_length=16,
                    ),
                ),
                ("requested_by", models.CharField(max_length=255)),
                ("reason", models.TextField(blank=True)),
                ("requested_at", models.DateTimeField()),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
                (
                    "receipts",
                    models.JSONField(blank=True, default=dict, help_text="By store: what was erased, and when"),
                ),
                (
                    "work",
                    models.JSONField(
                        blank=True, default=dict, help_text="What the stores still need to know; emptied at the end"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="EventImport",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", models.CharField(help_text="The file's", max_length=255)),
                ("sha256", models.CharField(help_text="Of the file's bytes", max_length=64)),
                ("file_format", models.CharField(help_text="csv or ndjson", max_length=16)),
                ("mapping", models.JSONField(default=dict, help_text="Column → field of the message")),
                (
                    "stored_path",
                    models.CharField(
                        blank=True, help_text="Of an uploaded file, in the default storage", max_length=512
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("ready", "Ready: uploaded, not begun"),
                            ("running", "Running"),
                            ("stopped", "Stopped: goes on where it was"),
                            ("done", "Done"),
                        ],
                        default="ready",
                        max_length=16,
                    ),
                ),
                ("size", models.BigIntegerField(help_text="Bytes")),
                ("offset", models.BigIntegerField(default=0, help_text="Bytes whose rows are in the log")),
                ("lines", models.BigIntegerField(default=0, help_text="Lines read up to there")),
                ("events", models.BigIntegerField(default=0, help_text="Rows given to the log")),
                ("errors", models.BigIntegerField(default=0, help_text="Lines that could not be read")),
                (
                    "errors_path",
                    models.CharField(blank=True, help_text="The file that names each of them", max_length=512),
                ),
                ("trouble", models.TextField(blank=True, help_text="Why it stopped by itself")),
                ("author", models.CharField(blank=True, max_length=255)),
                ("created_at", models.DateTimeField()),
                ("updated_at", models.DateTimeField()),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
            ],
        ),
        migrations.CreateModel(
            name="IdentityRules",
            fields=[
                ("version", models.AutoField(primary_key=True, serialize=False)),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("draft", "Draft"),
                            ("applying", "Applying: counts for new evidence, the past is on its way"),
                            ("applied", "Applied"),
                        ],
                        default="draft",
                        max_length=16,
                    ),
                ),
                ("namespaces", models.JSONField()),
                ("note", models.TextField(blank=True, help_text="Why it was changed")),
                ("author", models.CharField(blank=True, max_length=255)),
                ("created_at", models.DateTimeField()),
                ("applied_at", models.DateTimeField(blank=True, null=True)),
                (
                    "progress",
                    models.JSONField(
                        blank=True, default=dict, help_text="Of the job: profiles to look at, done, split, merged"
                    ),
                ),
            ],
            options={"verbose_name_plural": "identity rules"},
        ),
        migrations.CreateModel(
            name="MergePolicy",
            fields=[
                ("id", models.AutoField(primary_key=True, serialize=False)),
                ("trait", models.CharField(max_length=255, unique=True)),
                (
                    "policy",
                    models.CharField(
                        choices=[
                            ("newest", "The newest value"),
                            ("source_priority", "The value of the most trusted source, then the newest"),
                            ("union", "All values together, each until it is removed"),
                            ("counter", "A number that sources add to and subtract from"),
                            ("ask", "Keep the values of all sources, and ask"),
                        ],
                        max_length=32,
                    ),
                ),
                (
                    "sources",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.IntegerField(),
                        blank=True,
                        db_default=[],
                        help_text="Ids of sources, the most trusted first",
                        size=None,
                    ),
                ),
                (
                    "version",
                    models.PositiveIntegerField(default=1, help_text="States of an older one count for nothing"),
                ),
            ],
        ),
        migrations.CreateModel(
            name="SuppressedIdentifier",
            fields=[
                (
                    "digest",
                    models.BinaryField(
                        help_text="HMAC-SHA256 of namespace and value, with PRIVACY_KEY",
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="UnmergeSide",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("side", models.SmallIntegerField(choices=[(0, "Stayed"), (1, "Taken out")])),
            ],
        ),
        migrations.AddField(
            model_name="identifier",
            name="origin",
            field=models.UUIDField(
                help_text="The profile it was first given, which it gets back when it is split", null=True
            ),
        ),
        migrations.AddField(
            model_name="identitydecision",
            name="author",
            field=models.CharField(blank=True, db_default="", help_text="Who took it, if a person did", max_length=255),
        ),
        migrations.AddField(
            model_name="identitydecision",
            name="lifted_at",
            field=models.DateTimeField(blank=True, help_text="An unmerge stands until then", null=True),
        ),
        migrations.AddField(
            model_name="identitydecision",
            name="lifted_by",
            field=models.CharField(blank=True, db_default="", max_length=255),
        ),
        migrations.AddField(
            model_name="identitydecision",
            name="reviewed_at",
            field=models.DateTimeField(blank=True, help_text="When a person looked at it", null=True),
        ),
        migrations.AddField(
            model_name="identitydecision",
            name="reviewed_by",
            field=models.CharField(blank=True, db_default="", max_length=255),
        ),
        migrations.AddField(
            model_name="profile",
            name="consent",
            field=models.JSONField(db_default={}, help_text="What may be done, by purpose, as readers see it"),
        ),
        migrations.AddField(
            model_name="profile",
            name="erased_at",
            field=models.DateTimeField(blank=True, help_text="When everything on the person was erased", null=True),
        ),
        migrations.AddField(
            model_name="profile",
            name="standing",
            field=models.SmallIntegerField(
                choices=[
                    (0, "Settled: it can only join"),
                    (
                        1,
                        "Contested: some of it was refused, or somebody unmerged, so the rules look at all of it again",
                    ),
                    (2, "Blocked: its one identifier stands for nobody in particular, and joins nothing"),
                ],
                db_default=0,
            ),
        ),
        migrations.AlterField(
            model_name="identitydecision",
            name="kind",
            field=models.CharField(
                choices=[
                    ("merge", "Merge"),
                    ("refusal", "Refusal"),
                    ("split", "Split by the rules"),
                    ("unmerge", "Unmerge"),
                ],
                max_length=16,
            ),
        ),
        migrations.AlterField(
            model_name="source",
            name="kind",
            field=models.CharField(
                choices=[("server", "Server"), ("browser", "Browser"), ("mobile", "Mobile"), ("people", "People")],
                default="server",
                max_length=16,
            ),
        ),
        migrations.AddIndex(
            model_name="identitydecision",
            index=models.Index(
                condition=models.Q(("reviewed_at", None)), fields=["kind", "-id"], name="decision_unreviewed"
            ),
        ),
        migrations.AddIndex(
            model_name="account",
            index=models.Index(fields=["-created_at", "-id"], name="account_newest"),
        ),
        migrations.AddField(
            model_name="accountidentifier",
            name="account",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="identifiers", to="cdp.account"
            ),
        ),
        migrations.AddField(
            model_name="accountmember",
            name="account",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="members", to="cdp.account"
            ),
        ),
        migrations.AddField(
            model_name="accountmember",
            name="identifier",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="accounts", to="cdp.identifier"
            ),
        ),
        migrations.AddConstraint(
            model_name="archivefile",
            constraint=models.UniqueConstraint(fields=("table", "bucket"), name="archive_file_table_bucket"),
        ),
        migrations.AddIndex(
            model_name="auditentry",
            index=models.Index(fields=["object_type", "object_id", "-id"], name="audit_object"),
        ),
        migrations.AddField(
            model_name="erasure",
            name="profile",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="erasures",
                to="cdp.profile",
            ),
        ),
        migrations.AddField(
            model_name="eventimport",
            name="source",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="imports", to="cdp.source"
            ),
        ),
        migrations.AddField(
            model_name="suppressedidentifier",
            name="erasure",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.CASCADE, related_name="suppressed", to="cdp.erasure"
            ),
        ),
        migrations.AddField(
            model_name="unmergeside",
            name="decision",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="sides", to="cdp.identitydecision"
            ),
        ),
        migrations.AddField(
            model_name="unmergeside",
            name="identifier",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="unmerges", to="cdp.identifier"
            ),
        ),
        migrations.AddConstraint(
            model_name="accountidentifier",
            constraint=models.UniqueConstraint(
                fields=("namespace", "value"), name="account_identifier_namespace_value"
            ),
        ),
        migrations.AddConstraint(
            model_name="accountmember",
            constraint=models.UniqueConstraint(
                fields=("account", "identifier"), name="account_member_account_identifier"
            ),
        ),
        migrations.AddConstraint(
            model_name="eventimport",
            constraint=models.UniqueConstraint(fields=("sha256", "source"), name="event_import_file_source"),
        ),
        migrations.AddConstraint(
            model_name="unmergeside",
            constraint=models.UniqueConstraint(
                fields=("decision", "identifier"), name="unmerge_side_decision_identifier"
            ),
        ),
        migrations.RunSQL(
            GROUP_CALLS,
            "DROP INDEX event_stream_group; DELETE FROM event_stream WHERE profile_id IS NULL;"
            " ALTER TABLE event_stream ALTER COLUMN profile_id SET NOT NULL",
        ),
        migrations.RunPython(first_rules, migrations.RunPython.noop, elidable=False),
    ]
