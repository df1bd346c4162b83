"""The metrics of semaphores: their values, and that their number is bounded."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from at_least_semaphore_pod_hook.controller.meter import Figures, Meter
from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey
from at_least_semaphore_pod_hook.server.metrics import PREFIX
from at_least_semaphore_pod_hook.server.semaphore_metrics import LABELLED, SemaphoreMetrics

OF_ONE = LABELLED // 2
"""What a namespace alone has of them."""
NOW = 1_000_000.0


class Page:
    """A meter, and what Prometheus reads of it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.meter: Meter = SemaphoreMetrics(self.registry, clock=lambda: NOW)

    def value(self, name: str, key: str = "", **labels: str) -> float | None:
        if key:
            labels |= {"namespace": "" if key == "other" else "default", "key": key}
        return self.registry.get_sample_value(PREFIX + name, labels)

    def semaphore(self, key: str) -> list[float | None]:
        names = ("length", "free", "held", "waiting", "oldest_wait_seconds")
        return [self.value(f"semaphore_{name}", key) for name in names]

    def labelled(self, name: str) -> int:
        return sum(
            "key" in sample.labels
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == PREFIX + name
        )


@pytest.fixture
def page() -> Page:
    return Page()


def of(key: object) -> SemaphoreKey:
    return SemaphoreKey("default", str(key))


def test_a_semaphore(page: Page) -> None:
    page.meter.show(of("license"), Figures(3, 1, 4, NOW - 60))
    assert page.semaphore("license") == [3, 2, 1, 4, 60]
    page.meter.show(of("license"), Figures(3, 5, 0, None))
    assert page.semaphore("license") == [3, 0, 5, 0, 0]
    # An arrival in the future: clocks differ.
    page.meter.show(of("license"), Figures(3, 3, 1, NOW + 5))
    assert page.semaphore("license") == [3, 0, 3, 1, 0]
    page.meter.show(of("license"), None)
    page.meter.show(of("unknown"), None)
    assert page.semaphore("license") == [None] * 5


def test_only_a_leader_shows_gauges(page: Page) -> None:
    assert page.value("suspect_permits") is None
    page.meter.show(of("a"), Figures(3, 3, 0, None, suspects=1, late=2))
    page.meter.show(of("b"), Figures(3, 3, 0, None, suspects=3))
    page.meter.granted(of("a"))
    assert (page.value("suspect_permits"), page.value("unpermitted_pods")) == (4, 2)
    page.meter.clear()
    assert page.semaphore("a") == [None] * 5
    assert (page.value("suspect_permits"), page.value("unpermitted_pods")) == (None, None)
    assert page.value("grants_total", "a") == 1


def test_what_is_counted(page: Page) -> None:
    page.meter.granted(of("a"))
    page.meter.granted(of("a"))
    page.meter.granted(of("b"))
    page.meter.denied(of("a"))
    page.meter.reclaimed(of("a"), "gone")
    page.meter.event_dropped()
    assert (page.value("grants_total", "a"), page.value("grants_total", "b")) == (2, 1)
    assert page.value("denials_total", "a") == 1
    assert page.value("denials_total", "b") is None
    assert page.value("reclaims_total", "a", reason="gone") == 1
    assert page.value("events_dropped_total") == 1


def test_what_is_measured(page: Page) -> None:
    page.meter.handed_over(of("a"), 0.07)
    page.meter.handed_over(of("a"), 40)
    page.meter.gate_removed(0.004)
    page.meter.gate_removed(0.2)
    assert page.value("handover_seconds_sum", "a") == pytest.approx(40.07)
    assert page.value("handover_seconds_bucket", "a", le="0.05") == 0
    assert page.value("handover_seconds_bucket", "a", le="0.1") == 1
    assert page.value("handover_seconds_bucket", "a", le="+Inf") == 2
    assert page.value("gate_removal_seconds_bucket", le="0.005") == 1
    assert page.value("gate_removal_seconds_count") == 2


def test_semaphores_beyond_the_bound_are_added_up(page: Page) -> None:
    for number in range(OF_ONE):
        page.meter.show(of(number), Figures(1, 1, 0, None, suspects=1))
    assert page.semaphore("other") == [None] * 5
    page.meter.show(of("x"), Figures(3, 1, 2, NOW - 5, suspects=1))
    page.meter.show(of("y"), Figures(2, 4, 3, NOW - 9))
    page.meter.show(of("z"), Figures(2, 1, 0, None))
    assert page.semaphore("other") == [7, 3, 6, 5, 9]
    assert page.value("suspect_permits") == OF_ONE + 1
    assert page.labelled("semaphore_length") == OF_ONE + 1
    # The place of one that is gone is the next one's.
    page.meter.show(of(7), None)
    page.meter.show(of(8), Figures(9, 0, 0, None))
    assert page.semaphore("x") == [3, 2, 1, 2, 5]
    assert page.semaphore("8") == [9, 9, 0, 0, 0]
    assert page.semaphore("other") == [4, 1, 5, 3, 9]


def test_a_place_among_counters_is_given_once(page: Page) -> None:
    for number in range(OF_ONE + 50):
        page.meter.granted(of(number))
        page.meter.show(of(number), Figures(1, 1, 0, None))
        page.meter.show(of(number), None)
    page.meter.granted(of(OF_ONE))
    page.meter.granted(of(0))
    page.meter.handed_over(of(OF_ONE), 1)
    page.meter.reclaimed(of(OF_ONE), "gone")
    assert page.labelled("grants_total") == OF_ONE + 1
    assert page.value("grants_total", "0") == 2
    assert page.value("grants_total", "other") == 51
    assert page.value("handover_seconds_count", "other") == 1
    assert page.value("reclaims_total", "other", reason="gone") == 1


def test_a_namespace_leaves_labels_to_others(page: Page) -> None:
    for number in range(2 * LABELLED):
        key = SemaphoreKey("hostile", str(number))
        page.meter.granted(key)
        page.meter.show(key, Figures(1, 1, 0, None))
    page.meter.granted(of("a"))
    page.meter.show(of("a"), Figures(3, 2, 1, None))
    assert page.value("grants_total", "a") == 1
    assert page.semaphore("a") == [3, 1, 2, 1, 0]
    assert page.labelled("grants_total") == OF_ONE + 2


def test_the_lines_of_a_full_page_are_few_enough(page: Page) -> None:
    """A line costs a scrape some 6 µs, during which no admission is answered."""
    for number in range(2 * LABELLED):
        key = of(number)
        page.meter.show(key, Figures(3, 3, 1, NOW - 1))
        page.meter.granted(key)
        page.meter.denied(key)
        page.meter.reclaimed(key, "gone")
        page.meter.handed_over(key, math.pi)
        page.meter.gate_removed(math.pi)
    assert generate_latest(page.registry).count(b"\n") < 20 * LABELLED
