"""What a watch of a namespace's pods has shown, and what follows from it: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Object = dict[str, Any]

PREFIX = "at-least-semaphore-pod-hook.kaidotio.github.io/"
FINISHED = ("Succeeded", "Failed")


class Seen(NamedTuple):
    """One event of a watch.

    Attributes:
        at: When it came, by the machine's monotonic clock, in seconds.
        kind: ADDED, MODIFIED or DELETED.
        name: The pod's.
        uid: The pod's.
        gated: Whether a scheduling gate holds the pod back.
        phase: The pod's.
        deleting: Whether its deletion has been asked for.
        token: The fencing token that the pod shows; 0 where it shows none.
    """

    at: float
    kind: str
    name: str
    uid: str
    gated: bool
    phase: str
    deleting: bool
    token: int

    @property
    def active(self) -> bool:
        """Whether the pod uses a permit: neither gated nor finished nor removed."""
        return self.kind != "DELETED" and not self.gated and self.phase not in FINISHED


def seen(at: float, kind: str, pod: Object) -> Seen:
    """Cut an event down to what is measured."""
    metadata = pod["metadata"]
    return Seen(
        at,
        kind,
        metadata["name"],
        metadata["uid"],
        bool((pod.get("spec") or {}).get("schedulingGates")),
        (pod.get("status") or {}).get("phase", ""),
        "deletionTimestamp" in metadata,
        int((metadata.get("annotations") or {}).get(f"{PREFIX}fencing-token", 0)),
    )


def served(events: Iterable[Seen]) -> dict[str, Seen]:
    """Return for each pod, in this order, the event that first showed it without a gate."""
    first: dict[str, Seen] = {}
    for event in events:
        if event.kind != "DELETED" and not event.gated:
            first.setdefault(event.name, event)
    return first


def regated(events: Iterable[Seen]) -> list[str]:
    """Return the pods that showed a gate after they had shown none, or that were served in two lives."""
    lives: dict[str, str] = {}
    again = []
    for event in events:
        other_life = not event.gated and lives.setdefault(event.name, event.uid) != event.uid
        if other_life or (event.gated and event.name in lives):
            again.append(event.name)
    return again


def most_active(events: Iterable[Seen], prefix: str = "") -> int:
    """Return how many pods, of those whose name begins so, were active at the same time at most."""
    active: set[str] = set()
    most = 0
    for event in events:
        if event.name.startswith(prefix):
            (active.add if event.active else active.discard)(event.uid)
            most = max(most, len(active))
    return most


def now_active(events: Iterable[Seen], prefix: str = "") -> set[str]:
    """Return the names of the pods that are active after all these events."""
    active: dict[str, bool] = {}
    for event in events:
        if event.name.startswith(prefix):
            active[event.name] = event.active
    return {name for name, is_active in active.items() if is_active}


def active_seconds(events: Iterable[Seen], start: float, end: float) -> float:
    """Return the sum, over all pods, of the seconds between `start` and `end` in which they were active."""
    since: dict[str, float] = {}
    total = 0.0
    for event in events:
        if event.active:
            since.setdefault(event.uid, event.at)
        elif event.uid in since:
            total += max(0.0, min(event.at, end) - max(since.pop(event.uid), start))
    return total + sum(max(0.0, end - max(at, start)) for at in since.values())


class Created(NamedTuple):
    """A creation by a client: when it was sent and when its answer was there, in monotonic seconds."""

    name: str
    sent: float
    answered: float


def inversions(created: Sequence[Created], served_at: dict[str, float]) -> list[tuple[str, str]]:
    """Return the pairs of pods of which the second was served before the first, though created strictly after it.

    Creations that were under way at the same time have no order of their own. A pod that was never served is one that
    everybody overtook.
    """
    never = float("inf")
    return [
        (early.name, late.name)
        for early in created
        for late in created
        if early.answered < late.sent and served_at.get(late.name, never) < served_at.get(early.name, never)
    ]
