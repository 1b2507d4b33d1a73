"""The ingest endpoint and the fast profile read; `cdp.collector:application` can be served alone."""

from cdp.collector.application import application

__all__ = ["application"]
