"""What a container runs: a local process, or time that passes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from devcluster.errors import DevClusterError
from devcluster.process import kill_group, spawn

_START_ERROR = 128
_TERMINATED = 128 + signal.SIGTERM
_KILLED = 128 + signal.SIGKILL


class Workload(Protocol):
    """What a container runs: once, until it ends by itself or is told to."""

    async def run(self, started: Callable[[], None]) -> int:
        """Run, calling `started` once it does; return the exit code (128 + n for signal n)."""

    def signal(self, number: int) -> None:
        """Send a signal; one that comes before the start takes effect then."""


class Simulated:
    """A container that only passes time: `seconds` (None: for ever), then `code`; `stop` seconds after SIGTERM."""

    def __init__(self, seconds: float | None, code: int, stop: float) -> None:
        self._seconds = math.inf if seconds is None else seconds
        self._code = code
        self._stop = stop
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self, started: Callable[[], None]) -> int:
        """Pass the time; see `Workload`."""
        started()
        self._later(self._seconds, self._code)
        return await self._end

    def signal(self, number: int) -> None:
        """Begin to end on SIGTERM, end on SIGKILL, ignore the rest."""
        if number == signal.SIGTERM:
            self._later(self._stop, _TERMINATED)
        elif number == signal.SIGKILL:
            self._finish(_KILLED)

    def _later(self, seconds: float, code: int) -> None:
        if seconds != math.inf:
            asyncio.get_running_loop().call_later(seconds, self._finish, code)

    def _finish(self, code: int) -> None:
        if not self._end.done():
            self._end.set_result(code)


class Real:
    """A container that is a local process."""

    def __init__(
        self, prepare: Callable[[], Awaitable[tuple[list[str], dict[str, str]]]], log: Path, cwd: Path
    ) -> None:
        self._prepare = prepare
        self._log = log
        self._cwd = cwd
        self._popen: subprocess.Popen[bytes] | None = None
        self._pidfd: int | None = None
        self._pending = 0  # a signal that came before there was a process

    @property
    def pid(self) -> int | None:
        """The id of the running process; None before and after."""
        return None if self._pidfd is None or self._popen is None else self._popen.pid

    async def run(self, started: Callable[[], None]) -> int:
        """Start the process and wait for its end; see `Workload`. The reason of a failed start goes to the log."""
        try:
            argv, environment = await self._prepare()
            self._cwd.mkdir(parents=True, exist_ok=True)
            if self._pending:
                return 128 + self._pending
            self._popen = await self._spawn(argv, environment)
        except (OSError, DevClusterError) as error:
            with self._log.open("a") as output:
                output.write(f"the container could not be started: {error}\n")
            return _START_ERROR
        self._pidfd = os.pidfd_open(self._popen.pid)
        if self._pending:
            self.signal(self._pending)
        started()
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._pidfd)
            self._reap()
        code = self._popen.returncode
        return 128 - code if code < 0 else code

    async def _spawn(self, argv: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        future = spawn(argv, environment, self._log, self._cwd)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            # The start is under way in another thread: wait these few milliseconds, or the process would be left over.
            with contextlib.suppress(OSError):
                popen = future.result()
                kill_group(popen.pid)
                popen.wait()
            raise

    def signal(self, number: int) -> None:
        """Send a signal to the process, at its start where there is none yet."""
        if self._pidfd is None:
            self._pending = number if self._popen is None else 0
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def _reap(self) -> None:
        # As a container's end takes all its processes along: kill the group while its leader still holds the id.
        if self._popen is not None and self._pidfd is not None:
            kill_group(self._popen.pid)
            self._popen.wait()
            os.close(self._pidfd)
            self._pidfd = None
