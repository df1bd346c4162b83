"""A queue in which those who put much into it hold up themselves, and nobody else."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


def has_room(own: int, all_together: int, most: int) -> bool:
    """Say whether somebody may take one more of `most` places: while what he has is less than what is left.

    So the first takes half of them at most, whoever comes after him half of the rest, and there is always something
    left for another.
    """
    return own < most - all_together


class Turns(Generic[T]):
    """A bounded queue of several owners' items: they are taken in turn, one of each owner.

    Args:
        most: How many items there are at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._queues: dict[str, deque[T]] = {}
        self._size = 0
        self._filled = asyncio.Event()

    def put(self, owner: str, item: T) -> bool:
        """Put an item last of its owner's. Returns False where there is no room for it."""
        queue = self._queues.get(owner)
        if not has_room(len(queue or ()), self._size, self._most):
            return False
        self._queues.setdefault(owner, deque()).append(item)
        self._size += 1
        self._filled.set()
        return True

    async def get(self) -> T:
        """Wait for an item, and take the first of the owner whose turn it is."""
        await self._filled.wait()
        owner = next(iter(self._queues))
        queue = self._queues.pop(owner)
        item = queue.popleft()
        if queue:
            self._queues[owner] = queue
        self._size -= 1
        if not self._queues:
            self._filled.clear()
        return item
