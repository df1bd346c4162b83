"""A copy of the cluster's opted-in pods that is kept up to date, and what changes in it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import aclosing
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from at_least_semaphore_pod_hook.errors import ApiGoneError, ApiUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from at_least_semaphore_pod_hook.controller.kube import WatchEvent
    from at_least_semaphore_pod_hook.controller.pods import PodView

logger = logging.getLogger(__name__)

FIRST_BACKOFF = 0.1
MAX_BACKOFF = 3.0
SETTLED_SECONDS = 5.0
"""A watch that lasted this long was sound: what fails after it is the first failure again."""
RELIST_SECONDS = 600.0
"""How often all is listed anew though nothing seems wrong.

It mends what no watch can tell: after a restored etcd backup versions are given out a second time, and the API server
keeps quiet until it has passed the one that we watch from.
"""


class PodSource(Protocol):
    """Where pods come from; `kube.Kube` is one."""

    async def list_pods(self, label_selector: str) -> tuple[list[PodView], str]:
        """Return all pods and the version to watch on from; raises ApiUnavailableError."""

    def watch_pods(self, label_selector: str, resource_version: str) -> AsyncGenerator[WatchEvent]:
        """Tell of changes since a version; raises ApiUnavailableError, ApiGoneError where only a list helps."""


class ChangeKind(Enum):
    """What has happened to a pod."""

    ADDED = "added"
    MODIFIED = "modified"
    DELETED = "deleted"


class Change(NamedTuple):
    """A change. `pod` is the pod as it is now; of a deleted one, as it was last seen."""

    kind: ChangeKind
    pod: PodView


class Reflector:
    """Follows the pods of a source.

    For each pod (one UID) it tells of ADDED once, then of any number of MODIFIED, then of DELETED once, in this order;
    where another pod takes a name over, of the old one's end first. Nothing is missed over lost connections and
    versions, though several changes of a pod may have become one.

    Args:
        source: Where pods come from.
        label_selector: Which of them.
        on_change: Told of every change at once, in order. It must not raise: that ends `run`.
        clock: Seconds, only ever rising.
        sleep: Waits for seconds.
        jitter: Draws from [0, 1).
        relist_seconds: How often all is listed anew though nothing seems wrong.
    """

    def __init__(
        self,
        source: PodSource,
        label_selector: str,
        on_change: Callable[[Change], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        relist_seconds: float = RELIST_SECONDS,
    ) -> None:
        self._source = source
        self._label_selector = label_selector
        self._on_change = on_change
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._relist_seconds = relist_seconds
        self._pods: dict[tuple[str, str], PodView] = {}
        self._version = ""
        self._listed = 0.0
        self._heard: float | None = None
        self._failures = 0
        self._relists = 0
        self._failing = False
        self.synced = asyncio.Event()
        """Set once all pods that there are have been told of."""

    @property
    def pods(self) -> Mapping[tuple[str, str], PodView]:
        """All pods by namespace and name, as last seen."""
        return MappingProxyType(self._pods)

    @property
    def silent_seconds(self) -> float:
        """How long ago the source gave its last sign of life, half a minute where all is quiet; infinite before."""
        return float("inf") if self._heard is None else self._clock() - self._heard

    async def run(self) -> None:
        """Follow until cancelled. Run again, it tells of what has changed since."""
        self.synced.clear()
        self._version = ""
        self._failures = self._relists = 0
        while True:
            started = self._clock()
            try:
                if not self._version:
                    await self._list()
                    started = self._clock()
                await self._watch()
            except ApiGoneError as error:
                self._version = ""
                logger.info("watch of pods begins anew with a list", extra={"reason": str(error)})
                self._count(started)
                self._relists += 1
                # It happens now and then, e.g. when the API server was away, and waiting would help nobody.
                if self._relists == 1:
                    continue
            except ApiUnavailableError as error:
                self._count(started)
                self._report(str(error))
            else:
                self._hear()
                if self._clock() - self._listed >= self._relist_seconds:
                    self._version = ""
                # The source ends a watch now and then. One that ends at once, again and again, must not be a hot loop.
                if self._count(started):
                    continue
            await self._sleep(backoff(self._failures, self._jitter()))

    def _count(self, started: float) -> bool:
        """Count a failure, as the first one after a sound watch; return whether it was sound."""
        settled = self._clock() - started >= SETTLED_SECONDS
        self._failures = 1 if settled else self._failures + 1
        if settled:
            self._relists = 0
        return settled

    async def _list(self) -> None:
        pods, version = await self._source.list_pods(self._label_selector)
        self._listed = self._clock()
        self._hear()
        now = {(pod.namespace, pod.name): pod for pod in pods}
        # The ends first: what one pod leaves is there for the next.
        for name, known in list(self._pods.items()):
            pod = now.get(name)
            if pod is None or pod.uid != known.uid:
                del self._pods[name]
                self._on_change(Change(ChangeKind.DELETED, known))
        for pod in pods:
            self._see(pod)
        self._version = version
        self.synced.set()

    async def _watch(self) -> None:
        async with aclosing(self._source.watch_pods(self._label_selector, self._version)) as events:
            async for event in events:
                self._hear()
                if event.pod is None:
                    pass
                elif event.kind == "DELETED":
                    self._miss(event.pod)
                else:
                    self._see(event.pod)
                self._version = event.resource_version or self._version

    def _see(self, pod: PodView) -> None:
        name = (pod.namespace, pod.name)
        known = self._pods.get(name)
        if known is not None and known.uid == pod.uid:
            if known.resource_version != pod.resource_version:
                self._pods[name] = pod
                self._on_change(Change(ChangeKind.MODIFIED, pod))
            return
        if known is not None:
            del self._pods[name]
            self._on_change(Change(ChangeKind.DELETED, known))
        self._pods[name] = pod
        self._on_change(Change(ChangeKind.ADDED, pod))

    def _miss(self, pod: PodView) -> None:
        name = (pod.namespace, pod.name)
        known = self._pods.get(name)
        # One of another UID is late: that pod's end has been told of when its successor was seen.
        if known is not None and known.uid == pod.uid:
            del self._pods[name]
            self._on_change(Change(ChangeKind.DELETED, pod))

    def _hear(self) -> None:
        self._heard = self._clock()
        if self._failing:
            self._failing = False
            logger.info("API server answers again")

    def _report(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            logger.warning("pods cannot be watched", extra={"reason": reason})


def backoff(failures: int, jitter: float) -> float:
    """Return the seconds to wait after so many failures in a row; `jitter` is from [0, 1)."""
    longest = min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures - 1, 16))
    return longest * (0.5 + jitter / 2)
