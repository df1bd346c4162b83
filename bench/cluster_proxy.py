"""A proxy in front of a Redis that swallows what its subscribers would be told, as a network may."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self

from devcluster.errors import DevClusterError
from devcluster.process import free_port

_START_SECONDS = 10.0
_CHUNK = 65536


class Swallowing:
    """Forwards from a port of its own to one of 127.0.0.1, but for messages; a context manager.

    `swallowed` counts what was kept back. All else passes on: answers, confirmations of a subscription, and pings.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self.swallowed = 0
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="swallowing-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(_START_SECONDS):
            raise DevClusterError("the proxy does not listen")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._forward(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", self._port)
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        subscribed = False

        async def up() -> None:
            nonlocal subscribed
            while data := await reader.read(_CHUNK):
                subscribed = subscribed or b"SUBSCRIBE" in data.upper()
                back.write(data)
                await back.drain()

        async def down() -> None:
            while data := await there.read(_CHUNK):
                if subscribed and b"message" in data:
                    self.swallowed += 1
                    continue
                writer.write(data)
                await writer.drain()

        ways = [asyncio.ensure_future(up()), asyncio.ensure_future(down())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()
            back.close()
