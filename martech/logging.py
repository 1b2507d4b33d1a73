"""Structured logs: one line an event, as JSON or for people to read, of our own code and of libraries alike."""

import logging
import logging.config
import re
import sys
from typing import Any

import structlog

from martech.lib import env

# What says something at every request or task, and what quotes whole addresses with their secrets.
QUIET = ("celery.app.trace", "celery.worker.strategy", "django.request", "httpcore", "httpx")


# Addresses of the REST API that name people by what they are called.
_PEOPLE = re.compile(r"(/v1/profiles/)[^\s?]+")


class Unnamed(logging.Filter):
    """Takes people's identifiers out of the addresses that Django names where it could not answer as asked."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change a line that names such an address; let every line pass."""
        said = record.msg if isinstance(record.msg, str) else ""
        if record.args and isinstance(record.args, tuple) and said:
            record.args = tuple(_PEOPLE.sub(r"\1…", one) if isinstance(one, str) else one for one in record.args)
        if "/v1/profiles/" in said:
            record.msg = _PEOPLE.sub(r"\1…", said)
        return True


def from_environment() -> dict[str, Any]:
    """Return the settings for `logging.config.dictConfig`, and set structlog up to go the same way."""
    form = env.text("LOG_FORMAT", "console", "How log lines are written", choices=("console", "json"))
    level = env.text("LOG_LEVEL", "INFO", "What is logged", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_facts(),
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    return _settings(form, level)


def configure() -> None:
    """Set up the logs of a process that does not know Django; Django's own do it through its settings."""
    logging.config.dictConfig(from_environment())


def _facts() -> list[Any]:
    """Return what every line is given: whatever was bound to the context, its logger, level and time."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _settings(form: str, level: str) -> dict[str, Any]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "ours": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": _facts(),
                "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(form)],
            }
        },
        "filters": {"unnamed": {"()": Unnamed}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "ours", "filters": ["unnamed"]}},
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            # Django gives its loggers handlers of their own: everything goes one way here.
            **{name: {"handlers": [], "propagate": True, "level": "NOTSET"} for name in ("django", "django.server")},
            **{name: {"level": "WARNING"} for name in QUIET},
        },
    }


def _renderers(form: str) -> list[Any]:
    if form == "json":
        # Without the values of variables: they hold personal data and secrets.
        without = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [structlog.processors.ExceptionRenderer(without), structlog.processors.JSONRenderer()]
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain, pad_event_to=0)]
