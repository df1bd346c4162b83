"""The controller: watches pods, and does for each semaphore what `decide` says."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.admission import annotations as pod_annotations
from at_least_semaphore_pod_hook.controller.decide import (
    Action,
    Grant,
    Keep,
    Observed,
    Reason,
    Release,
    Wake,
    decide,
    permit_of,
)
from at_least_semaphore_pod_hook.controller.kube import OWNERS, Written
from at_least_semaphore_pod_hook.controller.reflector import Change, ChangeKind
from at_least_semaphore_pod_hook.errors import InvalidInputError, UnavailableError
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Outcome, SemaphoreKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from at_least_semaphore_pod_hook.controller.kube import Kube
    from at_least_semaphore_pod_hook.controller.pods import PodView
    from at_least_semaphore_pod_hook.semaphore.contracts import Store
    from at_least_semaphore_pod_hook.semaphore.model import Holder, SemaphoreState
    from at_least_semaphore_pod_hook.semaphore.service import SemaphoreService

logger = logging.getLogger(__name__)

RESYNC_SECONDS = 5.0
MIN_LOOK_SECONDS = 0.2
RESERVATION_SECONDS = 15.0
LOST_SECONDS = 2.0
GONE_REMEMBERED = 10_000
GRANT_SECONDS = 5.0
RECONNECT_SECONDS = 1.0
WORKERS = 8


class Watched:
    """The pods that opted in, by semaphore, and the permits of those whose end was seen lately."""

    def __init__(self) -> None:
        self._pods: dict[SemaphoreKey, dict[str, PodView]] = {}
        self.gone: dict[str, None] = {}

    def take(self, change: Change) -> SemaphoreKey | None:
        """Take a change in; returns the semaphore that it is about."""
        pod = change.pod
        namespace, _, key = pod.sidecar.semaphore.partition("/") if pod.sidecar else ("", "", "")
        # A pod's arguments are its own to write: they reach no other namespace's semaphore.
        if namespace != pod.namespace or not key or not (pod.sidecar and pod.sidecar.permit):
            return None
        semaphore = SemaphoreKey(namespace, key)
        if change.kind is not ChangeKind.DELETED:
            self._pods.setdefault(semaphore, {})[pod.uid] = pod
            return semaphore
        pods = self._pods.get(semaphore, {})
        pods.pop(pod.uid, None)
        if not pods:
            self._pods.pop(semaphore, None)
        self.gone[permit_of(pod)] = None
        if len(self.gone) > GONE_REMEMBERED:
            del self.gone[next(iter(self.gone))]
        return semaphore

    def of(self, semaphore: SemaphoreKey) -> list[PodView]:
        """Return a semaphore's pods."""
        return list(self._pods.get(semaphore, {}).values())

    def semaphores(self) -> set[SemaphoreKey]:
        """Return the semaphores that have pods."""
        return set(self._pods)


