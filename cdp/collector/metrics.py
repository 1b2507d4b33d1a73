"""What the collector counts, for `/metrics`."""

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "martech_collector_requests_total", "Requests answered, by endpoint and status", ["endpoint", "code"]
)
EVENTS = Counter("martech_collector_events_total", "Events made durable in the log, by source id", ["source"])
UNATTRIBUTED = Counter(
    "martech_collector_unattributed_events_total", "Items of accepted batches whose own write key is unknown"
)
SHED_EVENTS = Counter(
    "martech_collector_shed_events_total", "Events sent away as beyond a quota while the log fills up, by source id",
    ["source"],
)  # fmt: skip
SHED_REQUESTS = Counter(
    "martech_collector_shed_requests_total", "Tracking calls sent away unread since the log is almost full"
)
LOAD = Gauge(
    "martech_log_load_ratio", "How full the log is by its memory, its disk and its oldest event's wait; 1 is full",
    ["of"], multiprocess_mode="livemax",
)  # fmt: skip
SDK_METRICS = Counter("martech_collector_sdk_metrics_total", "Reports of SDKs about themselves, dropped")
DURATION = Histogram(
    "martech_collector_request_seconds",
    "Seconds from a request's arrival to its answer",
    ["endpoint"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
QUEUE_BYTES = Gauge("martech_collector_queue_bytes", "Bytes of requests not yet answered", multiprocess_mode="livesum")
FLUSH_BYTES = Histogram(
    "martech_collector_flush_bytes",
    "Bytes appended to the log in one flush",
    buckets=(1e3, 1e4, 1e5, 1e6, 4e6, 16e6),
)
FLUSH_SECONDS = Histogram(
    "martech_collector_flush_seconds",
    "Seconds that one append to the log takes",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)


@cache
def requests(endpoint: str, code: int) -> Counter:
    """Return the counter of an endpoint's answers with a status; looking up labels each time costs microseconds."""
    return REQUESTS.labels(endpoint, str(code))


@cache
def duration(endpoint: str) -> Histogram:
    """Return the histogram of an endpoint's durations."""
    return DURATION.labels(endpoint)


@cache
def events(source_id: int) -> Counter:
    """Return the counter of a source's events."""
    return EVENTS.labels(str(source_id))


@cache
def shed(source_id: int) -> Counter:
    """Return the counter of what a source was not let send."""
    return SHED_EVENTS.labels(str(source_id))


@cache
def load(cause: str) -> Gauge:
    """Return the gauge of one of the things that fill the log."""
    return LOAD.labels(cause)
