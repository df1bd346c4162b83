"""Which server is in charge of what, and whom to ask about it."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, TypeVar

from at_least_semaphore_pod_hook.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

T = TypeVar("T")

LOOK_SECONDS = 1.0
"""How often it is looked who is in charge, and how long one that is asked may take."""
GRACE_SECONDS = 0.05
SLOTS = 16_384

Place: TypeAlias = tuple[str, int]
"""Host and port."""


class Topology(NamedTuple):
    """Who is in charge of which slots.

    Attributes:
        epoch: Rises with each change that the servers have agreed on.
        ends: The last slot of each range, ascending.
        owners: Who is in charge of that range; None for nobody.
    """

    epoch: int
    ends: tuple[int, ...]
    owners: tuple[Place | None, ...]

    @classmethod
    def of(cls, epoch: int, ranges: Sequence[tuple[int, int, Place]]) -> Topology:
        """Make one of ranges: first slot, last slot, who is in charge."""
        ends: list[int] = []
        owners: list[Place | None] = []
        free = 0
        for first, last, place in sorted(ranges):
            if first > free:
                ends.append(first - 1)
                owners.append(None)
            ends.append(last)
            owners.append(place)
            free = last + 1
        return cls(epoch, tuple(ends), tuple(owners))

    def owner(self, slot: int) -> Place | None:
        """Return who is in charge of a slot."""
        found = bisect_left(self.ends, slot)
        return self.owners[found] if found < len(self.ends) else None

    @property
    def places(self) -> frozenset[Place]:
        """Everybody who is in charge of something."""
        return frozenset(owner for owner in self.owners if owner)


class Lookup(Protocol):
    """Whom to ask who is in charge."""

    def learned(self, info: dict[bytes, bytes], /) -> None:
        """Is told what INFO says on each new connection for calls; may raise a RedisError to end it."""
        ...

    def slot(self, key: str) -> int:
        """Return the slot of a key."""
        ...

    async def look(self) -> Topology:
        """Ask; raises StoreUnavailableError where nobody knows."""
        ...

    async def news(self) -> None:
        """Return when it is worth while to ask again."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


async def answers(questions: Sequence[Coroutine[None, None, T]], needed: int) -> tuple[list[T], list[str]]:
    """Ask several at once, and wait for the slow ones only until `needed` have answered, and a moment more.

    Returns what was answered, and why others did not.
    """
    tasks = [asyncio.ensure_future(question) for question in questions]
    pending = set(tasks)
    try:
        while pending and sum(_succeeded(task) for task in tasks) < needed:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if pending:
            await asyncio.wait(pending, timeout=GRACE_SECONDS)
        given: list[T] = []
        failures: list[str] = []
        for task in tasks:
            if not task.done():
                continue
            error = task.exception()
            if error is None:
                given.append(task.result())
            elif isinstance(error, UnavailableError):
                failures.append(str(error))
            else:
                raise error
        return given, failures
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _succeeded(task: asyncio.Future[T]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
