"""Which of the replicas is the active one: leader election on a Lease (coordination.k8s.io/v1).

The semantics are those of client-go's. No two machines' clocks are compared: a candidate takes a Lease over that it has
not seen change for the Lease's own duration, by its own clock; and a leader stops before that much time has passed
since it *began* its last successful renewal, so that it has stopped before anybody can have taken over.

After a SIGKILL somebody else leads within `duration_seconds + retry_seconds` and a request's time: 4 + 1 s by default.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from at_least_semaphore_pod_hook.controller.leases import LeaseView, micro_time
from at_least_semaphore_pod_hook.errors import ApiUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

_RELEASE_SECONDS = 2.0
_SHORTEST_SECONDS = 0.001


class Timing(NamedTuple):
    """How fast an election is, in seconds.

    Attributes:
        duration_seconds: How long a Lease is left to a holder that does not renew it; what the Lease says, so whole.
        deadline_seconds: After so long without a renewal a leader stops. What is left of the duration is for clocks
            that do not run equally fast.
        renew_seconds: How often a leader renews.
        retry_seconds: How often a candidate looks. A leader tries again after a quarter of it, as its deadline is near.
            Jitter shortens both by up to a fifth.
    """

    duration_seconds: int = 4
    deadline_seconds: float = 3.0
    renew_seconds: float = 1.0
    retry_seconds: float = 1.0


class LeaseStore(Protocol):
    """Where the Lease is; `kube.Kube` is one. Each raises ApiUnavailableError."""

    async def get_lease(self, namespace: str, name: str) -> LeaseView | None:
        """Read it; None where there is none."""

    async def create_lease(self, namespace: str, name: str, lease: LeaseView) -> LeaseView | None:
        """Create it; None where there is one already."""

    async def update_lease(self, namespace: str, name: str, lease: LeaseView) -> LeaseView | None:
        """Write it; None where it has changed since the version that `lease` names."""


class Step(Enum):
    """What a candidate does about a Lease."""

    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


def decide(lease: LeaseView | None, unchanged_seconds: float, identity: str) -> Step:
    """Say what to do about a Lease.

    Args:
        lease: As it was read; None where there is none.
        unchanged_seconds: For how long we have seen it as it is, by our own clock.
        identity: Who we are.
    """
    if lease is None:
        return Step.CREATE
    if lease.holder == identity:
        return Step.RENEW
    if not lease.holder or unchanged_seconds >= lease.duration_seconds:
        return Step.TAKE
    return Step.WAIT


def boot_clock() -> float:
    """Seconds, only ever rising, a suspended machine's sleep included: the others' leases ran out meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def _nothing() -> None:
    pass


