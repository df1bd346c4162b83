"""Reads the document from store and API server."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from at_least_semaphore_pod_hook.admission import annotations as pod_annotations
from at_least_semaphore_pod_hook.errors import ApiUnavailableError
from at_least_semaphore_pod_hook.overview.document import Overview, by_semaphore, moment, view
from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from at_least_semaphore_pod_hook.controller.kube import Kube
    from at_least_semaphore_pod_hook.controller.pods import PodView
    from at_least_semaphore_pod_hook.overview.document import SemaphoreView
    from at_least_semaphore_pod_hook.semaphore.contracts import Store

AT_ONCE = 8
"""How many semaphores are read at once: large ones are held in memory while they are."""
NAMED = 100
"""How many holders and waiters of a semaphore are named, unless another number is asked for."""
NO_API_SERVER = "no API server to ask"


class Scope(NamedTuple):
    """What to read: everything, a namespace, or one semaphore of it. Empty strings do not narrow it."""

    namespace: str = ""
    key: str = ""

    def covers(self, semaphore: SemaphoreKey) -> bool:
        """Say whether a semaphore is in it."""
        return self.namespace in {"", semaphore.namespace} and self.key in {"", semaphore.key}


EVERYTHING = Scope()


class Reader:
    """Reads semaphores and their pods; one for many readings.

    Args:
        store: Where semaphores live.
        prefix: What our annotations and labels begin with.
        kube: Returns the API server; None while there is none to ask.
        clock: Seconds since the epoch.
    """

    def __init__(
        self, store: Store, prefix: str, kube: Callable[[], Kube | None], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._label = f"{prefix}{pod_annotations.KEY}"
        self._kube = kube
        self._clock = clock

    async def read(self, scope: Scope = EVERYTHING, *, named: int = NAMED, most: int | None = None) -> Overview:
        """Read semaphores, those that have holders or pods; of one that is asked for by name, whatever there is.

        Args:
            scope: Which.
            named: How many holders and waiters of each to name at most.
            most: How many semaphores to read at most, the first ones by name; None for all.

        Raises:
            StoreUnavailableError: The store does not answer. That the API server does not is said in the document.
        """
        pods, reason = await self._pods(scope)
        semaphores = set(pods or ())
        if scope.key:
            semaphores.add(SemaphoreKey(*scope))
        else:
            semaphores |= {semaphore async for semaphore in self._store.semaphores() if scope.covers(semaphore)}
        chosen = sorted(semaphores)[:most]
        views: list[SemaphoreView] = []
        for start in range(0, len(chosen), AT_ONCE):
            batch = chosen[start : start + AT_ONCE]
            views += await asyncio.gather(*(self._view(semaphore, pods, named) for semaphore in batch))
        # One that came to its end meanwhile has nothing to tell.
        there = tuple(one for one in views if one.length or one.holders or one.waiters or one.unpermitted)
        return Overview(moment(self._clock()), reason, there)

    async def _view(
        self, semaphore: SemaphoreKey, pods: dict[SemaphoreKey, list[PodView]] | None, named: int
    ) -> SemaphoreView:
        state = await self._store.state(semaphore)
        mine = None if pods is None else pods.get(semaphore, [])
        return view(semaphore, state, mine, self._clock(), named=named)

    async def _pods(self, scope: Scope) -> tuple[dict[SemaphoreKey, list[PodView]] | None, str]:
        """Return the pods by semaphore, or None and why there are none to be had."""
        kube = self._kube()
        if kube is None:
            return None, NO_API_SERVER
        selector = f"{self._label}={scope.key}" if scope.key else self._label
        try:
            listed, _ = await kube.list_pods(selector, namespace=scope.namespace)
        except ApiUnavailableError as error:
            return None, str(error)
        return {semaphore: pods for semaphore, pods in by_semaphore(listed).items() if scope.covers(semaphore)}, ""
