"""A server that loses what was written to it, as one does that is restored from a backup."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from redis.asyncio import Redis

from devcluster.stores import RedisServer
from tests.chaos.history import OK, Operation
from tests.chaos.holds import Expectation


class RestoredCopy:
    """The server crashes and comes back with an old copy of its data, in which nobody holds a permit.

    Args:
        server: To be crashed; it writes nothing to disk by itself.
        seconds: How long after the beginning.

    Attributes:
        lost_after: When it was crashed, by the machine's monotonic clock.
        whole_at: When it was back.
    """

    def __init__(self, server: RedisServer, seconds: float = 0.2) -> None:
        self.lost_after = self.whole_at = math.inf
        self._server = server
        self._seconds = seconds

    async def prepare(self) -> None:
        async with Redis(port=self._server.port) as client:
            await client.save()

    async def happen(self) -> None:
        await asyncio.sleep(self._seconds)
        self.lost_after = time.monotonic()
        await asyncio.to_thread(self._server.kill)
        await asyncio.to_thread(self._server.start)
        self.whole_at = time.monotonic()

    def expectation(self, operations: Sequence[Operation]) -> Expectation:
        """Say what this allows: lost holders are back when the first step after the crash has set the length."""
        rebuilt: dict[str, float] = {}
        for operation in operations:
            if operation.kind == "set_length" and operation.outcome == OK and operation.invoked > self.lost_after:
                rebuilt.setdefault(operation.semaphore, operation.completed)
        return Expectation("bounded", self.lost_after, self.whole_at, max(rebuilt.values(), default=math.inf))
