"""Looking a host's name up without being stuck in it."""

from __future__ import annotations

import _socket
import _thread
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Target: TypeAlias = tuple[int, int, int, Any]  # family, type, protocol, address

THREAD_STACK = 262_144


def targets(host: bytes, port: int, flags: int) -> list[Target]:
    """Ask the resolver; raises OSError. Bytes, since a str would load the codec for international names."""
    found = _socket.getaddrinfo(host, port, _socket.AF_UNSPEC, _socket.SOCK_STREAM, _socket.IPPROTO_TCP, flags)
    return [(family, kind, protocol, address) for family, kind, protocol, _, address in found]


class Lookup:
    """One lookup, in a thread, since the C library's goes on for many seconds and minds no signal.

    `reader` becomes readable when it is done; then `result` returns the targets, or raises OSError.
    """

    __slots__ = ("_arguments", "_error", "_targets", "_writer", "reader")

    def __init__(self, host: bytes, port: int) -> None:
        self._arguments = (host, port)
        self._targets: list[Target] = []
        self._error: OSError | None = None
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC)
        try:
            _thread.stack_size(THREAD_STACK)
            _thread.start_new_thread(self._run, ())
        except RuntimeError as error:
            os.close(self.reader)
            os.close(self._writer)
            raise OSError(str(error)) from error

    def _run(self) -> None:
        try:
            self._targets = targets(*self._arguments, 0)
        except OSError as error:
            self._error = error
        finally:
            os.close(self._writer)

    def result(self) -> list[Target]:
        """Return what was found, once; only to be called when `reader` is readable."""
        os.close(self.reader)
        if self._error is not None:
            raise self._error
        return self._targets
