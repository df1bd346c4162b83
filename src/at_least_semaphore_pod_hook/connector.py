"""A connector for aiohttp whose `close` leaves no socket open."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, Final

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CLOSE_SECONDS: Final = 1.0
"""How long `Connector.close` waits for the event loop to let go of sockets; it takes it a few steps."""

Option = tuple[int, int, int]
"""Level, name and value of a socket option."""


class Connector(aiohttp.TCPConnector):
    """Opens connections, and has let go of every one of them when `close` returns.

    aiohttp forgets a connection whose request was cancelled or broke off as soon as it begins to close it. With TLS
    that ends only when the other side has answered, for which asyncio waits up to 30 s, and an event loop that is
    closed before leaves the socket open. So the sockets are known here, and `close` shuts down those that are left.

    Args:
        options: What is set on each socket.
        arguments: Those of aiohttp.TCPConnector, save `socket_factory`.
    """

    def __init__(self, *, options: Sequence[Option] = (), **arguments: Any) -> None:
        super().__init__(socket_factory=self._make_socket, **arguments)
        self._options = options
        self._sockets: set[_Socket] = set()
        self._none_left = asyncio.Event()

    async def close(self, *, abort_ssl: bool = False) -> None:
        """Close all connections at once, without a farewell of TLS; returns when their sockets are closed."""
        # The transports see the end of the stream then, whatever they were waiting for.
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        await super().close(abort_ssl=abort_ssl)
        if self._sockets:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._none_left.wait(), CLOSE_SECONDS)

    def _make_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, *_ = address
        made = _Socket(family, kind, protocol, closed=self._forget)
        self._sockets.add(made)
        self._none_left.clear()
        made.setblocking(False)
        for option in self._options:
            made.setsockopt(*option)
        return made

    def _forget(self, closed: _Socket) -> None:
        self._sockets.discard(closed)
        if not self._sockets:
            self._none_left.set()


class _Socket(socket.socket):
    """A socket that tells of its end."""

    def __init__(self, family: int, kind: int, protocol: int, *, closed: Callable[[_Socket], None]) -> None:
        super().__init__(family, kind, protocol)
        self._told = closed

    def close(self) -> None:
        """Close it, as asyncio does."""
        super().close()
        self._told(self)

    def detach(self) -> int:
        """Give the descriptor away, as uvloop does when it closes it."""
        descriptor = super().detach()
        self._told(self)
        return descriptor
