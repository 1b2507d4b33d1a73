"""The first computed traits."""

from django.db import migrations

FIRST = [
    ("event_count", "count", "", "", {}, "How many events the person caused"),
    ("first_seen", "first_time", "", "", {}, "The time of the earliest event"),
    ("last_seen", "last_time", "", "", {}, "The time of the latest event"),
    ("total_spent", "sum", "track", "Order Completed", {"property": "total"}, "What the person's orders add up to"),
]


def define(apps, schema_editor):
    definition = apps.get_model("cdp", "TraitDefinition")
    for name, kind, event_type, event_name, options, description in FIRST:
        definition.objects.create(
            name=name, kind=kind, event_type=event_type, event_name=event_name, options=options, description=description
        )
    apps.get_model("cdp", "DefinitionVersion").objects.create(id=1, version=1)


class Migration(migrations.Migration):
    dependencies = [("cdp", "0002_partitioned_tables")]
    operations = [migrations.RunPython(define, migrations.RunPython.noop)]
