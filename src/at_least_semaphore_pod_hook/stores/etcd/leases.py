"""How much is left of many leases, without asking etcd about each of them time and again."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from at_least_semaphore_pod_hook.etcd import Client

MAX_ASKED_AT_ONCE = 32
MAX_ASKED_ANEW = 32
MAX_ASKED = 1000
MAX_KNOWN = 200_000


class Left(NamedTuple):
    """A lease at a moment: the seconds that are left at least, and those that a renewal gives."""

    seconds: float
    granted: int

    @property
    def elapsed(self) -> float:
        """The seconds since its last renewal, at most."""
        return max(0.0, self.granted - self.seconds)


class Leases:
    """Asks etcd for the time that leases have left, and remembers the answers where there are many.

    A renewal only makes that time longer, so that what was left, less the time since, is left at least. That is answer
    enough until half of the lease is gone, which is when somebody has to act; then etcd is asked anew.

    Args:
        client: Whom to ask.
        clock: Seconds of a monotonic clock.
    """

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._ends: dict[int, tuple[float, int]] = {}
        self._asking = asyncio.Semaphore(MAX_ASKED_AT_ONCE)

    async def left(self, lease: int) -> Left:
        """Ask etcd about one lease; one that has ended has nothing left."""
        async with self._asking:
            answer = await self._client.time_to_live(lease)
        seconds = max(0, answer.ttl)
        self._ends[lease] = self._clock() + seconds, answer.granted_ttl
        return Left(seconds, answer.granted_ttl)

    async def of_all(self, wanted: Mapping[int, float]) -> dict[int, Left]:
        """Say of each lease what is left of it; where there are many, what is left at least.

        Args:
            wanted: By lease, the seconds that a renewal gives, the most urgent one first. Of very many that are not
                known, only the first are asked about; the others count as just renewed until it is their turn.
        """
        leases = list(wanted)
        if len(leases) <= MAX_ASKED_ANEW:
            return dict(zip(leases, await asyncio.gather(*map(self.left, leases)), strict=True))
        now = self._clock()
        if len(self._ends) > MAX_KNOWN:
            self._ends = {lease: self._ends[lease] for lease in leases if lease in self._ends}
        known = {}
        unknown = []
        for lease in leases:
            end, granted = self._ends.get(lease, (0.0, 0))
            if (end - now) * 2 > granted:
                known[lease] = Left(end - now, granted)
            else:
                unknown.append(lease)
        asked, later = unknown[:MAX_ASKED], unknown[MAX_ASKED:]
        answers = await asyncio.gather(*map(self.left, asked))
        known |= {lease: Left(wanted[lease], max(1, int(wanted[lease]))) for lease in later}
        return known | dict(zip(asked, answers, strict=True))

    def forget(self, lease: int) -> None:
        """Forget what was known of a lease: it has been renewed, or is not needed any more."""
        self._ends.pop(lease, None)
