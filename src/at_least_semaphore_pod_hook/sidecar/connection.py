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
    from collections.abc import Callable
    from ssl import SSLContext
    from typing import TypeVar

    from at_least_semaphore_pod_hook.addresses import Address
    from at_least_semaphore_pod_hook.sidecar.lookup import Target
    from at_least_semaphore_pod_hook.sidecar.signals import Signals

    T = TypeVar("T")

MAX_ERROR = 120
CHUNK = 4_096


class Connection:
    """One connection, opened when it is asked for; whoever uses it closes it after a failure.

    `deadline` is the moment, of the monotonic clock, at which each wait gives up. All methods that wait raise OSError
    or ValueError for what the system says, UnavailableError where time is up or a file cannot be read, and
    StopRequested where a signal asks to stop. `unavailable` makes one error of them.
    """

    def __init__(self, address: Address, signals: Signals) -> None:
        self.address = address
        self.deadline = 0.0
        self._signals = signals
        self._socket: _socket.socket | None = None
        self._lookup: Lookup | None = None
        self._known: list[Target] = []
        self._context: SSLContext | None = None
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
                self._connect(target, share)
                break
            except (OSError, StoreUnavailableError):
                self.close()
                if index == len(found) - 1:
                    raise
        if self.address.tls:
            self._encrypt()

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

    def close(self) -> None:
        """Let go of the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> _socket.socket:
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

    def _connect(self, target: Target, deadline: float) -> None:
        family, kind, protocol, address = target
        sock = self._socket = _socket.socket(family, kind, protocol)
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

    def _encrypt(self) -> None:
        import socket  # noqa: PLC0415 - what ssl wraps
        import ssl  # noqa: PLC0415 - 4 MB that only TLS needs

        self._want_read, self._want_write = (ssl.SSLWantReadError,), (ssl.SSLWantWriteError,)
        context = self._trust()
        plain = socket.socket(fileno=self._connected().detach())
        try:
            name = self.address.server_name or self.address.host
            tls = context.wrap_socket(plain, do_handshake_on_connect=False, server_hostname=name)
        except BaseException:
            self._socket = None
            plain.close()
            raise
        self._socket = tls
        self._patiently(tls.do_handshake, select.POLLIN)

    def _trust(self) -> SSLContext:
        """Return whom to trust and how to show who we are; what stands in files may have changed."""
        import ssl  # noqa: PLC0415

        address = self.address
        # The system's authorities are many and don't change while a pod runs.
        context = self._context
        try:
            if context is None:
                context = ssl.create_default_context(cafile=address.ca_file or None)
                self._context = None if address.ca_file else context
            if address.cert_file:
                context.load_cert_chain(address.cert_file, address.key_file)
        except OSError as error:
            # It does not say which of them.
            files = ", ".join(filter(None, (address.ca_file, address.cert_file, address.key_file)))
            raise StoreUnavailableError(f"{error.strerror or error}: one of {files}") from error
        return context


def unavailable(address: Address, error: Exception) -> StoreUnavailableError:
    """Return the one error for all that can go wrong at a server: it says where and why, and contains no secret."""
    why = str(error) if isinstance(error, UnavailableError) else _reason(error)
    return StoreUnavailableError(f"{address}: {why}")


def _reason(error: Exception) -> str:
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def printable(text: str) -> str:
    """Cut what others say to what fits into a line of log."""
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_ERROR])
