"""What the controller tells people: Kubernetes Events, written in the background and bounded in number."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, NamedTuple

from at_least_semaphore_pod_hook.controller import events
from at_least_semaphore_pod_hook.controller.decide import Reason
from at_least_semaphore_pod_hook.controller.kube import Reference
from at_least_semaphore_pod_hook.controller.turns import Turns
from at_least_semaphore_pod_hook.errors import ApiForbiddenError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from at_least_semaphore_pod_hook.controller.events import Event
    from at_least_semaphore_pod_hook.controller.kube import Kube
    from at_least_semaphore_pod_hook.controller.pods import PodView
    from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey

logger = logging.getLogger(__name__)

QUEUED = 1_000
REMEMBERED = 10_000
BURST = 50
PER_SECOND = 10.0
PAUSE_SECONDS = 5.0
OWNER_SECONDS = 300.0
"""How long an owner that was woken is not reported on again: a busy one is woken at every hand-over."""
HOLDERS_NAMED = 3

RECLAIMED_AS = {
    Reason.FINISHED: "the pod has finished",
    Reason.ENDED: "all of the pod's containers but the sidecar have ended",
    Reason.DELETED: "the pod is being deleted",
    Reason.GONE: "the pod is gone",
    Reason.NEVER_STORED: "the pod was never stored",
}


class _Report(NamedTuple):
    regarding: Reference
    event: Event
    note: str
    at: float


class TokenBucket:
    """Paces: up to `burst` at once, and `per_second` on average."""

    def __init__(self, burst: int, per_second: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._tokens = float(burst)
        self._at = clock()

    def take(self) -> float:
        """Take a token; returns how many seconds to wait until it is there."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second) - 1
        self._at = now
        return max(0.0, -self._tokens / self._per_second)


