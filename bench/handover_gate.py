"""Gate mode, one hand-over at a time: three pods run, thirty wait in line, and the oldest of the three ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from cluster_client import pod, waiting
from cluster_history import Created, Seen, inversions, regated, served
from cluster_scene import Scene, Stage
from devcluster.polling import until
from handover_report import Row, latencies, none_of

LENGTH = 3
WAITERS = 30
P50_SECONDS = 0.030
P99_SECONDS = 0.100
# What the last hand-over has left to do, a started sidecar above all, shall not be measured with the next.
SETTLE_SECONDS = 0.1
HANDED_SECONDS = 15.0


class Handed(NamedTuple):
    """A hand-over: when the holder's end began, in monotonic seconds, and the event that showed the next pod free."""

    released: float
    seen: Seen

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.seen.at - self.released


Release = Callable[[str], float]
"""Makes a pod give its permit back; returns the monotonic time at which it did."""


class Line:
    """The pods of one key, in their order. `holders` and `waiting` are names, the oldest first."""

    def __init__(self, scene: Scene, key: str = "line") -> None:
        self._scene = scene
        self._key = key
        self.created: list[Created] = []
        self.holders: list[str] = []
        self.waiting: list[str] = []
        self.handed = 0

    def fill(self) -> None:
        """Create all pods, one after the other; return once the first ones run."""
        for _ in range(LENGTH + WAITERS):
            self._join()
        self.holders, self.waiting = self.waiting[:LENGTH], self.waiting[LENGTH:]
        first = set(self.holders)
        self._scene.watcher.wait(lambda events: first <= set(served(events)), HANDED_SECONDS, "the first pods are free")
        until(lambda: len(self._scene.confirmed(self._key)) == LENGTH, "the first sidecars renew")
        time.sleep(SETTLE_SECONDS)

    def hand_over(self, release: Release) -> Handed:
        """Let the oldest holder end and the next pod take its place, and a new one join the line's end."""
        holder, begun = self.holders.pop(0), len(self._scene.watcher.events)
        released = release(holder)
        seen = self._scene.watcher.first(
            lambda event: not event.gated and event.name in self.waiting,
            begun,
            HANDED_SECONDS,
            f"hand-over {self.handed + 1}, from {holder} to {self.waiting[0]}",
        )
        self.handed += 1
        self.waiting.remove(seen.name)
        self.holders.append(seen.name)
        self._scene.client.remove(holder)
        self._join()
        until(lambda: seen.uid in self._scene.confirmed(self._key), f"the sidecar of {seen.name} renews")
        time.sleep(SETTLE_SECONDS)
        return Handed(released, seen)

    def verdict(self, case: str) -> list[Row]:
        """Return what must hold after any number of hand-overs: order kept, nothing lost, nothing twice."""
        events = self._scene.watcher.events
        free = served(events)
        wrong = [f"{early} after {late}" for early, late in inversions(self.created, _times(free))]
        overtaken = [f"{name} never" for name in self.holders if name not in free]
        # Those that still wait have been overtaken by nobody; the pairs of them with those served are all in order.
        tokens = [event.token for event in free.values()]
        if tokens != sorted(set(tokens)) or 0 in tokens:
            overtaken.append("fencing tokens do not rise")
        twice = [f"{name} gated again" for name in regated(events)]
        if len(free) != LENGTH + self.handed:
            twice.append(f"{len(free)} pods served in place of {LENGTH + self.handed}")
        holders = {free[name].uid for name in self.holders if name in free}
        if (held := self._scene.held(self._key)) != holders:
            twice.append(f"the store has {len(held - holders)} permits too many, {len(holders - held)} too few")
        return [
            none_of(f"{case}: order of creation", len(free), wrong + overtaken),
            none_of(f"{case}: nothing lost, nothing twice", len(free), twice),
        ]

    def _join(self) -> None:
        created = self._scene.client.create(pod(f"{self._key}-{len(self.created):04}", waiting(self._key, LENGTH)))
        self.created.append(created)
        self.waiting.append(created.name)


def sigterm(stage: Stage, handovers: int) -> list[Row]:
    """Measure from the SIGTERM of the oldest holder's sidecar to the next gate gone."""
    return _measure(stage, "gate-sigterm", "SIGTERM to the next gate gone", by_sigterm, handovers)


def dead(stage: Stage, handovers: int) -> list[Row]:
    """Measure from the status that shows a pod with a dead sidecar finished to the next gate gone."""
    return _measure(stage, "gate-dead", "status patch to the next gate gone", by_status, handovers)


def _measure(stage: Stage, case: str, what: str, way: Callable[[Scene], Release], handovers: int) -> list[Row]:
    with stage.scene(case, sidecars="real") as scene:
        line = Line(scene)
        line.fill()
        took = [line.hand_over(way(scene)).seconds for _ in range(handovers)]
        rows = line.verdict(case)
    _show_slowest(took)
    return [latencies(f"{case}: {what}", took, p50=P50_SECONDS, p99=P99_SECONDS), *rows]


def by_sigterm(scene: Scene) -> Release:
    """Return what makes a pod's sidecar end in the ordinary way."""

    def release(name: str) -> float:
        at = time.monotonic()
        scene.runner.kill_sidecar(scene.namespace, name, signal.SIGTERM)
        return at

    return release


def by_status(scene: Scene) -> Release:
    """Return what kills a pod's sidecar and, once that is over, reports the pod finished."""

    def release(name: str) -> float:
        before = len(scene.watcher.events)
        scene.runner.kill_sidecar(scene.namespace, name, signal.SIGKILL)
        scene.watcher.first(lambda event: event.name == name, before, HANDED_SECONDS, f"{name}'s sidecar is dead")
        time.sleep(SETTLE_SECONDS)
        at = time.monotonic()
        scene.client.set_status(name, phase="Succeeded")
        return at

    return release


def _show_slowest(took: list[float]) -> None:
    print("slowest:", ", ".join(f"{seconds * 1000:.1f} ms" for seconds in sorted(took)[:-6:-1]), flush=True)


def _times(free: dict[str, Seen]) -> dict[str, float]:
    return {name: event.at for name, event in free.items()}