class Election:
    """A candidate.

    Args:
        leases: Where the Lease is.
        namespace: The Lease's.
        name: The Lease's.
        identity: Who we are; no other process, not even an earlier one of the same pod, may have the same.
        on_started: Awaited when we begin to lead; it must return at once, as no renewal is made meanwhile.
        on_stopped: Awaited when we have ceased to lead, before the Lease is released.
        timing: How fast.
        clock: Seconds, only ever rising.
        wall_clock: Seconds since the epoch, for what people read in the Lease.
        jitter: Draws from [0, 1).
    """

    def __init__(
        self,
        leases: LeaseStore,
        namespace: str,
        name: str,
        identity: str,
        *,
        on_started: Callable[[], Awaitable[None]] = _nothing,
        on_stopped: Callable[[], Awaitable[None]] = _nothing,
        timing: Timing | None = None,
        clock: Callable[[], float] = boot_clock,
        wall_clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._leases = leases
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._on_started = on_started
        self._on_stopped = on_stopped
        self._timing = timing or Timing()
        self._clock = clock
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._lease: LeaseView | None = None
        self._seen = 0.0
        self._deadline = 0.0
        self._started = False
        self._failing = False

    @property
    def leading(self) -> bool:
        """Whether we lead at this moment. True to the clock even where the process was stopped and goes on."""
        return self._started and self._clock() < self._deadline

    @property
    def holder(self) -> str:
        """Who leads as far as we have seen; empty where nobody does."""
        return self._lease.holder if self._lease else ""

    async def run(self) -> None:
        """Stand for election until cancelled; then cease to lead and let the Lease go at once."""
        try:
            while True:
                await self._round()
        finally:
            try:
                await self._stop("we end")
            finally:
                await self._release()

    async def _round(self) -> None:
        began = self._clock()
        ours = False
        try:
            async with asyncio.timeout(self._patience(began)):
                ours = await self._try()
        except (ApiUnavailableError, TimeoutError) as error:
            self._report(error)
            if self._started and self._clock() >= self._deadline:
                await self._stop("the Lease could not be renewed in time")
            await asyncio.sleep(self._pause())
            return
        if self._failing:
            self._failing = False
            logger.info("leader election works again")
        if ours:
            self._deadline = began + self._timing.deadline_seconds
            # An answer that came too late is none: others may have taken over already.
            if self._clock() < self._deadline:
                await self._start()
            await asyncio.sleep(min(self._timing.renew_seconds, max(0.0, self._deadline - self._clock())))
            return
        await self._stop(f"the Lease is held by {self.holder or 'nobody'}")
        await asyncio.sleep(self._pause())

    def _patience(self, now: float) -> float:
        """Return how long a try may take: a leader's not beyond its deadline, and short enough to be made twice."""
        longest = self._timing.deadline_seconds / 2
        return min(longest, max(0.0, self._deadline - now)) if self._started else longest

    def _pause(self) -> float:
        pause = self._timing.retry_seconds * (1.0 - self._jitter() / 5)
        if self._started:
            return min(pause / 4, max(0.0, self._deadline - self._clock()))
        if self._lease is None or not self._lease.holder or self._lease.holder == self._identity:
            return pause
        # Awake when the Lease runs out, not a round later.
        left = self._seen + self._lease.duration_seconds - self._clock()
        # A remainder that is too small for the clock to show would be waited for again and again.
        return min(pause, max(_SHORTEST_SECONDS, left)) if left > 0 else pause

    async def _try(self) -> bool:
        """Renew the Lease or take it where it is to be had; return whether it is ours."""
        if self._started and self._lease is not None:
            written = await self._leases.update_lease(self._namespace, self._name, self._renewed(self._lease))
            if written is not None:
                self._observe(written)
                return True
        self._observe(await self._leases.get_lease(self._namespace, self._name))
        lease = self._lease
        step = decide(lease, self._clock() - self._seen, self._identity)
        if step is Step.WAIT:
            return False
        if lease is None:
            stamp = micro_time(self._wall_clock())
            fresh = LeaseView("", self._identity, self._timing.duration_seconds, 0, stamp, stamp)
            written = await self._leases.create_lease(self._namespace, self._name, fresh)
        else:
            written = await self._leases.update_lease(self._namespace, self._name, self._renewed(lease))
        if written is not None:
            self._observe(written)
        return written is not None

    def _renewed(self, lease: LeaseView) -> LeaseView:
        stamp = micro_time(self._wall_clock())
        renewed = lease._replace(holder=self._identity, duration_seconds=self._timing.duration_seconds, renewed=stamp)
        if lease.holder == self._identity:
            return renewed
        return renewed._replace(acquired=stamp, transitions=lease.transitions + 1)

    def _observe(self, lease: LeaseView | None) -> None:
        if lease is None or self._lease is None or lease.resource_version != self._lease.resource_version:
            self._seen = self._clock()
        self._lease = lease

    async def _start(self) -> None:
        if not self._started:
            self._started = True
            logger.info("leading", extra={"lease": f"{self._namespace}/{self._name}", "identity": self._identity})
            await self._on_started()

    async def _stop(self, reason: str) -> None:
        if self._started:
            self._started = False
            logger.info("not leading any more", extra={"reason": reason})
            await self._on_stopped()

    async def _release(self) -> None:
        """Give the Lease up where it is ours, so that the next need not wait for its end."""
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                written = None
                while written is None:
                    # Read anew: a write may have been under way when we were told to end.
                    lease = await self._leases.get_lease(self._namespace, self._name)
                    if lease is None or lease.holder != self._identity:
                        return
                    # One second is for implementations that go by the duration alone.
                    empty = self._renewed(lease)._replace(holder="", duration_seconds=1)
                    written = await self._leases.update_lease(self._namespace, self._name, empty)
        except (ApiUnavailableError, TimeoutError) as error:
            logger.warning("the Lease was not released; others wait for its end", extra={"reason": str(error)})

    def _report(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            reason = str(error) or "no answer in time"
            logger.warning("leader election does not get through", extra={"reason": reason})
