"""What semaphores look like, and what was done for them, for Prometheus: by semaphore, and bounded in number."""

from __future__ import annotations

import time
from collections import Counter as Counting
from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from at_least_semaphore_pod_hook.controller.turns import has_room
from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey
from at_least_semaphore_pod_hook.server.metrics import PREFIX, REGISTRY, count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from at_least_semaphore_pod_hook.controller.meter import Figures

LABELLED = 100
"""How many semaphores have labels of their own; a line of a scrape costs about 6 µs, and admissions wait meanwhile. No
namespace takes more of them than it leaves to others."""
OTHER = SemaphoreKey("", "other")
"""What all others are counted under. No namespace has an empty name."""
LABELS = ("namespace", "key")
HANDOVER_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
GATE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class SemaphoreMetrics(Collector):
    """A Meter for Prometheus.

    Gauges are shown for as long as a semaphore is; the first of those that are shown have labels of their own. Counters
    cannot be taken back, so that with them the first semaphores of the process keep theirs.

    Args:
        registry: Where the metrics are found.
        clock: Seconds since the epoch.
    """

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._shown: dict[SemaphoreKey, Figures] = {}
        self._counted = Labelled()
        self._grants = Counter(
            f"{PREFIX}grants", "Permits that pods have got, at their admission or later.", LABELS, registry=registry
        )
        self._denials = Counter(
            f"{PREFIX}denials", "Pods denied because all permits were held.", LABELS, registry=registry
        )
        self._reclaims = Counter(
            f"{PREFIX}reclaims",
            "Permits taken back because of what the API showed: gone, finished, ended, deleted, never_stored.",
            (*LABELS, "reason"),
            registry=registry,
        )
        self._handovers = Histogram(
            f"{PREFIX}handover_seconds",
            "Seconds from a permit known to be free until the gate of the next waiter was gone.",
            LABELS,
            buckets=HANDOVER_BUCKETS,
            registry=registry,
        )
        self._removals = Histogram(
            f"{PREFIX}gate_removal_seconds",
            "Seconds from a grant in the store until the pod's gate was gone, of all semaphores.",
            buckets=GATE_BUCKETS,
            registry=registry,
        )
        self._drops = Counter(
            f"{PREFIX}events_dropped",
            "Kubernetes Events that were not written: too many at once, or refused.",
            registry=registry,
        )
        registry.register(self)

    def show(self, semaphore: SemaphoreKey, figures: Figures | None) -> None:
        """Take in how a semaphore is now; None where there is nothing to tell of it any more."""
        if figures is None:
            self._shown.pop(semaphore, None)
        else:
            self._shown[semaphore] = figures

    def clear(self) -> None:
        """Show no gauges."""
        self._shown.clear()

    def granted(self, semaphore: SemaphoreKey) -> None:
        """Count a permit that a pod has got."""
        count(self._grants, *self._labels(semaphore))()

    def denied(self, semaphore: SemaphoreKey) -> None:
        """Count a pod that was denied because all permits were held."""
        count(self._denials, *self._labels(semaphore))()

    def reclaimed(self, semaphore: SemaphoreKey, reason: str) -> None:
        """Count a permit that was taken back; reasons come from a small fixed set."""
        count(self._reclaims, *self._labels(semaphore), reason)()

    def handed_over(self, semaphore: SemaphoreKey, seconds: float) -> None:
        """Measure a hand-over."""
        _observe(self._handovers, *self._labels(semaphore))(seconds)

    def gate_removed(self, seconds: float) -> None:
        """Measure the removal of a gate: a matter of the API server, not of the semaphore, so without labels."""
        self._removals.observe(seconds)

    def event_dropped(self) -> None:
        """Count a Kubernetes Event that was not written."""
        self._drops.inc()

    def collect(self) -> Iterable[Metric]:
        """Return the gauges as they are at this moment."""
        return gauges(self._shown, self._clock())

    def _labels(self, semaphore: SemaphoreKey) -> SemaphoreKey:
        return self._counted.labels(semaphore)


class Labelled:
    """The semaphores that have labels of their own, first come, first served."""

    def __init__(self) -> None:
        self._semaphores: set[SemaphoreKey] = set()
        self._of: Counting[str] = Counting()

    def labels(self, semaphore: SemaphoreKey) -> SemaphoreKey:
        """Return what a semaphore is counted under."""
        if semaphore not in self._semaphores:
            if not has_room(self._of[semaphore.namespace], len(self._semaphores), LABELLED):
                return OTHER
            self._semaphores.add(semaphore)
            self._of[semaphore.namespace] += 1
        return semaphore


def gauges(shown: dict[SemaphoreKey, Figures], now: float) -> list[Metric]:
    """Return the gauges of these semaphores; without samples where there are no semaphores.

    Args:
        shown: The semaphores, those first that get labels of their own.
        now: In seconds since the epoch.
    """
    rows: dict[SemaphoreKey, list[float]] = {}
    labelled = Labelled()
    for semaphore, figures in shown.items():
        row = rows.setdefault(labelled.labels(semaphore), [0, 0, 0, 0, 0])
        row[0] += figures.length
        row[1] += max(0, figures.length - figures.held)
        row[2] += figures.held
        row[3] += figures.waiting
        if figures.oldest_wait_since is not None:
            row[4] = max(row[4], now - figures.oldest_wait_since)
    families = [
        GaugeMetricFamily(f"{PREFIX}semaphore_{name}", documentation, labels=LABELS)
        for name, documentation in (
            ("length", "Permits that there are."),
            ("free", "Permits that nobody holds."),
            ("held", "Permits that are held; more than the length while a shrunk semaphore drains."),
            ("waiting", "Pods that wait for a permit before their work begins: behind a gate, or for their sidecar."),
            ("oldest_wait_seconds", "For how long the pod has waited that has waited longest; 0 where none waits."),
        )
    ]
    for semaphore, row in rows.items():
        for family, value in zip(families, row, strict=True):
            family.add_metric(semaphore, value)
    suspects = sum(figures.suspects for figures in shown.values()) if shown else None
    late = sum(figures.late for figures in shown.values()) if shown else None
    return [
        *families,
        GaugeMetricFamily(
            f"{PREFIX}suspect_permits",
            "Permits kept for pods whose sidecar is silent, of all semaphores.",
            value=suspects,
        ),
        GaugeMetricFamily(
            f"{PREFIX}unpermitted_pods", "Pods that exist without a permit, of all semaphores.", value=late
        ),
    ]


@cache
def _observe(histogram: Histogram, *labels: str) -> Callable[[float], None]:
    return histogram.labels(*labels).observe


SEMAPHORES = SemaphoreMetrics(REGISTRY)
