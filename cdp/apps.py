from django.apps import AppConfig


class CdpConfig(AppConfig):
    default_auto_field = "django.db.models.BigAutoField"
    name = "cdp"
    verbose_name = "Customer data"
