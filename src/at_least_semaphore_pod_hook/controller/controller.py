"""The controller: watches pods, and sees for each semaphore to what `decide` says."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.controller.decide import LOST_MS, Observed, decide, is_suspect, line, unpermitted
from at_least_semaphore_pod_hook.controller.meter import Figures
from at_least_semaphore_pod_hook.controller.reflector import Change, ChangeKind
from at_least_semaphore_pod_hook.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from at_least_semaphore_pod_hook.controller.effects import Effects, Served
    from at_least_semaphore_pod_hook.controller.meter import Meter
    from at_least_semaphore_pod_hook.controller.pods import PodView
    from at_least_semaphore_pod_hook.controller.reports import Reports
    from at_least_semaphore_pod_hook.semaphore.contracts import Store
    from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey, SemaphoreState

logger = logging.getLogger(__name__)

RESYNC_SECONDS = 4.0
"""How often all is looked at though nothing is known to have changed: a lost message costs less than five seconds."""
MIN_LOOK_SECONDS = 0.2
RETRY_SECONDS = 0.5
RESERVATION_SECONDS = 15.0
REMEMBERED = 10_000
GONE_REMEMBERED = 1_000
RECONNECT_SECONDS = 1.0
IDLE_SECONDS = 3600.0
"""How long a semaphore is shown in the metrics after its last pod has gone."""
NEW_SECONDS = 10.0
"""A waiter that is older when it is first seen has been told of by a controller before this one."""
WORKERS = 8


class Watched:
    """The pods that opted in, by semaphore, and those whose end was seen lately, by permit."""

    def __init__(self) -> None:
        self._pods: dict[SemaphoreKey, dict[str, PodView]] = {}
        self.gone: dict[str, PodView] = {}

    def take(self, change: Change) -> SemaphoreKey | None:
        """Take a change in; returns the semaphore that it is about."""
        pod = change.pod
        semaphore = pod.semaphore
        if semaphore is None:
            return None
        if change.kind is not ChangeKind.DELETED:
            # What a watch that is behind still tells of a pod whose end is known is old.
            if (known := self.gone.get(pod.permit)) and known.uid == pod.uid:
                return None
            self._pods.setdefault(semaphore, {})[pod.uid] = pod
            return semaphore
        pods = self._pods.get(semaphore, {})
        pods.pop(pod.uid, None)
        if not pods:
            self._pods.pop(semaphore, None)
        self.gone[pod.permit] = pod
        if len(self.gone) > GONE_REMEMBERED:
            del self.gone[next(iter(self.gone))]
        return semaphore

    def let_in(self, semaphore: SemaphoreKey, pod: PodView) -> None:
        """Note that a pod's gate is gone, of which the watch is about to tell."""
        pods = self._pods.get(semaphore, {})
        if pods.get(pod.uid) is pod:
            pods[pod.uid] = pod.let_in()

    def of(self, semaphore: SemaphoreKey) -> list[PodView]:
        """Return a semaphore's pods."""
        return list(self._pods.get(semaphore, {}).values())

    def semaphores(self) -> set[SemaphoreKey]:
        """Return the semaphores that have pods."""
        return set(self._pods)


