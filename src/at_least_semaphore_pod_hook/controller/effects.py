"""What the controller does to store and API server. All of it may be repeated, and be done by two at once."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from at_least_semaphore_pod_hook.admission import annotations as pod_annotations
from at_least_semaphore_pod_hook.admission.inject import pointer
from at_least_semaphore_pod_hook.controller.decide import (
    Action,
    Dismiss,
    Grant,
    Keep,
    Reason,
    Release,
    Resize,
    Ungate,
    Wake,
)
from at_least_semaphore_pod_hook.controller.kube import OWNERS, Written
from at_least_semaphore_pod_hook.controller.survey import FALLBACK_EXPIRATION_SECONDS
from at_least_semaphore_pod_hook.errors import ApiUnavailableError, StoreUnavailableError
from at_least_semaphore_pod_hook.semaphore.lines import decided
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from at_least_semaphore_pod_hook.controller.kube import Kube
    from at_least_semaphore_pod_hook.controller.meter import Meter
    from at_least_semaphore_pod_hook.controller.pods import PodView
    from at_least_semaphore_pod_hook.controller.reports import Reports
    from at_least_semaphore_pod_hook.semaphore.contracts import Store
    from at_least_semaphore_pod_hook.semaphore.model import Holder, SemaphoreKey
    from at_least_semaphore_pod_hook.semaphore.service import SemaphoreService

logger = logging.getLogger(__name__)

RESIZE_SECONDS = 5.0
ANSWER_SECONDS = 5.0
"""How long the store may take to answer a grant, where half of the lease is longer."""
IN_A_ROW = 4
"""Up to so many pods are let in one after the other, so that everybody sees them go in order.

More at once means that there is room for all of them; then their gates are removed side by side.
"""


class Served(NamedTuple):
    """A pod that has been let in, and the seconds from its grant to its gate's removal."""

    pod: PodView
    ungating_seconds: float


class Missing(NamedTuple):
    """A pod that could not be let in, as the API server has no such pod any more."""

    pod: PodView


class CarriedOut(NamedTuple):
    """What came of it.

    Attributes:
        served: The pods that were let in.
        missing: Those that are gone, of which the watch has not told yet.
        again: Whether something has come to light that is worth another look at once.
    """

    served: list[Served]
    missing: list[PodView]
    again: bool


