from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class MartechConfig(AppConfig):
    default_auto_field = "django.db.models.BigAutoField"
    name = "martech"
    verbose_name = "Platform"

    def ready(self) -> None:
        """Make the Celery application the one that tasks are sent by, and register tasks and checks."""
        from martech import celery, checks  # noqa: F401

        autodiscover_modules("tasks")
