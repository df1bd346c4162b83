"""A port's listening sockets: connections are taken up a few at a time, and bounded while they shake hands."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.server.intake import Cut

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from at_least_semaphore_pod_hook.server.intake import Intake
    from at_least_semaphore_pod_hook.server.protocol import WebhookProtocol

ACCEPTS_A_TURN = 2
"""How many connections are taken up in a turn of the event loop: a handshake takes about a millisecond of it, and who
has a connection already waits as long."""
RECEIVE_BUFFER_BYTES = 32 * 1024
"""What the kernel keeps for us of a connection. All that it has is read at once, and then lies in our memory."""
PAUSE_SECONDS = 0.1
"""For how long no connections are taken up where the process may open no more files."""
_NO_MORE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Listener:
    """Takes connections up, in the place of an event loop's server.

    Args:
        sockets: That listen, from `bind`.
        context: For TLS; None where there is none.
        factory: Makes a connection's protocol.
        intake: What bounds the connections.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        context: ssl.SSLContext | None,
        factory: Callable[[], WebhookProtocol],
        intake: Intake,
    ) -> None:
        self.sockets = sockets
        self._context = context
        self._factory = factory
        self._intake = intake
        self._loop = asyncio.get_running_loop()
        self._shaking: dict[asyncio.Task[None], WebhookProtocol] = {}
        self._resuming: asyncio.TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        """Take no more connections up, and end those whose handshake goes on."""
        self._pause()
        for each in self.sockets:
            each.close()
        for protocol in list(self._shaking.values()):
            protocol.hang_up()
        self._intake.close()

    async def wait_closed(self) -> None:
        """Return once no handshake goes on."""
        await asyncio.gather(*self._shaking, return_exceptions=True)

    def _resume(self) -> None:
        self._resuming = None
        for each in self.sockets:
            self._loop.add_reader(each, self._accept, each)

    def _pause(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            return
        for each in self.sockets:
            self._loop.remove_reader(each)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                accepted, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_MORE:
                    raise
                self._intake.spare_a_file()
                self._pause()
                self._resuming = self._loop.call_later(PAUSE_SECONDS, self._resume)
                return
            accepted.setblocking(False)
            protocol = self._factory()
            protocol.accepted(accepted, str(address[0]))
            task = self._loop.create_task(self._shake_hands(accepted, protocol))
            self._shaking[task] = protocol
            task.add_done_callback(self._shaking.pop)

    async def _shake_hands(self, accepted: socket.socket, protocol: WebhookProtocol) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, accepted, ssl=self._context)
        except OSError:
            # What became of it is the client's doing, or ours, which is counted where it is done.
            if protocol.failed():
                self._intake.count(Cut.HANDSHAKE)
            accepted.close()


async def bind(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Listen on a port of each of a host's addresses; of all addresses where the host is empty.

    Raises:
        OSError: That is not possible.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                made = socket.socket(family, kind, protocol)
            except OSError:
                # The machine has no such family of addresses.
                continue
            sockets.append(made)
            _listen(made, address, backlog)
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets


def _listen(made: socket.socket, address: tuple[object, ...], backlog: int) -> None:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections have it from the socket that they came to.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.setblocking(False)
    made.bind(address)
    made.listen(backlog)
