"""What a store does beside its answers: lines of callers, and work that nobody waits for."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Hashable

PAUSES_SECONDS = (0.1, 0.5, 2.0, 5.0)


class Lines:
    """Lets one task at a time through for each name, first in, first out; a name costs nothing once nobody uses it."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def turn(self, name: Hashable) -> AsyncIterator[bool]:
        """Wait for one's turn. Yields whether others were there before."""
        lock, users = self._lines.get(name) or (asyncio.Lock(), 0)
        self._lines[name] = lock, users + 1
        try:
            async with lock:
                yield users > 0
        finally:
            _, users = self._lines[name]
            if users > 1:
                self._lines[name] = lock, users - 1
            else:
                del self._lines[name]


class Background:
    """Small pieces of tidying up. What is not done in the end is done by a lease."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do `work`, again after a pause where the store is unavailable."""
        task = asyncio.get_running_loop().create_task(self._persist(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _persist(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        for pause in PAUSES_SECONDS:
            try:
                await work()
            except UnavailableError:
                await asyncio.sleep(pause)
            else:
                return

    async def close(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for what is under way, then cancel it."""
        tasks = set(self._tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
