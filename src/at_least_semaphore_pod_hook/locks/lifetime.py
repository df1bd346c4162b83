"""What both locks do around holding: stop a holder in time, and clean up whatever happens."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.errors import LockUnavailableError

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


class Cleanups:
    """Work that outlives the call that started it, up to `close`.

    Args:
        grace: Seconds that a caller waits for its own cleanup before it goes on without it. Enough for servers that
            answer; one that does not answer must not hold up the caller.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start `work`, which handles its own errors, and do not wait for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def run(self, work: Coroutine[None, None, None]) -> None:
        """Start `work`, which handles its own errors, and wait for it, at most as long as the grace.

        A cancellation of the caller, even a second one, ends the waiting and never the work.
        """
        await asyncio.wait({self.start(work)}, timeout=self._grace)

    async def close(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for what is still under way, then cancel it."""
        tasks = set(self._tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
