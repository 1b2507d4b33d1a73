"""The partitioned tables, which are written by COPY, and the storage settings of the hot ones."""

from datetime import UTC, datetime

from django.db import migrations

from cdp import partitions

EVENT_STREAM = """
CREATE TABLE event_stream (
    event_id bigserial,
    ingested_at timestamptz NOT NULL DEFAULT now(),
    profile_id uuid NOT NULL,
    anchor_id bigint NOT NULL,
    identifiers jsonb NOT NULL,
    event_type varchar(255) NOT NULL,
    name text NOT NULL DEFAULT '',
    properties jsonb NOT NULL DEFAULT '{}',
    context jsonb NOT NULL DEFAULT '{}',
    extra jsonb,
    source_id integer NOT NULL,
    message_id text NOT NULL,
    occurred_at timestamptz NOT NULL,
    original_timestamp text,
    received_at timestamptz NOT NULL,
    flags text[] NOT NULL DEFAULT '{}',
    log_partition smallint,
    log_position text,
    plan_version integer,
    transformation_version integer,
    PRIMARY KEY (event_id, ingested_at)
) PARTITION BY RANGE (ingested_at);
-- A profile's timeline: the events of each of its identifiers, newest first.
CREATE INDEX event_stream_anchor ON event_stream (anchor_id, occurred_at DESC, event_id DESC);
"""
DUPLICATES = """
CREATE TABLE event_duplicate (
    id_hash bytea NOT NULL,
    payload_hash bigint NOT NULL,
    received_at timestamptz NOT NULL,
    PRIMARY KEY (id_hash, payload_hash, received_at)
) PARTITION BY RANGE (received_at);
"""
STORAGE = """
-- Room for updates in place: these rows change with every batch, and no index covers what changes.
ALTER TABLE customer_profiles SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE cdp_identifier SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
"""


def create_tables(apps, schema_editor):
    schema_editor.execute(EVENT_STREAM)
    schema_editor.execute(DUPLICATES)
    # Enforced, the key costs a third of COPY; from 18 on it can be declared alone, and a nightly check proves it.
    enforced = "" if schema_editor.connection.pg_version < 180000 else " NOT ENFORCED"
    schema_editor.execute(
        "ALTER TABLE event_stream ADD CONSTRAINT event_stream_profile_id_fkey "
        "FOREIGN KEY (profile_id) REFERENCES customer_profiles (id)" + enforced
    )


def first_partitions(apps, schema_editor):
    connection = schema_editor.connection.connection
    partitions.ensure(connection, partitions.EVENTS, days=1, today=datetime.now(UTC).date())


class Migration(migrations.Migration):
    dependencies = [("cdp", "0001_initial")]
    operations = [
        migrations.RunPython(
            create_tables,
            lambda apps, schema_editor: schema_editor.execute("DROP TABLE event_stream; DROP TABLE event_duplicate"),
        ),
        migrations.RunPython(first_partitions, migrations.RunPython.noop),
        migrations.RunSQL(STORAGE, migrations.RunSQL.noop),
    ]