class Effects:
    """Carries out what `decide` says.

    Args:
        kube: The API server.
        store: Where semaphores live.
        service: Creates and resizes semaphores.
        prefix: What our annotations, labels and our gate begin with.
        wake_owners: Whether owners of denied pods are touched when a permit is free.
        meter: Told of what is counted.
        reports: Told of what people are to see at the objects.
    """

    def __init__(
        self,
        kube: Kube,
        store: Store,
        service: SemaphoreService,
        *,
        prefix: str,
        wake_owners: bool,
        meter: Meter,
        reports: Reports,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._store = store
        self._service = service
        self._prefix = prefix
        self._wake_owners = wake_owners
        self._meter = meter
        self._reports = reports
        self._clock = clock

    async def carry_out(self, semaphore: SemaphoreKey, actions: Sequence[Action]) -> CarriedOut:
        """Do it all, in order.

        Raises:
            UnavailableError: Store or API server do not answer; what is left undone is decided on anew.
        """
        again = False
        for release in [action for action in actions if isinstance(action, Release)]:
            again |= await self._take_back(semaphore, release)
        for dismiss in [action for action in actions if isinstance(action, Dismiss)]:
            await self._store.release(semaphore, dismiss.pod.permit, ended=True)
        await self._keep_all(semaphore, [action for action in actions if isinstance(action, Keep)])
        for resize in [action for action in actions if isinstance(action, Resize)]:
            await self._service.resize(semaphore, resize.length, RESIZE_SECONDS)
            again = True
        results = await self._serve(semaphore, [action for action in actions if isinstance(action, Grant | Ungate)])
        for wake in [action for action in actions if isinstance(action, Wake)]:
            await self._wake(semaphore, wake.owner)
        served = [result for result in results if isinstance(result, Served)]
        return CarriedOut(served, [result.pod for result in results if isinstance(result, Missing)], again)

    async def _take_back(self, semaphore: SemaphoreKey, release: Release) -> bool:
        """Take a permit back; returns True where that was not foreseen when the rest was decided."""
        holder, reason = release.holder, release.reason
        if release.unproven and not await self._is_gone(semaphore, holder):
            return False
        reclaimed = await self._reclaim(semaphore, holder.permit, holder.pod, reason)
        # What goes as it should is nothing to tell.
        if reclaimed and release.pod is not None and reason in {Reason.FINISHED, Reason.GONE}:
            self._reports.reclaimed(semaphore, release.pod, reason)
        return release.unproven

    async def _reclaim(self, semaphore: SemaphoreKey, permit: str, pod: str, reason: Reason) -> bool:
        """Take a permit back, and count it; returns False where it was free already."""
        began = self._clock()
        if not await self._store.release(semaphore, permit, ended=reason in {Reason.ENDED, Reason.FINISHED}):
            return False
        self._meter.reclaimed(semaphore, reason.value)
        about = self._about(semaphore, permit, pod, "reclaimed", began)
        logger.info("permit reclaimed", extra=about | {"reason": reason.value})
        return True

    async def _is_gone(self, semaphore: SemaphoreKey, holder: Holder) -> bool:
        """Ask the API server itself, since what the watch has not shown may only be late."""
        if holder.uid or holder.confirmed:
            pod = await self._kube.get_pod(semaphore.namespace, holder.pod)
            return pod is None or pod.permit != holder.permit or pod.finished
        selector = f"{self._prefix}{pod_annotations.KEY}={semaphore.key}"
        pods, _ = await self._kube.list_pods(selector)
        return not any(pod.namespace == semaphore.namespace and pod.permit == holder.permit for pod in pods)

    async def _keep_all(self, semaphore: SemaphoreKey, keeps: Sequence[Keep]) -> None:
        began = self._clock()
        nodes = sorted({keep.pod.node for keep in keeps if keep.lapsing and keep.pod.node})
        ready = dict(zip(nodes, await asyncio.gather(*map(self._kube.node_ready, nodes)), strict=True))
        kept = [keep for keep in keeps if not keep.lapsing or not keep.pod.node or ready[keep.pod.node]]
        await asyncio.gather(
            *(self._store.keep(semaphore, keep.holder.permit, keep.pod.name, keep.pod.uid) for keep in kept)
        )
        for keep in kept:
            if keep.suspect:
                about = self._about(semaphore, keep.holder.permit, keep.holder.pod, "kept", began)
                logger.warning("permit kept for a pod whose sidecar is silent", extra=about)
                self._reports.silent(semaphore, keep.pod)

    async def _serve(self, semaphore: SemaphoreKey, actions: Sequence[Grant | Ungate]) -> list[Served | Missing]:
        """Let pods in, in order, as far as there are permits.

        Permits are granted one after the other, so that fencing tokens rise along the line. Each pod is let in before
        half of its lease is over, or not yet: what came too late is decided on anew.
        """
        loop = asyncio.get_running_loop()
        under_way: list[asyncio.Task[Served | Missing | None]] = []
        try:
            for action in actions:
                began, until = self._clock(), loop.time() + _expiration(action.pod) / 2
                if isinstance(action, Ungate):
                    token = action.token if await self._renewed(semaphore, action.pod, until) else 0
                else:
                    token = await self._acquire(semaphore, action.pod)
                if not token:
                    break
                under_way.append(asyncio.create_task(self._let_in(semaphore, action.pod, token, began, until)))
                if len(actions) <= IN_A_ROW:
                    await asyncio.wait(under_way)
            # One that fails must not keep the others, whose permits are taken, from coming in.
            results = await asyncio.gather(*under_way, return_exceptions=True)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, Served | Missing)]

    async def _acquire(self, semaphore: SemaphoreKey, pod: PodView) -> int:
        """Take a permit for a pod that exists; returns its fencing token, or 0 where there is none to be had."""
        wish = AcquireRequest(semaphore, 0, _expiration(pod), pod.permit, identity=pod.uid, pod=pod.name, uid=pod.uid)
        acquired = await self._store.acquire(wish, min(ANSWER_SECONDS, wish.answer_seconds))
        if acquired.outcome is Outcome.GRANTED:
            self._meter.granted(semaphore)
        return acquired.token if acquired.outcome in {Outcome.GRANTED, Outcome.RESUMED} else 0

    async def _renewed(self, semaphore: SemaphoreKey, pod: PodView, until: float) -> bool:
        """Renew a permit that was granted some time ago; returns whether it is still held."""
        try:
            async with asyncio.timeout_at(until):
                return await self._store.keep(semaphore, pod.permit, pod.name, pod.uid) > 0
        except TimeoutError as error:
            raise StoreUnavailableError(f"semaphore {semaphore}: half of a lease was over before an answer") from error

    async def _let_in(
        self, semaphore: SemaphoreKey, pod: PodView, token: int, granting: float, until: float
    ) -> Served | Missing | None:
        """Remove our gate where the pod has it, and nothing else; write the token down where its workload reads it.

        `granting` is when its permit was asked for, by our clock, and `until` when half of its lease is over, by the
        event loop's.
        """
        began = self._clock()
        name = self._prefix + pod_annotations.FENCING_TOKEN
        patch = ungate(pod, self._prefix + pod_annotations.GATE)
        # Whoever has taken all annotations from a pod must not keep it from coming in.
        if pod.annotations:
            patch.append({"op": "add", "path": f"/metadata/annotations/{pointer(name)}", "value": str(token)})
        try:
            async with asyncio.timeout_at(until):
                written = await self._kube.patch_pod(pod.namespace, pod.name, patch)
        except TimeoutError as error:
            raise ApiUnavailableError(f"pod {pod.namespace}/{pod.name}: not let in within half of its lease") from error
        if written is Written.DONE:
            message = "pod let in" if pod.gated else "permit granted to a pod that had none"
            logger.info(message, extra=self._about(semaphore, pod.permit, pod.name, "granted", granting))
            return Served(pod, self._clock() - began)
        if written is Written.MISSING:
            await self._reclaim(semaphore, pod.permit, pod.name, Reason.GONE)
            return Missing(pod)
        # Where the pod is not as it was, the watch is about to show how it is.
        return None

    async def _wake(self, semaphore: SemaphoreKey, owner: str) -> None:
        """Touch an owner, whose controller then tries again at once instead of sitting out its back-off."""
        kind, _, name = owner.partition("/")
        if self._wake_owners and kind in OWNERS and name:
            began, stamp = self._clock(), f"{time.time():.3f}"
            annotation = self._prefix + pod_annotations.WOKEN
            touched = await self._kube.touch_owner(kind, semaphore.namespace, name, annotation, stamp)
            if touched is not None:
                about = self._about(semaphore, "", "", "woken", began)
                logger.info("owner woken", extra=about | {"owner": owner})
                self._reports.woken(semaphore, touched)
        await self._store.forget_denied(semaphore, owner)

    def _about(self, semaphore: SemaphoreKey, permit: str, pod: str, outcome: str, began: float) -> dict[str, object]:
        """Return what is logged of a decision that was begun at a time by our clock."""
        return decided(semaphore, permit, pod, outcome, self._clock() - began)


def ungate(pod: PodView, gate: str) -> list[dict[str, Any]]:
    """Return the JSON patch that removes a gate from this very pod where it has it, and tests what it removes."""
    patch: list[dict[str, Any]] = [{"op": "test", "path": "/metadata/uid", "value": pod.uid}]
    if gate in pod.gates:
        path = f"/spec/schedulingGates/{pod.gates.index(gate)}"
        patch += [{"op": "test", "path": path, "value": {"name": gate}}, {"op": "remove", "path": path}]
    return patch


def _expiration(pod: PodView) -> int:
    return pod.expiration or FALLBACK_EXPIRATION_SECONDS
