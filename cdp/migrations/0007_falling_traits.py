"""Traits that fall as time passes: when a profile is due, and how conditions read times.

`cdp_instant` reads a text as `cdp.processing.conditions.instant_of` does.
"""

from django.db import migrations, models
from django.db.models.functions import Now

MADE = r"""
CREATE FUNCTION cdp_instant(said text) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT (extract(epoch FROM make_timestamptz(y, mo, d, h, mi, s, 'UTC')) * 1000000)::bigint + fraction
       - CASE sign WHEN '-' THEN -1 ELSE 1 END * (oh * 60 + om) * 60000000::bigint
FROM (
    SELECT m[1]::int AS y, m[2]::int AS mo, m[3]::int AS d, coalesce(m[4], '0')::int AS h,
           coalesce(m[5], '0')::int AS mi,
           coalesce(m[6], '0')::int AS s, rpad(coalesce(m[7], '0'), 6, '0')::bigint AS fraction, m[8] AS sign,
           coalesce(m[9], '0')::int AS oh, coalesce(m[10], '0')::int AS om
    FROM regexp_match(said, '^([0-9]{4})-([0-9]{2})-([0-9]{2})(?:T'
        '([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,6}))?(?:Z|([+-])([0-9]{2}):([0-9]{2})))?$') AS m
    WHERE m IS NOT NULL
) AS parts
WHERE y >= 1 AND mo BETWEEN 1 AND 12 AND h <= 23 AND mi <= 59 AND s <= 59 AND oh <= 14 AND om <= 59
AND d BETWEEN 1 AND extract(
    day FROM make_date(greatest(y, 1), least(greatest(mo, 1), 12), 1) + interval '1 month - 1 day')
$$
"""


class Migration(migrations.Migration):
    dependencies = [("cdp", "0006_who_is_who")]
    operations = [
        migrations.RunSQL(MADE, "DROP FUNCTION cdp_instant(text)"),
        migrations.AddField(
            "profile",
            "computed_at",
            models.DateTimeField(db_default=Now(), help_text="As of when `computed_traits` are"),
        ),
        migrations.AddField(
            "profile",
            "due_at",
            models.DateTimeField(
                null=True,
                blank=True,
                help_text="When time alone changes `computed_traits` next; empty where only events do",
            ),
        ),
        migrations.AddIndex(
            "profile",
            models.Index(fields=["due_at"], name="profile_due", condition=models.Q(due_at__isnull=False)),
        ),
    ]