class Reports:
    """Kubernetes Events about pods and owners, written in the background: never in the way of a hand-over.

    Nothing here raises, and nothing waits but `run`. There is one Event for each pod and reason; what is more than the
    queue holds is dropped, as is what the API server does not take. Namespaces are served in turn, so that one with
    many Events holds up its own.

    Args:
        kube: The API server.
        on_drop: Told of each Event that is not written.
        clock: Seconds, only ever rising.
        wall_clock: Seconds since the epoch, for what people read in an Event.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        on_drop: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._kube = kube
        self._on_drop = on_drop
        self._clock = clock
        self._wall_clock = wall_clock
        self._queue: Turns[_Report] = Turns(QUEUED)
        self._bucket = TokenBucket(BURST, PER_SECOND, clock)
        self._told: dict[tuple[str, str], float] = {}
        self._failing = False
        self._forbidden = False

    def waiting(
        self, semaphore: SemaphoreKey, pod: PodView, position: int, waiters: int, length: int, holders: Sequence[str]
    ) -> None:
        """Tell that a pod waits for a permit.

        Args:
            semaphore: Whose permit.
            pod: Who waits.
            position: Its place in the line, from 1 on.
            waiters: How many wait.
            length: How many permits there are.
            holders: The names of all pods that hold one.
        """
        note = waiting_note(semaphore, position, waiters, length, holders)
        self._report(_reference(pod), events.WAITING, note)

    def granted(self, semaphore: SemaphoreKey, pod: PodView, seconds: float) -> None:
        """Tell that a pod has got a permit after having waited for so long."""
        note = f"got a permit of {semaphore} after {duration(seconds)}"
        self._report(_reference(pod), events.GRANTED, note)

    def reclaimed(self, semaphore: SemaphoreKey, pod: PodView, reason: Reason) -> None:
        """Tell that a pod's permit was taken back because of what the API showed."""
        note = f"permit of {semaphore} taken back: {RECLAIMED_AS[reason]}"
        self._report(_reference(pod), events.RECLAIMED, note)

    def silent(self, semaphore: SemaphoreKey, pod: PodView) -> None:
        """Tell that a permit is kept for a pod whose sidecar does not renew it any more."""
        sidecar = f" {pod.sidecar.container.name}" if pod.sidecar else ""
        note = f"permit of {semaphore} kept for the pod, though its sidecar{sidecar} does not renew it: see its log"
        self._report(_reference(pod), events.SILENT, note)

    def late(self, semaphore: SemaphoreKey, pod: PodView, length: int) -> None:
        """Tell that a pod exists without a permit, and that the semaphore is full."""
        taken = f"its {length} permits are" if length != 1 else "its permit is"
        note = f"the pod has no permit of {semaphore}: {taken} held by others. It gets the next one that is free"
        self._report(_reference(pod), events.LATE, note)

    def woken(self, semaphore: SemaphoreKey, owner: Reference) -> None:
        """Tell that the owner of denied pods was touched, so that it tries again."""
        note = f"a permit of {semaphore} is free: a pod that was denied can be created now"
        self._report(owner, events.WOKEN, note, again_seconds=OWNER_SECONDS)

    async def run(self) -> None:
        """Write Events until cancelled."""
        while True:
            report = await self._queue.get()
            await asyncio.sleep(self._bucket.take())
            await self._write(report)

    def _report(self, regarding: Reference, event: Event, note: str, *, again_seconds: float = math.inf) -> None:
        now = self._clock()
        told = self._told.pop((regarding.uid, event.reason), -math.inf)
        if now - told >= again_seconds or told == -math.inf:
            report = _Report(regarding, event, note, self._wall_clock())
            if not self._queue.put(regarding.namespace, report):
                # It is not remembered, so that it is told where it comes up once more.
                self._on_drop()
                return
            told = now
        # Put in anew, at the end: what has not come up for longest is forgotten first.
        self._told[regarding.uid, event.reason] = told
        if len(self._told) > REMEMBERED:
            del self._told[next(iter(self._told))]

    async def _write(self, report: _Report) -> None:
        """Write an Event, once: it is no loss that would be worth another try."""
        regarding, event, note, at = report
        try:
            await self._kube.create_event(
                regarding, event.reason, note, action=event.action, warning=event.warning, at=at
            )
        except ApiForbiddenError as error:
            self._on_drop()
            # It may be one namespace's quota alone, with others' Events written in between: said once and for all.
            if not self._forbidden:
                self._forbidden = True
                logger.warning("Events may not be written", extra={"reason": str(error)})
        except UnavailableError as error:
            self._on_drop()
            self._told.pop((regarding.uid, event.reason), None)
            if not self._failing:
                self._failing = True
                logger.warning("Events cannot be written", extra={"reason": str(error)})
            await asyncio.sleep(PAUSE_SECONDS)
        except Exception:
            self._on_drop()
            logger.exception("Event not written", extra={"pod": regarding.name})
        else:
            if self._failing:
                self._failing = False
                logger.info("Events are written again")


def waiting_note(semaphore: SemaphoreKey, position: int, waiters: int, length: int, holders: Sequence[str]) -> str:
    """Say where a pod stands in the line, and whom it waits for."""
    place = f"waiting for a permit of {semaphore}: position {position} of {waiters}"
    held = len(holders)
    if not held:
        return place
    if held == length:
        whose = f"its {length} permits are" if length > 1 else "its permit is"
    else:
        whose = f"{held} of its {length} permits {'are' if held > 1 else 'is'}"
    return f"{place}; {whose} held by {listing(holders)}"


def listing(names: Sequence[str]) -> str:
    """Name a few, and say how many more there are: `a, b and c`, `a, b, c and 4 more`."""
    shown = list(names[:HOLDERS_NAMED])
    if more := len(names) - len(shown):
        shown.append(f"{more} more")
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def duration(seconds: float) -> str:
    """Say how long something took: `12.3 s`, `4 min 5 s`, `3 h 12 min`."""
    if round(seconds, 1) < 60:  # noqa: PLR2004 - seconds of a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004 - minutes of an hour
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _reference(pod: PodView) -> Reference:
    return Reference("v1", "Pod", pod.namespace, pod.name, pod.uid)
