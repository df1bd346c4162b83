"""What uvicorn's HTTP protocol leaves to be wished for."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from at_least_semaphore_pod_hook.server import metrics
from at_least_semaphore_pod_hook.server.intake import Cut

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    import uvicorn
    from uvicorn.server import ServerState

    from at_least_semaphore_pod_hook.server.intake import Intake

LINGER_SECONDS = 1.0
READ_AHEAD_BYTES = 16 * 1024
"""How much of what is encrypted lies in our memory where reading is paused."""

_ANSWERS = {
    Cut.UNFINISHED_BYTES: (503, "too many large requests are under way"),
    Cut.SLOW_HEAD: (408, "the headers took longer than {head_seconds:g} s"),
    Cut.SLOW_REQUEST: (408, "the request took longer than {request_seconds:g} s"),
    Cut.HEAD_SIZE: (431, "the request has more than {head_bytes} bytes of headers, or more than {headers} headers"),
    Cut.REQUEST_SIZE: (413, "the request is larger than {request_bytes} bytes"),
    Cut.MALFORMED: (400, "this is no request of HTTP/1.1"),
}
"""What is answered where a client that is cut may still listen; {limits} are those of the port."""


class _CutError(Exception):
    """Ends the parsing of a request that is over a limit."""

    def __init__(self, reason: Cut) -> None:
        super().__init__(reason)
        self.reason = reason


class _JoiningTransport:
    """Writes the head and the body of a response at once.

    uvicorn writes them one after the other, and each write is a TLS record, a system call and a client that is woken.
    What is written first in a turn of the event loop is kept until the second write, or the turn's end.
    """

    __slots__ = ("_ended", "_first", "_loop", "_transport", "_unread")

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, unread: Callable[[], bool]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._first = b""
        self._ended = False
        self._unread = unread

    def write(self, data: bytes) -> None:
        if self._first:
            first, self._first = self._first, b""
            self._transport.write(first + data)
        else:
            self._first = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        if self._unread():
            self.linger()
            return
        self._flush()
        if not self._ended:
            self._transport.close()

    def linger(self) -> None:
        """Read nothing more, and cut the connection off a moment later."""
        self._flush()
        if not self._ended:
            self._ended = True
            self._transport.pause_reading()
            self._loop.call_later(LINGER_SECONDS, self._transport.abort)

    def is_closing(self) -> bool:
        return self._ended or self._transport.is_closing()

    def _flush(self) -> None:
        if self._first:
            first, self._first = self._first, b""
            self._transport.write(first)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class WebhookProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which joins a response's writes, and keeps within the limits of an intake.

    An application finds a client's certificate, where one was asked for, as `scope["state"]["certificate"]`.

    Closing a TLS connection waits for the other side's end, and whatever that sends until then is read. So a connection
    whose request was refused before all of it was read is not read any more, and cut off a moment after the answer.
    """

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any], intake: Intake
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.unfinished_bytes = 0
        self.address = ""
        self._intake = intake
        self._limits = intake.limits
        self._socket: socket.socket | None = None
        # Of the request that is being read; before the first one nothing is.
        self._whole = False
        self._headed = False
        self._ended = False

    def accepted(self, connection: socket.socket, address: str) -> None:
        """Take up a connection from an address whose handshake is about to begin."""
        self._socket = connection
        self.address = address
        self._intake.accepted(self)

    def hang_up(self) -> None:
        """End the connection while its handshake goes on."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def failed(self) -> bool:
        """Note that there will be no connection. Returns whether that was not our doing."""
        self._intake.gone(self)
        ended, self._ended = self._ended, True
        return not ended

    def connection_made(  # type: ignore[override]
        self, transport: asyncio.Transport
    ) -> None:
        """Take a connection up."""
        self._socket = None
        joining = _JoiningTransport(transport, self.loop, self._unread)
        super().connection_made(cast("asyncio.Transport", joining))
        self.app_state = {"certificate": transport.get_extra_info("peercert")}
        if limit := getattr(transport, "set_read_buffer_limits", None):
            limit(READ_AHEAD_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._ended = True
        self._intake.gone(self)
        super().connection_lost(exc)

    @property
    def idle(self) -> bool:
        """Whether it has neither a request under way nor one to be answered."""
        return self._whole and (self.cycle is None or self.cycle.response_complete) and not self.pipeline

    def overdue(self, age: float) -> Cut | None:
        """Say which deadline is missed `age` seconds after the connection was made, or its request begun."""
        if self._ended:
            return None
        if self.transport is None:
            return Cut.HANDSHAKE if age > self._limits.handshake_seconds else None
        if not self.unfinished_bytes:
            return Cut.SILENT if age > self._limits.silent_seconds else None
        if not self._headed:
            return Cut.SLOW_HEAD if age > self._limits.head_seconds else None
        return Cut.SLOW_REQUEST if age > self._limits.request_seconds else None

    def cut(self, reason: Cut) -> bool:
        """End the connection: with an answer where the client has begun a request and may have one."""
        if self._ended:
            if self.transport is not None:
                self.transport.abort()
            return False
        self._ended = True
        self._intake.count(reason)
        if self.transport is None:
            self.hang_up()
            return False
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if reason not in _ANSWERS or (answering and (cycle.response_started or not cycle.more_body or self.pipeline)):
            self.transport.abort()
            return False
        if answering:
            cycle.disconnected = True
            cycle.body = bytearray()
            cycle.message_event.set()
        self._answer(*_ANSWERS[reason])
        cast("_JoiningTransport", self.transport).linger()
        return True

    def _answer(self, status: int, message: str) -> None:
        metrics.count(metrics.BAD_REQUESTS, str(status))()
        body = msgspec.json.encode({"message": message.format_map(self._limits._asdict())})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)

    def data_received(self, data: bytes) -> None:
        """Take up what has come."""
        self._unset_keepalive_if_required()
        if self._ended:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # There is nothing to upgrade to. What comes after the request is not HTTP.
            if self.cycle is not None:
                self.cycle.keep_alive = False
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._intake.end(self, cause.reason if isinstance(cause, _CutError) else Cut.MALFORMED)
            return
        if self._whole:
            self._intake.finished(self)
            return
        self._intake.read(self, len(data))
        if not self._headed and self.unfinished_bytes > self._limits.head_bytes:
            self._intake.end(self, Cut.HEAD_SIZE)
        elif self.unfinished_bytes > self._limits.request_bytes:
            self._intake.end(self, Cut.REQUEST_SIZE)

    def _unread(self) -> bool:
        """Whether a request that is being answered has not wholly come."""
        return self.cycle is not None and not self._whole

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._whole = self._headed = False
        if len(self.pipeline) >= self._limits.pipelined:
            raise _CutError(Cut.PIPELINED)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header up, or a chunked body's trailer."""
        if len(self.headers) >= self._limits.headers:
            raise _CutError(Cut.HEAD_SIZE)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End a request's head."""
        self._headed = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End a request."""
        self._whole = True
        super().on_message_complete()

    def shutdown(self) -> None:
        """End an idle connection when the server stops: the end does not wait for what the client makes of it."""
        super().shutdown()
        if self.transport.is_closing():
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)
