"""A line in front of a lock, within one process."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.errors import LockUnavailableError
from at_least_semaphore_pod_hook.tasks import Lines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Turns:
    """Lines that nobody waits in for longer than until a deadline."""

    def __init__(self) -> None:
        self._lines = Lines()

    @asynccontextmanager
    async def turn(self, name: str, deadline: float) -> AsyncIterator[bool]:
        """Wait for one's turn until `deadline`, in the event loop's time. Yields whether others were there before.

        Raises:
            LockUnavailableError: The deadline came first.
        """
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout_at(deadline):
                    others_before = await stack.enter_async_context(self._lines.turn(name))
            except TimeoutError:
                raise LockUnavailableError(
                    f"lock {name!r} is still taken, and this process waits for it already"
                ) from None
            yield others_before
