"""What clients have under way at a port: bounded in number, in bytes and in time, all connections together.

Only what is unfinished is bounded tightly: a connection that has not yet sent a whole request, be it that its handshake
goes on, that it says nothing, or that a request of it has begun. Connections that are kept after a request cost little.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from enum import StrEnum
from typing import NamedTuple, Protocol

from at_least_semaphore_pod_hook.server import metrics
from at_least_semaphore_pod_hook.server.folding import Folded

LOOK_SECONDS = 0.5
"""How often deadlines are looked after."""


class Limits(NamedTuple):
    """What clients may have under way at a port.

    Attributes:
        connections: In all. Past it, the one that was not used for longest is cut.
        unfinished: That have not yet sent a whole request. Past it, one is cut: of the address with most, the oldest.
        unfinished_bytes: Of requests that have begun and not ended, together. Past it, the largest is cut.
        head_bytes: Of a request's line and headers.
        headers: Of one request.
        request_bytes: Of one request as it is sent, with its head and with what chunks add.
        pipelined: Requests that a connection sends before earlier ones are answered.
        handshake_seconds: From the connection to the end of the TLS handshake.
        silent_seconds: From there to the first byte.
        head_seconds: From the first byte of a request to the end of its headers.
        request_seconds: From the first byte of a request to its last.
    """

    connections: int = 1024
    unfinished: int = 64
    unfinished_bytes: int = 8 * 1024 * 1024
    head_bytes: int = 16 * 1024
    headers: int = 64
    request_bytes: int = 4 * 1024 * 1024
    pipelined: int = 4
    handshake_seconds: float = 5.0
    silent_seconds: float = 120.0
    head_seconds: float = 5.0
    request_seconds: float = 10.0


class Cut(StrEnum):
    """Why a connection was ended before its time."""

    HANDSHAKE = "handshake"
    CONNECTIONS = "connections"
    UNFINISHED = "unfinished"
    UNFINISHED_BYTES = "unfinished_bytes"
    SILENT = "silent"
    SLOW_HEAD = "slow_head"
    SLOW_REQUEST = "slow_request"
    HEAD_SIZE = "head_size"
    REQUEST_SIZE = "request_size"
    PIPELINED = "pipelined"
    MALFORMED = "malformed"
    FILES = "files"


class Connection(Protocol):
    """A connection as the intake knows it."""

    address: str
    """Where it comes from."""
    unfinished_bytes: int
    """What has been read of a request that has not ended."""

    @property
    def idle(self) -> bool:
        """Whether it has neither a request under way nor one to be answered."""

    def overdue(self, age: float) -> Cut | None:
        """Say which deadline an unfinished connection has missed, if any, `age` seconds after it became unfinished."""

    def cut(self, reason: Cut) -> bool:
        """End it. Returns whether it lingers, as the client is told why; cut again, it does not."""


class Intake:
    """Keeps account of a port's connections, and cuts what is over the limits. Belongs to one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        # Both in order: of the time since which they are unfinished, and of their last use.
        self._unfinished: dict[Connection, float] = {}
        self._kept: dict[Connection, None] = {}
        self._bytes = 0
        self._folded = Folded()
        self._loop = asyncio.get_running_loop()
        self._looking = self._loop.call_later(LOOK_SECONDS, self._look)

    def accepted(self, connection: Connection) -> None:
        """Take a new connection in."""
        if len(self._unfinished) >= self.limits.unfinished:
            self.end(self._least_missed(), Cut.UNFINISHED)
        if len(self._unfinished) + len(self._kept) >= self.limits.connections:
            unused = next((each for each in self._kept if each.idle), None)
            self.end(unused or next(iter(self._unfinished), None) or next(iter(self._kept)), Cut.CONNECTIONS)
        self._unfinished[connection] = self._loop.time()

    def read(self, connection: Connection, count: int) -> None:
        """Note that `count` bytes of a request have come that has not ended yet."""
        if connection not in self._unfinished:
            self._kept.pop(connection, None)
            self._unfinished[connection] = self._loop.time()
            if len(self._unfinished) > self.limits.unfinished:
                self.end(self._least_missed(), Cut.UNFINISHED)
        elif not connection.unfinished_bytes:
            # It has said nothing so far: its time runs from now on, and its place in the order stays.
            self._unfinished[connection] = self._loop.time()
        connection.unfinished_bytes += count
        self._bytes += count
        if self._bytes > self.limits.unfinished_bytes:
            self.end(max(self._unfinished, key=lambda each: each.unfinished_bytes), Cut.UNFINISHED_BYTES)

    def finished(self, connection: Connection) -> None:
        """Note that a whole request has come."""
        self._forget(connection)
        self._kept[connection] = None

    def gone(self, connection: Connection) -> None:
        """Note the end of a connection."""
        self._forget(connection)

    def end(self, connection: Connection, reason: Cut) -> None:
        """Cut a connection. One that lingers counts as unfinished until it is gone."""
        self._bytes -= connection.unfinished_bytes
        connection.unfinished_bytes = 0
        if not connection.cut(reason):
            self._forget(connection)

    def count(self, reason: Cut) -> None:
        """Count a connection that was cut, and log it, many of a kind as one line."""
        metrics.count(metrics.CUT_CONNECTIONS, reason.value)()
        self._folded.say("connection cut", reason.value, reason=reason.value)

    def spare_a_file(self) -> None:
        """Cut a connection where the process may open no more files: the oldest unfinished, or an unused one."""
        oldest = next(iter(self._unfinished), None) or next((each for each in self._kept if each.idle), None)
        if oldest is not None:
            self.end(oldest, Cut.FILES)

    def close(self) -> None:
        """Look after no deadlines any more."""
        self._looking.cancel()

    def _least_missed(self) -> Connection:
        """Return what is cut first: whoever floods from one address takes his own connections' place alone."""
        (address, _), *_ = Counter(each.address for each in self._unfinished).most_common(1)
        return next(each for each in self._unfinished if each.address == address)

    def _forget(self, connection: Connection) -> None:
        self._unfinished.pop(connection, None)
        self._kept.pop(connection, None)
        self._bytes -= connection.unfinished_bytes
        connection.unfinished_bytes = 0

    def _look(self) -> None:
        now = self._loop.time()
        for connection, since in list(self._unfinished.items()):
            reason = connection.overdue(now - since)
            if reason is not None:
                self.end(connection, reason)
        self._looking = self._loop.call_later(LOOK_SECONDS, self._look)
