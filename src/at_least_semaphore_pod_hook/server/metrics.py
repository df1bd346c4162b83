"""What the webhook counts and measures, for Prometheus."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

if TYPE_CHECKING:
    from collections.abc import Callable

disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()
PREFIX = "at_least_semaphore_pod_hook_"

ADMISSIONS = Counter(
    f"{PREFIX}admissions",
    "Admissions by decision (allowed, patched, denied, errored) and status code.",
    ("decision", "code"),
    registry=REGISTRY,
)
ADMISSION_SECONDS = Histogram(
    f"{PREFIX}admission_seconds",
    "Seconds from an admission's headers to the end of its answer.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
BAD_REQUESTS = Counter(
    f"{PREFIX}bad_requests", "Requests that were no admission, by HTTP status.", ("status",), registry=REGISTRY
)
CUT_CONNECTIONS = Counter(
    f"{PREFIX}cut_connections",
    "Connections that were ended as they were over a limit, or made no sense, by reason.",
    ("reason",),
    registry=REGISTRY,
)
RECLAIMED = Counter(
    f"{PREFIX}reclaimed_permits", "Expired permits that a sweep of this replica took back.", registry=REGISTRY
)
STORE_UP = Gauge(f"{PREFIX}store_up", "1 while the store answers this replica's sweep.", registry=REGISTRY)
LEADING = Gauge(f"{PREFIX}leading", "1 while this replica is the one whose controller works.", registry=REGISTRY)
KUBERNETES_UP = Gauge(
    f"{PREFIX}kubernetes_api_up",
    "1 while the API server tells the leading replica of pods; 0 has no effect on admissions.",
    registry=REGISTRY,
)
CERTIFICATE_RELOADS = Counter(
    f"{PREFIX}certificate_reloads", "Serving certificates taken up, the first one included.", registry=REGISTRY
)
CERTIFICATE_EXPIRES = Gauge(
    f"{PREFIX}certificate_expires_timestamp_seconds",
    "When the serving certificate ends, in seconds since the epoch; NaN where it does not say so to a client.",
    registry=REGISTRY,
)


@cache
def count(counter: Counter, *labels: str) -> Callable[[], None]:
    """Return what counts one under these labels, found once. There are few labels, or bounded ones."""
    return counter.labels(*labels).inc
