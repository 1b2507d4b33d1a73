"""Settings of the one command that starts the platform, from the environment; no Django here."""

from dataclasses import dataclass
from pathlib import Path

from martech.lib import env

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Where the platform keeps its data, where it listens, and how much it runs."""

    data: Path
    host: str
    port: int
    web_workers: int
    worker_concurrency: int
    log_memory_mb: int
    cache_memory_mb: int


def load() -> Options:
    """Read the options; ConfigurationError names the variable that cannot be used."""
    return Options(
        data=_data(
            env.text("MARTECH_DATA", ".martech", "Directory of the embedded servers, secrets, metrics and logs")
        ),
        host=env.text("WEB_HOST", "127.0.0.1", "Address the web process listens on; 0.0.0.0 for every network"),
        port=env.integer("PORT", 8000, "Port of the web process", minimum=1, maximum=65535),
        web_workers=env.integer("WEB_WORKERS", 1, "Granian worker processes", minimum=1, maximum=256),
        worker_concurrency=env.integer(
            "WORKER_CONCURRENCY", 2, "Tasks that the Celery worker runs at once", minimum=1, maximum=1024
        ),
        log_memory_mb=env.integer(
            "LOG_MEMORY_MB",
            1024,
            "Ceiling of the embedded log, in MiB; tracking calls get 429 from 90 % of it on",
            minimum=16,
        ),
        cache_memory_mb=env.integer(
            "CACHE_MEMORY_MB", 256, "Ceiling of the embedded profile cache, in MiB; the least used go first", minimum=16
        ),
    )


def _data(given: str) -> Path:
    # The default belongs to the checkout, wherever the command is called from.
    return ROOT / given if given == ".martech" else Path(given).expanduser().absolute()
