"""Tasks of one process: lines that they wait in, and those that outlive the call that started them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Hashable


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


class Tasks:
    """Work that outlives the call that started it, up to `close`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start `work`, which handles its own errors, and do not wait for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for what is still under way, then cancel it."""
        tasks = set(self._tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
