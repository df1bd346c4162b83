"""What uvicorn's HTTP protocol leaves to be wished for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

LINGER_SECONDS = 1.0


class _JoiningTransport:
    """Writes the head and the body of a response at once.

    uvicorn writes them one after the other, and each write is a TLS record, a system call and a client that is woken.
    What is written first in a turn of the event loop is kept until the second write, or the turn's end.
    """

    __slots__ = ("_first", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._first = b""

    def write(self, data: bytes) -> None:
        if self._first:
            first, self._first = self._first, b""
            self._transport.write(first + data)
        else:
            self._first = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._first:
            first, self._first = self._first, b""
            self._transport.write(first)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class WebhookProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which joins a response's writes, and ends refused requests and idle connections.

    An application finds a client's certificate, where one was asked for, as `scope["state"]["certificate"]`.

    Closing a TLS connection waits for the other side's end, and whatever that sends until then is read. So a connection
    whose request was refused before all of it was read is cut off, a moment after the answer.
    """

    def connection_made(  # type: ignore[override]
        self, transport: asyncio.Transport
    ) -> None:
        """Take a connection up."""
        super().connection_made(cast("asyncio.Transport", _JoiningTransport(transport, self.loop)))
        self.app_state = {"certificate": transport.get_extra_info("peercert")}

    def on_response_complete(self) -> None:
        """Leave the client a moment to read the answer in."""
        super().on_response_complete()
        if self.transport.is_closing() and self.cycle.more_body:
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def shutdown(self) -> None:
        """End an idle connection when the server stops: the end does not wait for what the client makes of it."""
        super().shutdown()
        if self.transport.is_closing():
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)
