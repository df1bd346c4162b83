"""The port by which a sidecar says that it holds the permit: open or closed, nothing else."""

from __future__ import annotations

import _socket
import errno
import os

from at_least_semaphore_pod_hook.sidecar.policy import REMINDER, UNBOUNDED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.sidecar.log import Log

ANY_ADDRESS = ((_socket.AF_INET6, "::"), (_socket.AF_INET, "0.0.0.0"))  # noqa: S104 - the kubelet asks at the pod's IP
BACKLOG = 16
"""Enough for the probes of a pod's containers at once on a busy node, as one that is refused stops a container.

And few enough that a sidecar that is frozen, whose kernel takes connections in for it, seems closed after a while.
"""
RETRY_SECONDS = 1.0
NEVER = -UNBOUNDED


class Port:
    """Takes connections and closes them at once, as long as it is open; nothing is read or written.

    It is to be tended whenever `due`, and `accept` is to be called when `fd` is readable. Moments are seconds of the
    monotonic clock.
    """

    __slots__ = ("_failed", "_lease_end", "_log", "_number", "_retry", "_said", "_socket", "_stopped", "_until")

    def __init__(self, number: int, log: Log) -> None:
        self._number = number
        self._log = log
        self._socket: _socket.socket | None = None
        self._until = self._lease_end = self._retry = self._said = NEVER
        self._stopped = self._failed = False

    @property
    def fd(self) -> int:
        """The listening socket's file descriptor; -1 while it is closed."""
        return -1 if self._socket is None else self._socket.fileno()

    @property
    def due(self) -> float:
        """When there is something to tend next."""
        if self._until == NEVER:
            return UNBOUNDED
        return self._until if self._socket is not None else min(self._until, self._retry)

    def open(self, now: float, until: float = UNBOUNDED, lease_end: float = UNBOUNDED) -> None:
        """Be open from now on, and, unless this is called again, only until a moment before the lease's end."""
        self._until, self._lease_end = until, lease_end
        self.tend(now)

    def close(self, why: str = "") -> None:
        """Be closed; where there is a reason, it is said that the pod's work stops."""
        self._until = NEVER
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        if why:
            self._stopped = True
            self._log.write("error", f"port {self._number} closed, so that the pod's work stops: {why}")

    def tend(self, now: float) -> None:
        """Close where it is time to, or listen where it should be open and is not."""
        if self._until <= now:
            self.close(
                f"the permit could not be renewed, and its lease ends in {max(0.0, self._lease_end - now):.1f} s"
            )
        elif self._socket is None and self._retry <= now:
            self._listen(now)

    def accept(self) -> None:
        """Take in whoever has connected, and close the connections."""
        try:
            while self._socket is not None:
                os.close(self._socket._accept()[0])  # type: ignore[attr-defined]  # noqa: SLF001 - what accept() is made of
        except OSError:
            # Nobody is left, or somebody has gone meanwhile.
            return

    def _listen(self, now: float) -> None:
        try:
            self._socket = _listener(self._number)
        except OSError as error:
            self._retry, self._failed = now + RETRY_SECONDS, True
            if now - self._said >= REMINDER:
                self._said = now
                reason = os.strerror(error.errno or 0)
                self._log.write("error", f"port {self._number} cannot be listened on, trying on: {reason}")
            return
        if self._stopped:
            self._log.write("info", f"port {self._number} open again: the pod's work may go on")
        elif self._failed:
            self._log.write("info", f"port {self._number} open")
        self._stopped = self._failed = False
        self._said = NEVER


def _listener(number: int) -> _socket.socket:
    """Listen on all addresses, of IPv6 and IPv4 at once where there is IPv6."""
    for family, address in ANY_ADDRESS:
        try:
            return _listening(family, address, number)
        except OSError as error:
            if family == _socket.AF_INET or error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                raise
    raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))


def _listening(family: int, address: str, number: int) -> _socket.socket:
    sock = _socket.socket(family, _socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # Connections that have been closed linger for a minute, and must not keep it from opening again.
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        if family == _socket.AF_INET6:
            sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 0)
        sock.bind((address, number))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
