"""Bytes to and from one server, over TCP, TLS or a Unix socket. No wait in here outlasts its deadline or a signal."""

from __future__ import annotations

import _socket
import errno
import os
import select
import time

from at_least_semaphore_pod_hook.errors import StoreUnavailableError, UnavailableError
from at_least_semaphore_pod_hook.sidecar.lookup import Lookup, targets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _ssl import _SSLContext
    from collections.abc import Callable
    from typing import TypeVar

    from at_least_semaphore_pod_hook.addresses import Address
    from at_least_semaphore_pod_hook.sidecar.lookup import Target
    from at_least_semaphore_pod_hook.sidecar.signals import Signals
    from at_least_semaphore_pod_hook.sidecar.tls import Encrypted

    T = TypeVar("T")

MAX_ERROR = 120
CHUNK = 4_096


class _Socket(_socket.socket):
    """One that can be referred to weakly, as TLS over it does."""

    __slots__ = ("__weakref__",)


class Connection:
    """One connection, opened when it is asked for; whoever uses it closes it after a failure.

    `deadline` is the moment, of the monotonic clock, at which each wait gives up. `authorities` are certificates (PEM)
    to check the server's against, in place of those of a file or the system's. All methods that wait raise OSError
    or ValueError for what the system says, UnavailableError where time is up or a file cannot be read, and
    StopRequested where a signal asks to stop. `unavailable` makes one error of them.
    """

    def __init__(self, address: Address, signals: Signals) -> None:
        self.address = address
        self.deadline = 0.0
        self.authorities = ""
        self._signals = signals
        self._socket: _Socket | Encrypted | None = None
        self._lookup: Lookup | None = None
        self._known: list[Target] = []
        self._context: _SSLContext | None = None
        self._want_read: tuple[type[OSError], ...] = ()
        self._want_write: tuple[type[OSError], ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._socket is not None

    def open(self) -> None:
        """Connect, with TLS where the address says so."""
        found = self._find()
        for index, target in enumerate(found):
            # What is left is shared out among the addresses that are left, so that a dead one does not eat it all.
            now = time.monotonic()
            share = now + (self.deadline - now) / (len(found) - index)
            try:
                plain = self._connect(target, share)
            except (OSError, StoreUnavailableError):
                self.close()
                if index == len(found) - 1:
                    raise
            else:
                if self.address.tls:
                    self._encrypt(plain)
                return

    def send(self, data: bytes) -> None:
        """Send all of it."""
        sock = self._connected()
        left = memoryview(data)
        while left:
            left = left[self._patiently(lambda left=left: sock.send(left), select.POLLOUT) :]  # type: ignore[misc]

    def receive(self) -> bytes:
        """Return what comes next, at least a byte."""
        sock = self._connected()
        chunk: bytes = self._patiently(lambda: sock.recv(CHUNK), select.POLLIN)
        if not chunk:
            raise OSError(errno.ECONNRESET, "it closed the connection")
        return chunk

    def idle(self, until: float) -> None:
        """Let time pass, and let go of a connection that the server closes meanwhile; raises StopRequested."""
        if self._socket is not None and self._signals.wait(until, self._socket.fileno()):
            self.close()
        self._signals.wait(until)

    def through(self, exchange: Callable[[], T], deadline: float, greet: Callable[[], None] | None = None) -> T:
        """Send something and receive its answer, over the connection that is there or a new one.

        Args:
            exchange: Does it; it may be done twice.
            deadline: The moment, of the monotonic clock, at which to give up.
            greet: What comes first on a new connection.

        Raises:
            StoreUnavailableError: There was no answer in time; the message says why and contains no secret.
            StopRequested: A signal asks to stop.
        """
        self.deadline = deadline
        try:
            if self.is_open:
                try:
                    return exchange()
                except OSError:
                    # Most likely closed while it was idle, by a server that has restarted: no failure yet.
                    self.close()
            self.open()
            if greet is not None:
                greet()
            return exchange()
        except (OSError, ValueError, UnavailableError) as error:
            self.close()
            raise unavailable(self.address, error) from error
        except BaseException:
            # Its answer is still to come: nobody may take it for the next one's.
            self.close()
            raise

    def close(self) -> None:
        """Let go of the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> _Socket | Encrypted:
        if self._socket is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._socket

    def _patiently(self, operation: Callable[[], T], blocked_on: int) -> T:
        """Do what may have to wait for the other side."""
        while True:
            try:
                return operation()
            except self._want_read:
                events = select.POLLIN
            except self._want_write:
                events = select.POLLOUT
            except BlockingIOError:
                events = blocked_on
            if not self._signals.wait(self.deadline, self._connected().fileno(), events):
                raise StoreUnavailableError("no answer in time")

    def _find(self) -> list[Target]:
        if self.address.path:
            return [(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, self.address.path)]
        name = self.address.host
        host = name.encode("ascii" if name.isascii() else "idna")
        try:
            return targets(host, self.address.port, _socket.AI_NUMERICHOST)
        except OSError:
            self._lookup = self._lookup or Lookup(host, self.address.port)
        now = time.monotonic()
        if self._signals.wait((now + self.deadline) / 2, self._lookup.reader):
            lookup, self._lookup = self._lookup, None
            try:
                self._known = lookup.result()
            except OSError:
                if not self._known:
                    raise
        # Where names can't be looked up at the moment, the store most likely still is where it was.
        if not self._known:
            raise StoreUnavailableError("its name could not be looked up in time")
        return self._known

    def _connect(self, target: Target, deadline: float) -> _Socket:
        family, kind, protocol, address = target
        sock = self._socket = _Socket(family, kind, protocol)
        sock.setblocking(False)
        if family != _socket.AF_UNIX:
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self._want_read = self._want_write = ()
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            if not self._signals.wait(deadline, sock.fileno(), select.POLLOUT):
                raise StoreUnavailableError("no connection in time")
            code = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        return sock

    def _encrypt(self, plain: _Socket) -> None:
        from at_least_semaphore_pod_hook.sidecar import tls  # noqa: PLC0415 - megabytes that only TLS needs

        self._want_read, self._want_write = (tls.WANT_READ,), (tls.WANT_WRITE,)
        address = self.address
        # The system's authorities are many and don't change while a pod runs; what stands in files may have changed.
        context = self._context or tls.trust(address, self.authorities)
        self._context = None if address.ca_file or address.cert_file or self.authorities else context
        encrypted = tls.Encrypted(plain, context, address.server_name or address.host)
        self._socket = encrypted
        self._patiently(encrypted.do_handshake, select.POLLIN)


def unavailable(address: Address, error: Exception) -> StoreUnavailableError:
    """Return the one error for all that can go wrong at a server: it says where and why, and contains no secret."""
    why = str(error) if isinstance(error, UnavailableError) else _reason(error)
    return StoreUnavailableError(f"{address}: {why}")


def _reason(error: Exception) -> str:
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def printable(text: str) -> str:
    """Cut what others say to what fits into a line of log."""
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_ERROR])
