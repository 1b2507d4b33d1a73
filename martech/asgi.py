"""The web process: the collector in front of Django, in one event loop."""

import os
from typing import cast

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "martech.settings")

from django.conf import settings
from django.core.asgi import get_asgi_application

from cdp.collector.application import ASGIApplication, create_application
from cdp.log import open_log

application = create_application(
    settings.CONFIG,
    open_log(settings.CONFIG.log_url, partitions=settings.CONFIG.log_partitions),
    then=cast(ASGIApplication, get_asgi_application()),
)
