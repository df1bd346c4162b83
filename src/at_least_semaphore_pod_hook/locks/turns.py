"""A line in front of a lock, within one process."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.errors import LockUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Turns:
    """Lets one task at a time through for each name, first in, first out; a name costs nothing once nobody uses it."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def turn(self, name: str, deadline: float) -> AsyncIterator[bool]:
        """Wait for one's turn until `deadline`, in the event loop's time. Yields whether others were there before.

        Raises:
            LockUnavailableError: The deadline came first.
        """
        lock, users = self._lines.get(name) or (asyncio.Lock(), 0)
        self._lines[name] = lock, users + 1
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    await lock.acquire()
            except TimeoutError:
                raise LockUnavailableError(
                    f"lock {name!r} is still taken, and this process waits for it already"
                ) from None
            try:
                yield users > 0
            finally:
                lock.release()
        finally:
            _, users = self._lines[name]
            if users > 1:
                self._lines[name] = lock, users - 1
            else:
                del self._lines[name]
