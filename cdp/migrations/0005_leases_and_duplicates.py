"""Leases of processors, the keys of duplicates in generations, and what tracing one message needs."""

import uuid
from datetime import timedelta

import django.contrib.postgres.fields
from django.db import migrations, models

# The leaves are made as they are needed: plain tables that inherit, so that each has a unique index of its own
# without a partition's key in it, and coming and going locks nobody out.
KEYS = """
ALTER TABLE event_duplicate RENAME TO event_duplicate_before;
CREATE TABLE event_duplicate (
    id_hash uuid NOT NULL,
    payload_hash bigint NOT NULL,
    ingested_at timestamptz NOT NULL
);
INSERT INTO cdp_duplicategeneration (opened_at)
    SELECT coalesce((SELECT min(received_at) FROM event_duplicate_before), now());
CREATE TABLE event_duplicate_1 (PRIMARY KEY (id_hash, payload_hash)) INHERITS (event_duplicate);
INSERT INTO event_duplicate_1
    SELECT encode(id_hash, 'hex')::uuid, payload_hash, min(received_at) FROM event_duplicate_before GROUP BY 1, 2;
DROP TABLE event_duplicate_before;
"""
# Back: partitions by day as before; letters that were given back to the log are new again, and repeats if they come.
KEYS_BEFORE = """
ALTER TABLE event_duplicate RENAME TO event_duplicate_after;
CREATE TABLE event_duplicate (
    id_hash bytea NOT NULL,
    payload_hash bigint NOT NULL,
    received_at timestamptz NOT NULL,
    PRIMARY KEY (id_hash, payload_hash, received_at)
) PARTITION BY RANGE (received_at);
"""
# Those that hold keys, and the coming week as ever.
DAYS = """
SELECT DISTINCT (ingested_at AT TIME ZONE 'UTC')::date FROM event_duplicate_after
UNION SELECT (now() AT TIME ZONE 'UTC')::date + number FROM generate_series(0, 7) AS number
"""
COPY_BACK = """
INSERT INTO event_duplicate
    SELECT decode(replace(id_hash::text, '-', ''), 'hex'), payload_hash, min(ingested_at)
    FROM event_duplicate_after GROUP BY 1, 2;
DROP TABLE event_duplicate_after CASCADE;
UPDATE cdp_deadletter SET status = 'new' WHERE status = 'replaying';
"""
TRACING = """
ALTER TABLE event_stream ADD COLUMN trace_parent text;
-- The rows of one batch: a key that repeats names their time.
CREATE INDEX event_stream_ingested ON event_stream USING brin (ingested_at)
    WITH (pages_per_range = 32, autosummarize = on);
"""


def carry_back(apps, schema_editor):
    """Return the keys of all generations to a table with a partition for each day."""
    schema_editor.execute(KEYS_BEFORE)
    for (day,) in schema_editor.connection.connection.execute(DAYS).fetchall():
        schema_editor.execute(
            f"CREATE TABLE event_duplicate_{day:%Y%m%d} PARTITION OF event_duplicate "
            f"FOR VALUES FROM ('{day} 00:00:00+00') TO ('{day + timedelta(days=1)} 00:00:00+00')"
        )
    schema_editor.execute(COPY_BACK)


class Migration(migrations.Migration):
    dependencies = [
        ("cdp", "0004_roles_and_search"),
    ]

    operations = [
        migrations.CreateModel(
            name="DuplicateGeneration",
            fields=[
                ("id", models.AutoField(primary_key=True, serialize=False)),
                ("opened_at", models.DateTimeField()),
                ("sealed_at", models.DateTimeField(help_text="When the next one was opened", null=True)),
                ("keys", models.BigIntegerField(help_text="Counted once it is sealed", null=True)),
            ],
        ),
        migrations.CreateModel(
            name="Processor",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, primary_key=True, serialize=False)),
                ("log", models.CharField(help_text="The log's name", max_length=255)),
                ("host", models.CharField(max_length=255)),
                ("pid", models.IntegerField()),
                (
                    "partitions",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.SmallIntegerField(),
                        help_text="Those it was given; null: it shares",
                        null=True,
                        size=None,
                    ),
                ),
                ("backend_pid", models.IntegerField()),
                ("backend_started_at", models.DateTimeField()),
                ("started_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("halted", models.TextField(blank=True, db_default="", help_text="Why it stands still, if so")),
            ],
        ),
        migrations.AddField(
            model_name="checkpoint",
            name="crashes",
            field=models.PositiveSmallIntegerField(db_default=0, help_text="Processors that died at this position"),
        ),
        migrations.AddField(
            model_name="checkpoint",
            name="epoch",
            field=models.BigIntegerField(
                db_default=0, help_text="Raised by each take-over: a batch of an older one is void"
            ),
        ),
        migrations.AddField(
            model_name="checkpoint",
            name="owner",
            field=models.UUIDField(help_text="The processor that holds the partition", null=True),
        ),
        migrations.AddField(
            model_name="checkpoint",
            name="done_at",
            field=models.DateTimeField(help_text="Everything received before has been processed", null=True),
        ),
        migrations.AddField(
            model_name="checkpoint",
            name="trial",
            field=models.JSONField(
                help_text="Which event of the next entry is tried alone, and what it did", null=True
            ),
        ),
        migrations.AddField(
            model_name="deadletter",
            name="attempts",
            field=models.PositiveSmallIntegerField(db_default=0, help_text="Replays that were put aside again"),
        ),
        migrations.AddField(
            model_name="source",
            name="quota",
            field=models.PositiveIntegerField(
                blank=True,
                help_text="Events a second it may still send while the log fills up; empty: SOURCE_QUOTA",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="taskrun",
            name="slot",
            field=models.CharField(
                help_text="The line of the schedule and the time it was due, if so",
                max_length=255,
                null=True,
                unique=True,
            ),
        ),
        migrations.AlterField(
            model_name="deadletter",
            name="replayed_at",
            field=models.DateTimeField(blank=True, help_text="When it was last given back to the log", null=True),
        ),
        migrations.AlterField(
            model_name="deadletter",
            name="status",
            field=models.CharField(
                choices=[
                    ("new", "New"),
                    ("replaying", "Replaying: given back to the log"),
                    ("replayed", "Replayed: processed since"),
                ],
                default="new",
                max_length=16,
            ),
        ),
        migrations.AddIndex(
            model_name="deadletter",
            index=models.Index(fields=["message_id"], name="dead_letter_message"),
        ),
        migrations.AddConstraint(
            model_name="duplicategeneration",
            constraint=models.UniqueConstraint(
                models.Value(1), condition=models.Q(("sealed_at", None)), name="duplicate_generation_open"
            ),
        ),
        migrations.AddIndex(
            model_name="taskrun",
            index=models.Index(
                condition=models.Q(("status__in", ["started", "retrying"])), fields=["started_at"], name="task_run_open"
            ),
        ),
        migrations.RunSQL(KEYS, migrations.RunSQL.noop),
        migrations.RunPython(migrations.RunPython.noop, carry_back),
        migrations.RunSQL(
            TRACING, "DROP INDEX event_stream_ingested; ALTER TABLE event_stream DROP COLUMN trace_parent"
        ),
    ]
