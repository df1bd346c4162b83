"""Waiting for a file descriptor in such a way that a signal ends the wait at once."""

from __future__ import annotations

import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from at_least_semaphore_pod_hook.sidecar.port import Port

STOP = (signal.SIGTERM, signal.SIGINT)
MAX_POLL_MS = 3_600_000
"""poll() takes no more than 31 bits of milliseconds; a longer wait is several."""


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """SIGTERM or SIGINT has come: raised once, by the wait that it ends, and once more after `Signals.rearm`."""


class Signals:
    """SIGTERM and SIGINT as an event.

    A handler is installed even though all it does is to exist: process 1 of a container gets no signal that it has none
    for. What counts is the byte that the interpreter writes to the wake-up pipe. Every wait polls that pipe as well, so
    there is no moment between two system calls where a signal could get lost.

    Where there is a `port`, every wait sees to it as well: so it is closed in time whatever is waited for.
    """

    __slots__ = ("_reader", "_writer", "port", "stopping")

    def __init__(self) -> None:
        self.stopping = False
        self.port: Port | None = None
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in STOP:
            signal.signal(number, _ignore)
        # Whoever started us may have held them back until there is somebody to take them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)

    def wait(self, deadline: float, fd: int = -1, events: int = select.POLLIN) -> bool:
        """Wait until `fd` is ready, or without one, for the time to pass.

        Args:
            deadline: The moment, of the monotonic clock, at which to give up.
            fd: What to wait for; none where negative.
            events: What of it, as poll() says it.

        Returns:
            Whether it was ready in time.

        Raises:
            StopRequested: A signal asks to stop, and it is the first, or the first since `rearm`.
        """
        while True:
            now, until = time.monotonic(), deadline
            poll = select.poll()
            poll.register(self._reader, select.POLLIN)
            if fd >= 0:
                poll.register(fd, events)
            if self.port is not None:
                self.port.tend(now)
                until = min(until, self.port.due)
                if self.port.fd >= 0:
                    poll.register(self.port.fd, select.POLLIN)
            left = max(0.0, until - now)
            # Rounded up: a millisecond too late is better than a thousand polls of no milliseconds.
            ready = [number for number, _ in poll.poll(min(MAX_POLL_MS, int(left * 1000) + 1 if left else 0))]
            if self._reader in ready:
                self._drain()
            if self.port is not None and self.port.fd in ready:
                self.port.accept()
            if fd in ready:
                return True
            if time.monotonic() >= deadline:
                return False

    def _drain(self) -> None:
        numbers = os.read(self._reader, 512)
        if not self.stopping and any(number in numbers for number in STOP):
            self.stopping = True
            raise StopRequested

    def rearm(self) -> None:
        """Have the next signal raise as well; those that came together count as one."""
        self.stopping = False

    def close(self) -> None:
        """Give the pipe up; signals keep being ignored, as there is nothing left to stop."""
        signal.set_wakeup_fd(-1)
        os.close(self._reader)
        os.close(self._writer)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Take a signal: its byte in the wake-up pipe says it all."""
