from django.apps import AppConfig
from django.db.models.signals import post_migrate


class CdpConfig(AppConfig):
    default_auto_field = "django.db.models.BigAutoField"
    name = "cdp"
    verbose_name = "Customer data"

    def ready(self) -> None:
        """Connect what follows a migration, or a change of keys and definitions."""
        from cdp import definitions, keys, roles  # noqa: F401 - the first two connect their own receivers

        post_migrate.connect(roles.assign, sender=self, dispatch_uid="cdp.roles")
