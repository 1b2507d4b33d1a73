"""Permissions that the roles are made of, and identifier values compared by code point."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("cdp", "0003_first_definitions")]
    operations = [
        migrations.AlterModelOptions(
            name="deadletter",
            options={"permissions": [("replay_deadletter", "Can replay dead letters")]},
        ),
        migrations.AlterModelOptions(
            name="profile",
            options={"permissions": [("view_personal_data", "Can see personal data unmasked")]},
        ),
        migrations.AlterField(
            model_name="identifier",
            name="value",
            field=models.CharField(db_collation="C", max_length=512),
        ),
    ]
