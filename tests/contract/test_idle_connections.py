"""Connections that were reset while nobody used them, as by a firewall or a node that was replaced.

On uvloop, which the webhook runs on: it treats a write to such a connection in a way of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING

import uvloop

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.locks.redlock import Redlock
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.stores.redis.store import open_redis_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.sidecar_harness import Server

KEY = SemaphoreKey("ns", "key")
AT_ONCE = 0.5


class _Relay:
    """Passes bytes on between clients and a server, until it resets all connections of its clients."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Address]:
        async with await asyncio.start_server(self._accept, "127.0.0.1", 0) as server:
            yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
            await self.reset()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._relay(reader, writer))
        self._connections[task] = writer

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        finally:
            back.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            target.write(data)

    async def reset(self) -> None:
        connections, self._connections = self._connections, {}
        for task, writer in connections.items():
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.sleep(0.05)  # the other side has to take notice; nothing tells when it has


def wish(permit: str) -> AcquireRequest:
    return AcquireRequest(KEY, 10, 60, permit, permit)


def test_a_store_whose_idle_connections_were_reset_answers_at_once(server: Server) -> None:
    async def main() -> None:
        relay = _Relay(server.port)
        async with relay.serving() as address:
            store = open_redis_store(address)
            step = await store.begin(KEY, Fence("redlock", 0))
            await store.set_length(KEY, 10, step.fence)
            async with asyncio.timeout(AT_ONCE):
                assert (await store.acquire(wish("before"))).outcome is Outcome.GRANTED
                assert [key async for key in store.semaphores()] == [KEY]
            await relay.reset()
            async with asyncio.timeout(AT_ONCE):
                assert (await store.acquire(wish("after"))).outcome is Outcome.GRANTED
                assert [key async for key in store.semaphores()] == [KEY]
            await relay.reset()
            server.client.script_flush()
            async with asyncio.timeout(AT_ONCE):
                assert (await store.acquire(wish("without scripts"))).held == 3
            await store.close()

    uvloop.run(main())


def test_a_redlock_whose_idle_connections_were_reset_is_had_at_once(server: Server) -> None:
    async def main() -> None:
        relay = _Relay(server.port)
        async with relay.serving() as address:
            lock = Redlock([address])
            for _ in range(3):
                async with asyncio.timeout(AT_ONCE), lock.hold("ns/key", AT_ONCE):
                    assert server.client.exists("lock/ns/key")
                await relay.reset()
            await lock.close()

    uvloop.run(main())