class Controller:
    """Keeps semaphores and pods in step. All that it does may be repeated, and be done by two at once.

    Args:
        kube: The API server.
        store: Where semaphores live.
        service: Grants permits.
        prefix: What our annotations and labels begin with.
        wake_owners: Whether owners of denied pods are touched when a permit is free.
        on_release: Told of each permit that was taken back, and why.
    """

    def __init__(
        self,
        kube: Kube,
        store: Store,
        service: SemaphoreService,
        *,
        prefix: str,
        wake_owners: bool = True,
        on_release: Callable[[Reason], None] = lambda _reason: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._store = store
        self._service = service
        self._prefix = prefix
        self._wake_owners = wake_owners
        self._on_release = on_release
        self._clock = clock
        self._watched = Watched()
        self._queue: asyncio.Queue[SemaphoreKey] = asyncio.Queue()
        self._dirty: set[SemaphoreKey] = set()
        self._under_way: set[SemaphoreKey] = set()
        self._missing_since: dict[str, float] = {}
        self._looks: dict[SemaphoreKey, asyncio.TimerHandle] = {}

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
        if semaphore not in self._dirty:
            self._dirty.add(semaphore)
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
            await asyncio.sleep(RESYNC_SECONDS)

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
            self._dirty.discard(semaphore)
            self._under_way.add(semaphore)
            try:
                await self.reconcile(semaphore)
            except UnavailableError as error:
                logger.warning("semaphore not seen to", extra={"semaphore": str(semaphore), "reason": str(error)})
            except Exception:
                logger.exception("semaphore not seen to", extra={"semaphore": str(semaphore)})
            self._under_way.discard(semaphore)
            if semaphore in self._dirty:
                self._queue.put_nowait(semaphore)

    async def reconcile(self, semaphore: SemaphoreKey) -> None:
        """Bring a semaphore in step with its pods. Raises UnavailableError where store or API do not answer."""
        state = await self._store.state(semaphore)
        pods = self._watched.of(semaphore)
        self._look_again(semaphore, state)
        seen = Observed(
            state,
            pods,
            self._watched.gone,
            int(RESERVATION_SECONDS * 1000),
            self._lost(state, pods),
        )
        for action in decide(seen):
            await self._do(semaphore, state, action)

    def _look_again(self, semaphore: SemaphoreKey, state: SemaphoreState) -> None:
        """Look again when the first of the leases is half gone, which may be long before the next resync."""
        if earlier := self._looks.pop(semaphore, None):
            earlier.cancel()
        halves = [holder.lease_ms / 1000 - holder.expiration_ms / 2000 for holder in state.holders]
        soonest = min(halves, default=RESYNC_SECONDS)
        if soonest < RESYNC_SECONDS:
            delay = max(MIN_LOOK_SECONDS, soonest + MIN_LOOK_SECONDS / 10)
            self._looks[semaphore] = asyncio.get_running_loop().call_later(delay, self.look_at, semaphore)

    def _lost(self, state: SemaphoreState, pods: list[PodView]) -> set[str]:
        """Return the permits of these pods that the store has not known for `LOST_SECONDS`."""
        now = self._clock()
        held = {holder.permit for holder in state.holders}
        lost = set()
        for permit in map(permit_of, pods):
            if permit in held:
                self._missing_since.pop(permit, None)
            elif now - self._missing_since.setdefault(permit, now) >= LOST_SECONDS:
                lost.add(permit)
        if len(self._missing_since) > GONE_REMEMBERED:
            self._missing_since.clear()
        return lost

    async def _do(self, semaphore: SemaphoreKey, state: SemaphoreState, action: Action) -> None:
        match action:
            case Release(holder, reason, unproven):
                if not unproven or await self._is_gone(semaphore, holder):
                    await self._release(semaphore, holder, reason)
            case Keep(holder, pod, lapsing, suspect):
                if not lapsing or not pod.node or await self._kube.node_ready(pod.node):
                    await self._store.keep(semaphore, holder.permit, pod.name, pod.uid)
                    if suspect:
                        logger.warning("permit kept for a pod whose sidecar is silent", extra=_about(semaphore, holder))
            case Grant(pod):
                await self._grant(semaphore, state, pod)
            case Wake(owner):
                await self._wake(semaphore, owner)

    async def _is_gone(self, semaphore: SemaphoreKey, holder: Holder) -> bool:
        """Ask the API server itself, since what the watch has not shown may only be late."""
        if holder.uid or holder.confirmed:
            pod = await self._kube.get_pod(semaphore.namespace, holder.pod)
            return pod is None or permit_of(pod) != holder.permit or pod.finished
        pods, _ = await self._kube.list_pods(f"{self._prefix}key={semaphore.key}")
        return not any(pod.namespace == semaphore.namespace and permit_of(pod) == holder.permit for pod in pods)

    async def _release(self, semaphore: SemaphoreKey, holder: Holder, reason: Reason) -> None:
        if await self._store.release(semaphore, holder.permit, ended=reason in {Reason.ENDED, Reason.FINISHED}):
            self._on_release(reason)
            logger.info("permit reclaimed", extra=_about(semaphore, holder) | {"reason": reason.value})
            self.look_at(semaphore)

    async def _grant(self, semaphore: SemaphoreKey, state: SemaphoreState, pod: PodView) -> None:
        try:
            demand = pod_annotations.parse(pod.annotations, self._prefix)
        except InvalidInputError as error:
            logger.warning("pod not served", extra={"semaphore": str(semaphore), "pod": pod.name, "reason": str(error)})
            return
        if demand is None:
            return
        length = state.length or demand.length
        wish = AcquireRequest(semaphore, length, demand.expiration, permit_of(pod), identity=pod.uid, pod=pod.name)
        acquired = (await self._service.acquire(wish, GRANT_SECONDS)).acquired
        if acquired.outcome is Outcome.FULL:
            return
        await self._store.keep(semaphore, acquired.permit, pod.name, pod.uid)
        logger.info(
            "permit granted to a pod that had lost its own",
            extra={"semaphore": str(semaphore), "pod": pod.name, "permit": acquired.permit},
        )

    async def _wake(self, semaphore: SemaphoreKey, owner: str) -> None:
        """Touch an owner, whose controller then tries again at once instead of sitting out its back-off."""
        kind, _, name = owner.partition("/")
        if self._wake_owners and kind in OWNERS and name:
            stamp = f"{time.time():.3f}"
            written = await self._kube.touch_owner(kind, semaphore.namespace, name, f"{self._prefix}woken", stamp)
            if written is Written.DONE:
                logger.info("owner woken", extra={"semaphore": str(semaphore), "owner": owner})
        await self._store.forget_denied(semaphore, owner)


def _about(semaphore: SemaphoreKey, holder: Holder) -> dict[str, str]:
    return {"semaphore": str(semaphore), "permit": holder.permit, "pod": holder.pod}
