"""What a Service does: one port, and each connection to it goes to one of the endpoints that are ready then."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence


@contextlib.asynccontextmanager
async def front(endpoints: Callable[[], Sequence[int]]) -> AsyncIterator[int]:
    """Lead each connection to the next of these ports of 127.0.0.1, as they are then; yields its own port.

    A connection stays where it is, also when its endpoint is none any more.
    """
    turns = itertools.count()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports = endpoints()
        try:
            there, back = await asyncio.open_connection("127.0.0.1", ports[next(turns) % len(ports)])
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(pump(reader, back), pump(there, writer))
        finally:
            for each in (writer, back):
                await abort(each)

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(lead(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def abort(writer: asyncio.StreamWriter) -> None:
    """End a connection at once, and return when it is closed."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
