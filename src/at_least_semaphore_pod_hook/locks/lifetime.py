"""What both locks do around holding: stop a holder in time, and clean up whatever happens."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.errors import LockUnavailableError
from at_least_semaphore_pod_hook.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine


@asynccontextmanager
async def stopped_at(when: float, name: str) -> AsyncIterator[asyncio.Timeout]:
    """Stop the body at `when`, in the event loop's time; what it yields can move that moment.

    A holder whose lock has ended would only learn from the store that its step is stale: better that it stops.

    Raises:
        LockUnavailableError: The body was stopped.
    """
    end = asyncio.timeout_at(when)
    try:
        async with end:
            yield end
    except TimeoutError:
        if not end.expired():
            raise
        raise LockUnavailableError(f"lock {name!r} ended while it was held, and its holder was stopped") from None


class Cleanups(Tasks):
    """Work that outlives the call that started it, which may wait for it a little.

    Args:
        grace: Seconds that a caller waits for its own cleanup before it goes on without it. Enough for servers that
            answer; one that does not answer must not hold up the caller.
    """

    def __init__(self, grace: float) -> None:
        super().__init__()
        self._grace = grace

    async def run(self, work: Coroutine[None, None, None]) -> None:
        """Start `work`, which handles its own errors, and wait for it, at most as long as the grace.

        A cancellation of the caller, even a second one, ends the waiting and never the work.
        """
        await asyncio.wait({self.start(work)}, timeout=self._grace)
