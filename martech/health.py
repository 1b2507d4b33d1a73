"""`/healthz`, `/readyz` and `/metrics`: answered before anything else, so that a probe needs no host name of ours."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.decorators import sync_and_async_middleware
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from martech import readiness, vitals
from martech.lib import metrics

# Whoever comes through a proxy is not on this machine, though the proxy may be.
FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA")


def healthz(request: HttpRequest) -> HttpResponse:
    """Say that the process lives, whatever else does."""
    return JsonResponse({"status": "alive"})


def readyz(request: HttpRequest) -> HttpResponse:
    """Say how each part is: 200 while the web process can serve, else 503. Reasons are for those we trust."""
    parts = readiness.judge(vitals.gather(), partitions=settings.CONFIG.log_partitions)
    status, trusted = readiness.overall(parts), is_trusted(request)
    body = {
        "status": status,
        "parts": {
            part.name: {"status": part.status, "detail": part.detail} if trusted else {"status": part.status}
            for part in parts
        },
    }
    answer = JsonResponse(body, status=503 if status == "unready" else 200)
    # Django would log an error at each probe.
    answer._has_been_logged = True  # type: ignore[attr-defined]  # Django's own mark for this
    return answer


def metrics_page(request: HttpRequest) -> HttpResponse:
    """Show the metrics of all processes."""
    if not is_trusted(request):
        return HttpResponse(
            "Metrics are for this machine, or for `Authorization: Bearer` with METRICS_TOKEN.\n",
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
            content_type="text/plain",
        )
    body, content_type = metrics.render(request.headers.get("accept", ""), Platform())
    return HttpResponse(body, content_type=content_type)


def is_trusted(request: HttpRequest) -> bool:
    """Tell whether a request comes from this machine itself, or shows the token."""
    token, given = settings.METRICS_TOKEN, request.headers.get("authorization", "")
    if token and secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
        return True
    try:
        peer = ipaddress.ip_address(request.META.get("REMOTE_ADDR", ""))
    except ValueError:
        return False
    return peer.is_loopback and not any(name in request.META for name in FORWARDED)


PAGES = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics_page}


@sync_and_async_middleware
def probes(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Answer the probes' pages; everything else goes on."""
    if iscoroutinefunction(get_response):

        async def answer(request: HttpRequest) -> HttpResponse:
            page = _page(request)
            if page is None:
                going_on: Awaitable[HttpResponse] = get_response(request)
                return await going_on
            return await sync_to_async(page, thread_sensitive=False)(request)

        return answer

    def answer_now(request: HttpRequest) -> HttpResponse:
        page = _page(request)
        return page(request) if page else get_response(request)

    return answer_now


def _page(request: HttpRequest) -> Callable[[HttpRequest], HttpResponse] | None:
    return PAGES.get(request.path) if request.method in ("GET", "HEAD") else None


class Platform:
    """Metrics of what no process counts by itself, looked up when `/metrics` is read."""

    def collect(self) -> Iterator[Metric]:
        """Return those of the parts that answer."""
        found = vitals.gather()
        parts = readiness.judge(found, partitions=settings.CONFIG.log_partitions)
        yield _gauge("martech_part_up", "1 where the part is as it should be", "part", {
            part.name: float(part.status == readiness.OK) for part in parts
        })  # fmt: skip
        if not isinstance(found.lags, Exception):
            yield _gauge("martech_log_lag_entries", "Entries that wait to be processed", "partition", found.lags)
        if not isinstance(found.queues, Exception):
            yield _gauge("martech_task_queue_length", "Tasks that wait in the broker", "queue", found.queues)
        if isinstance(found.database, vitals.Database):
            yield from _of_database(found.database)


def _of_database(found: vitals.Database) -> Iterator[Metric]:
    ages = {partition: checkpoint.age for partition, checkpoint in found.checkpoints.items()}
    yield _gauge(
        "martech_checkpoint_age_seconds",
        "Time since the partition's processor moved, or showed life",
        "partition",
        ages,
    )
    yield _gauge("martech_log_partitions_owned", "Log partitions that a living processor holds", "", {"": found.owned})
    yield _gauge("martech_dead_letters_new", "Dead letters nobody replayed, up to 10,000", "", {"": found.dead_letters})
    waits = {one.process: one for one in found.lock_waits}
    yield _gauge("martech_database_lock_waits", "Sessions that wait for a lock now, by kind of process", "process",
                 {name: one.sessions for name, one in waits.items()})  # fmt: skip
    yield _gauge("martech_database_lock_wait_seconds", "The longest of these waits so far", "process",
                 {name: one.seconds for name, one in waits.items()})  # fmt: skip
    if found.duplicates is not None:
        yield _gauge("martech_duplicate_window_seconds", "How far back repeated messages are recognised", "",
                     {"": found.duplicates.seconds})  # fmt: skip
        yield _gauge("martech_duplicate_ids", "Message ids that are remembered and sealed", "",
                     {"": found.duplicates.ids})  # fmt: skip
    if found.heartbeat is not None:
        heartbeat = {"": found.heartbeat}
        yield _gauge("martech_heartbeat_age_seconds", "Time since beat and worker last showed life", "", heartbeat)


def _gauge(name: str, help_text: str, label: str, values: dict[Any, Any]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=[label] if label else [])
    for key, value in values.items():
        family.add_metric([str(key)] if label else [], float(value))
    return family
