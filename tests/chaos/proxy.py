"""TCP links that can be troubled: black holes, delays, half-open connections, resets, refusals and lost replies."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, Self, TypeVar

Result = TypeVar("Result")
_CHUNK = 65_536
_WAIT_SECONDS = 30.0
_BACKLOG = 100


class Loop:
    """An event loop in a thread of its own; a context manager."""

    def __init__(self) -> None:
        # Not uvloop: where a TLS handshake ends as its peer is killed, aiohttp closes the socket, and uvloop its number
        # once more, which may be another file's by then.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-loop", daemon=True)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the loop and return its result to another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_WAIT_SECONDS)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.run(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # What they have closed ends in the loop's next turn.
    await asyncio.sleep(0)


class Way(Enum):
    """A direction through a link."""

    REQUESTS = "requests"
    REPLIES = "replies"


@dataclass(frozen=True)
class Trouble:
    """What a link does to what passes.

    Attributes:
        held: Directions in which nothing passes. What is held goes on when the trouble ends, as TCP would send it
            again, even where the client has given up meanwhile.
        delay, jitter: Seconds by which each piece is late; the jitter is the random part.
        refused: New connections are refused.
        replies_lost: Requests pass; the first piece of a reply ends the connection with a reset instead.
    """

    held: frozenset[Way] = frozenset()
    delay: float = 0.0
    jitter: float = 0.0
    refused: bool = False
    replies_lost: bool = False


NONE = Trouble()


class Tap(Protocol):
    """Reads along on one connection, in its protocol."""

    def asked(self, data: bytes) -> None:
        """Take in what a client sent; it has not been forwarded yet."""

    def forwarded(self) -> None:
        """All that was taken in has gone on to the server."""

    def answered(self, data: bytes) -> None:
        """Take in what the server sent, just before it is forwarded to the client."""

    def ended(self) -> None:
        """The connection is over: what is unanswered stays so."""


class Link:
    """A port of 127.0.0.1 that leads to one of `targets`, the ports of servers there.

    Args:
        loop: Where it runs.
        targets: Ports; each connection takes the first at random that accepts it.
        tap: Makes what reads along on a connection.
        rewritten: Changes what servers say on its way to clients, once it has been read along.
        rng: Draws the jitter and the target.
    """

    def __init__(
        self,
        loop: Loop,
        targets: Sequence[int],
        *,
        tap: Callable[[], Tap] | None = None,
        rewritten: Callable[[bytes], bytes] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._loop = loop
        self.targets = list(targets)
        self._tap = tap
        self._rewritten = rewritten
        self._rng = rng or random.Random(0)
        self._trouble = NONE
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._listening: socket.socket | None = None
        # Bound, and never listening: the port stays ours, and refuses, while the server is closed.
        self._reserved = _bound(0)
        self.port: int = self._reserved.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        loop.run(self._open())

    async def _open(self) -> None:
        self._free = {way: asyncio.Event() for way in Way}
        for event in self._free.values():
            event.set()
        self._listen()

    def _listen(self) -> None:
        listening = _bound(self.port)
        listening.setblocking(False)
        listening.listen(_BACKLOG)
        # A server of asyncio that is closed just after it has accepted a connection leaves that open.
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)
        self._listening = listening

    def _stop_listening(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    def trouble(self, trouble: Trouble) -> None:
        """Switch to a trouble; `NONE` ends it."""
        self._loop.run(self._switch(trouble))

    async def _switch(self, trouble: Trouble) -> None:
        self._trouble = trouble
        for way, event in self._free.items():
            if way in trouble.held:
                event.clear()
            else:
                event.set()
        if trouble.refused and self._listening is not None:
            self._stop_listening()
            await self._reset()
        elif not trouble.refused and self._listening is None:
            self._listen()

    @property
    def quiet(self) -> bool:
        """Whether nothing troubles it."""
        return self._trouble == NONE

    def reset(self) -> None:
        """End every connection with a reset; what is held is lost."""
        self._loop.run(self._reset())

    def close(self) -> None:
        """Stop for good."""
        self._loop.run(self._close())
        self._reserved.close()

    async def _close(self) -> None:
        self._stop_listening()
        await self._reset()

    async def _reset(self) -> None:
        tasks = list(self._connections)
        for task, writers in self._connections.items():
            for writer in writers:
                _abort(writer)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, listening: socket.socket) -> None:
        try:
            client, _ = listening.accept()
        except OSError:
            return  # it has gone meanwhile
        client.setblocking(False)
        writers: list[asyncio.StreamWriter] = []
        task = asyncio.create_task(self._connect(client, writers))
        self._connections[task] = writers
        # As a task that is cancelled before its first step runs nothing, all is closed from outside.
        task.add_done_callback(lambda done: self._ended(done, client))

    def _ended(self, task: asyncio.Task[None], client: socket.socket) -> None:
        writers = self._connections.pop(task)
        for writer in writers:
            writer.close()
        if not writers:
            client.close()
        if not task.cancelled():
            task.result()

    async def _connect(self, client: socket.socket, writers: list[asyncio.StreamWriter]) -> None:
        reader, writer = await asyncio.open_connection(sock=client)
        writers.append(writer)
        upstream = None
        for port in self._rng.sample(self.targets, len(self.targets)):
            with contextlib.suppress(OSError):
                upstream = await asyncio.open_connection("127.0.0.1", port)
                break
        if upstream is None:
            _abort(writer)
            return
        writers.append(upstream[1])
        tap = self._tap() if self._tap else None
        pumps = [
            asyncio.create_task(self._requests(reader, upstream[1], tap)),
            asyncio.create_task(self._replies(upstream[0], writer, tap)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            if tap:
                tap.ended()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tap: Tap | None) -> None:
        while data := await _read(reader):
            if tap:
                tap.asked(data)
            await self._pass(Way.REQUESTS)
            writer.write(data)
            if tap:
                tap.forwarded()
            await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tap: Tap | None) -> None:
        while data := await _read(reader):
            await self._pass(Way.REPLIES)
            if self._trouble.replies_lost:
                _abort(writer)
                return
            if tap:
                tap.answered(data)
            writer.write(self._rewritten(data) if self._rewritten else data)
            await writer.drain()

    async def _pass(self, way: Way) -> None:
        await self._free[way].wait()
        if seconds := self._trouble.delay + self._trouble.jitter * self._rng.random():
            await asyncio.sleep(seconds)
            await self._free[way].wait()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(_CHUNK)
    except OSError:
        return b""


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    return made


def _abort(writer: asyncio.StreamWriter) -> None:
    """End a connection with a reset."""
    end = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
