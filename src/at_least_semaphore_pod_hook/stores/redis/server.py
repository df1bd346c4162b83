"""What a store asks of Redis, and one server that does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.redis_client import connect, translate
from at_least_semaphore_pod_hook.stores.redis.batcher import MAX_PIPELINES, Batcher

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from at_least_semaphore_pod_hook.addresses import Address
    from at_least_semaphore_pod_hook.redis_client import Learned, OwnConnection
    from at_least_semaphore_pod_hook.stores.redis.batcher import Script


class Caller(Protocol):
    """Calls scripts, at one server or at whichever is in charge. Each method raises StoreUnavailableError."""

    async def call(
        self, script: Script, keys: Sequence[str], args: Sequence[str | int], timeout: float | None = None
    ) -> Any:
        """Run a script that may be repeated, and return its reply within `timeout` seconds where one is given."""
        ...

    def channels(self, pattern: str) -> AsyncGenerator[bytes, None]:
        """Name the channel of each message that is published to one that matches."""
        ...

    def sorted_sets(self, pattern: str) -> AsyncGenerator[bytes, None]:
        """Name all sorted sets that match; one may come twice."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Server:
    """One server.

    Args:
        address: Where it is.
        timeout: Seconds after which a connection or an answer is given up.
        connect_timeout: Seconds after which a connection is given up, where that is less.
        wait_replicas: How many replicas must have a grant before it counts.
        alone: Whether there is no other server that may be in charge instead; then a call whose connection broke is
            sent again here.
        learned: What is told what INFO says, on each new connection for calls.
    """

    def __init__(
        self,
        address: Address,
        timeout: float,
        *,
        learned: Learned,
        connect_timeout: float | None = None,
        wait_replicas: int = 0,
        alone: bool = True,
    ) -> None:
        self.address = address
        self._redis = connect(address, timeout=timeout, max_connections=5, connect_timeout=connect_timeout)
        calling = connect(
            address,
            timeout=timeout,
            connect_timeout=connect_timeout,
            max_connections=MAX_PIPELINES,
            bounded_by_caller=True,
            learned=learned,
        )
        self._batcher = Batcher(calling, str(address), timeout, wait_replicas=wait_replicas, resend=alone)
        self._listening: set[OwnConnection] = set()
        # As it is: another coroutine around each call would be felt.
        self.call = self._batcher.call

    async def channels(self, pattern: str) -> AsyncGenerator[bytes, None]:
        """See `Caller.channels`."""
        with translate(self.address, StoreUnavailableError):
            async with self._redis.pubsub(ignore_subscribe_messages=True) as listener:
                await listener.psubscribe(pattern)
                connection: Any = listener.connection
                self._listening.add(connection)
                try:
                    async for message in listener.listen():
                        yield message["channel"]
                finally:
                    self._listening.discard(connection)

    async def sorted_sets(self, pattern: str) -> AsyncGenerator[bytes, None]:
        """See `Caller.sorted_sets`."""
        with translate(self.address, StoreUnavailableError):
            async for name in self._redis.scan_iter(match=pattern, count=1000, _type="ZSET"):
                yield name

    async def abandon(self) -> None:
        """Let go of it at once, with whatever is under way."""
        for connection in self._listening:
            connection.abort()
        await self._batcher.abandon()
        await self._redis.aclose()

    async def close(self) -> None:
        """Finish what is under way, and let go of connections."""
        await self._batcher.close()
        await self._redis.aclose()