class Controller:
    """Keeps semaphores and pods in step. All that it does may be repeated, and be done by two at once.

    Args:
        store: Where semaphores live.
        effects: Carries out what is decided.
        meter: Told of each semaphore's figures.
        reports: Told of what people are to see at the pods.
        clock: Seconds, only ever rising.
        wall_clock: Seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        effects: Effects,
        meter: Meter,
        reports: Reports,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._effects = effects
        self._meter = meter
        self._reports = reports
        self._clock = clock
        self._wall_clock = wall_clock
        self._watched = Watched()
        self._queue: asyncio.Queue[SemaphoreKey] = asyncio.Queue()
        self._due_since: dict[SemaphoreKey, float] = {}
        self._under_way: set[SemaphoreKey] = set()
        self._missing_since: dict[str, float] = {}
        self._waiting: dict[SemaphoreKey, set[str]] = {}
        self._looks: dict[SemaphoreKey, asyncio.TimerHandle] = {}
        self._used: dict[SemaphoreKey, float] = {}

    def observe(self, change: Change) -> None:
        """Take a change of a pod in."""
        semaphore = self._watched.take(change)
        if semaphore is not None:
            self.look_at(semaphore)

    def look_at(self, semaphore: SemaphoreKey) -> None:
        """See to a semaphore soon.

        One that is being seen to is seen to once more after it, never by two workers at once (the way of the work queue
        of Kubernetes' client-go).
        """
        if semaphore not in self._due_since:
            self._due_since[semaphore] = self._clock()
            if semaphore not in self._under_way:
                self._queue.put_nowait(semaphore)

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._resync())
                tasks.create_task(self._listen())
                for _ in range(WORKERS):
                    tasks.create_task(self._work())
        finally:
            for look in self._looks.values():
                look.cancel()
            self._meter.clear()

    async def _resync(self) -> None:
        """Look at everything now and then: what was pushed may have been missed, and leases run out in silence."""
        while True:
            semaphores = self._watched.semaphores()
            try:
                semaphores |= {semaphore async for semaphore in self._store.semaphores()}
            except UnavailableError as error:
                logger.warning("semaphores not listed", extra={"reason": str(error)})
            for semaphore in semaphores:
                self.look_at(semaphore)
            self._forget_idle(semaphores)
            await asyncio.sleep(RESYNC_SECONDS)

    def _forget_idle(self, in_use: set[SemaphoreKey]) -> None:
        now = self._clock()
        for semaphore, used in list(self._used.items()):
            if semaphore not in in_use and now - used > IDLE_SECONDS:
                del self._used[semaphore]
                self._meter.show(semaphore, None)

    async def _listen(self) -> None:
        while True:
            try:
                async for semaphore in self._store.changes():
                    self.look_at(semaphore)
            except UnavailableError as error:
                logger.warning("releases are not heard of, only seen at the next look", extra={"reason": str(error)})
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _work(self) -> None:
        while True:
            semaphore = await self._queue.get()
            since = self._due_since.pop(semaphore)
            self._under_way.add(semaphore)
            try:
                await self.reconcile(semaphore, since)
            except UnavailableError as error:
                logger.warning("semaphore not seen to", extra={"semaphore": str(semaphore), "reason": str(error)})
                self._look_in(semaphore, RETRY_SECONDS)
            except Exception:
                logger.exception("semaphore not seen to", extra={"semaphore": str(semaphore)})
            self._under_way.discard(semaphore)
            if semaphore in self._due_since:
                self._queue.put_nowait(semaphore)

    async def reconcile(self, semaphore: SemaphoreKey, since: float) -> None:
        """Bring a semaphore in step with its pods.

        Args:
            semaphore: Which.
            since: When it became known that there is something to see to, by our clock.

        Raises:
            UnavailableError: Store or API server do not answer.
        """
        state = await self._store.state(semaphore)
        pods = self._watched.of(semaphore)
        missing = self._missing_ms(state, pods)
        self._look_again(semaphore, state, [pod for pod in pods if pod.held_back and pod.permit in missing], missing)
        seen = Observed(state, pods, self._watched.gone, int(RESERVATION_SECONDS * 1000), missing)
        held = state.permits
        waiters = [pod for pod in line(pods) if pod.permit not in held]
        late = unpermitted(seen, held)
        # Those whose work has not begun are served as the late ones are, and are told and counted as waiters are.
        waiters = [*(pod for pod in late if pod.held_back), *waiters]
        late = [pod for pod in late if not pod.held_back]
        if state.length or pods:
            self._show(semaphore, seen, waiters, late)
        served, gone, again = await self._effects.carry_out(semaphore, decide(seen))
        for pod in gone:
            self._watched.take(Change(ChangeKind.DELETED, pod))
        self._welcome(semaphore, served, since)
        if again:
            self.look_at(semaphore)
            return
        names = {pod.uid: pod.name for pod, _ in served}
        self._announce(semaphore, state, [pod for pod in waiters if pod.uid not in names], names)
        for pod in late:
            # One that has only just given its permit back is about to end.
            if pod.uid not in names and missing.get(pod.permit, 0) >= LOST_MS:
                self._reports.late(semaphore, pod, state.length)

    def _look_again(
        self, semaphore: SemaphoreKey, state: SemaphoreState, held_back: Iterable[PodView], missing: Mapping[str, int]
    ) -> None:
        """Look again at what is due before the next resync.

        That is a lease that is half gone, a reservation that has had its time, and a pod that is held back and has been
        without a permit for so long that it gets another.
        """
        halves = [holder.lease_ms / 1000 - holder.expiration_ms / 2000 for holder in state.holders]
        unseen = [
            RESERVATION_SECONDS - holder.age_ms / 1000
            for holder in state.holders
            if not holder.uid and not holder.confirmed
        ]
        lost = [(LOST_MS - missing[pod.permit]) / 1000 for pod in held_back if missing[pod.permit] < LOST_MS]
        soonest = min(halves + unseen + lost, default=RESYNC_SECONDS)
        if earlier := self._looks.pop(semaphore, None):
            earlier.cancel()
        if soonest < RESYNC_SECONDS:
            self._look_in(semaphore, max(MIN_LOOK_SECONDS, soonest + MIN_LOOK_SECONDS / 10))

    def _look_in(self, semaphore: SemaphoreKey, seconds: float) -> None:
        if earlier := self._looks.pop(semaphore, None):
            earlier.cancel()
        self._looks[semaphore] = asyncio.get_running_loop().call_later(seconds, self._look_now, semaphore)

    def _look_now(self, semaphore: SemaphoreKey) -> None:
        del self._looks[semaphore]
        self.look_at(semaphore)

    def _missing_ms(self, state: SemaphoreState, pods: Iterable[PodView]) -> dict[str, int]:
        """Return for how long the store has not known the permits of those of these pods that were let in."""
        now = self._clock()
        held = state.permits
        missing = {}
        for pod in pods:
            if pod.permit in held or pod.gated:
                self._missing_since.pop(pod.permit, None)
            else:
                missing[pod.permit] = int(1000 * (now - self._missing_since.setdefault(pod.permit, now)))
        if len(self._missing_since) > REMEMBERED:
            self._missing_since.clear()
        return missing

    def _show(self, semaphore: SemaphoreKey, seen: Observed, waiters: list[PodView], late: list[PodView]) -> None:
        permits = {pod.permit for pod in seen.pods}
        figures = Figures(
            length=seen.state.length,
            held=seen.state.held,
            waiting=len(waiters),
            oldest_wait_since=min((pod.came for pod in waiters), default=None),
            suspects=sum(is_suspect(holder) and holder.permit in permits for holder in seen.state.holders),
            late=len(late),
        )
        self._used[semaphore] = self._clock()
        self._meter.show(semaphore, figures)

    def _welcome(self, semaphore: SemaphoreKey, served: Iterable[Served], since: float) -> None:
        """Count those who were let in; those who had to wait for it are told so."""
        now = self._clock()
        waiting = self._waiting.get(semaphore, set())
        for pod, ungating_seconds in served:
            if pod.gated:
                self._watched.let_in(semaphore, pod)
                self._meter.gate_removed(ungating_seconds)
            if pod.uid in waiting:
                self._meter.handed_over(semaphore, now - since)
                self._reports.granted(semaphore, pod, max(0.0, self._wall_clock() - pod.came))

    def _announce(
        self, semaphore: SemaphoreKey, state: SemaphoreState, waiters: list[PodView], served: Mapping[str, str]
    ) -> None:
        """Tell new waiters that they wait.

        Args:
            semaphore: Which.
            state: How it was.
            waiters: Who still waits, in line.
            served: The names of the pods that have been let in since, by UID.
        """
        known = self._waiting.pop(semaphore, set())
        # One that is held back waits on, also while it is not known for sure that it has no permit.
        still = {pod.uid for pod in self._watched.of(semaphore) if pod.held_back and pod.uid in known} - set(served)
        if waiting := still | {pod.uid for pod in waiters}:
            self._waiting[semaphore] = waiting
        holders = [*(holder.pod for holder in state.holders if holder.permit not in served), *served.values()]
        for position, pod in enumerate(waiters, start=1):
            if pod.uid not in known and (pod.held_back or self._wall_clock() - pod.came < NEW_SECONDS):
                self._reports.waiting(semaphore, pod, position, len(waiters), state.length, holders)
