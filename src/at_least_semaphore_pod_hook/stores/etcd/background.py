"""What a store does beside its answers: work that nobody waits for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.errors import UnavailableError
from at_least_semaphore_pod_hook.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

PAUSES_SECONDS = (0.1, 0.5, 2.0, 5.0)


class Background:
    """Small pieces of tidying up. What is not done in the end is done by a lease."""

    def __init__(self) -> None:
        self._tasks = Tasks()

    def start(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do `work`, again after a pause where the store is unavailable."""
        self._tasks.start(_persist(work))

    async def close(self, timeout: float) -> None:
        """See `Tasks.close`."""
        await self._tasks.close(timeout)


async def _persist(work: Callable[[], Coroutine[None, None, None]]) -> None:
    for pause in PAUSES_SECONDS:
        try:
            await work()
        except UnavailableError:
            await asyncio.sleep(pause)
        else:
            return
