"""Child processes that log to a file, die with their parent and are ended by their own id only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from devcluster.errors import DevClusterError

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.02
_LIBC = ctypes.CDLL(None, use_errno=True)

_PORTS = (11_000, 30_000)
"""Below what Linux gives to clients (from 32768 on) and Kubernetes to Services, and above what kubelets listen on."""
_CHOICE = random.SystemRandom()

# The kernel sends the parent-death signal when the *thread* that forked ends, not the process. One thread that lives
# as long as this process forks every child, so that a child started from a short-lived thread is not killed early.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="devcluster-spawner")


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on, and that no other process is given while this one runs.

    It is none that the kernel would give to a client, so that a server that is started anew finds it free again.
    """
    while True:
        port = _CHOICE.randrange(*_PORTS)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            if _reserve(port):
                return port


def _reserve(port: int) -> bool:
    """Keep a port from others that ask for one, by the name of an abstract socket that stays open with this process."""
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0devcluster-port-{port}")
    except OSError:
        name.close()
        return False
    name.detach()
    return True


def log_tail(log: Path, lines: int = 20) -> str:
    """Return the last `lines` lines of a log file, or a remark where there is nothing to show."""
    try:
        text = log.read_text(errors="replace")
    except OSError as error:
        return f"(no log: {error})"
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"


def spawn(
    argv: Sequence[str], env: Mapping[str, str] | None, log: Path, cwd: Path | None = None
) -> Future[subprocess.Popen[bytes]]:
    """Start `argv` in its own process group, output appended to `log`; the kernel kills it when this process ends.

    `env` replaces the whole environment (None inherits). The future raises OSError where the program can't be run.
    """
    return _SPAWNER.submit(_spawn, list(argv), None if env is None else dict(env), log, cwd)


def _spawn(argv: list[str], env: dict[str, str] | None, log: Path, cwd: Path | None) -> subprocess.Popen[bytes]:
    parent = os.getpid()

    def die_with_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before the request was in place
            os._exit(1)

    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # prctl alone, no Python lock is taken between fork and exec
        )


def has_exited(pid: int) -> bool:
    """Say whether a child of ours has ended, without reaping it: its id, and its group's, can't be reused meanwhile."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def kill_group(pid: int) -> None:
    """SIGKILL what is left of the process group that the unreaped child `pid` leads."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


class Process:
    """One server process: started, probed until ready, paused, and ended together with its group.

    `log` receives stdout and stderr, appended over restarts. `env` replaces the whole environment (None inherits).
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self.env = env
        self.cwd = cwd
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; DevClusterError where the program can't be run or runs already."""
        if self.alive:
            raise DevClusterError(f"{self.name} is running already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._popen = spawn(self.argv, self.env, self.log, self.cwd).result()
        except OSError as error:
            raise DevClusterError(f"{self.name} could not be started: {self.argv[0]}: {error}") from error

    @property
    def pid(self) -> int:
        """The process id; DevClusterError before the first start."""
        if self._popen is None:
            raise DevClusterError(f"{self.name} was not started")
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended (a paused process is alive)."""
        return self._popen is not None and self._popen.returncode is None and not has_exited(self._popen.pid)

    @property
    def exit_code(self) -> int | None:
        """What it ended with (-n for signal n); None while it runs and before the first start."""
        return self._reap()

    def wait_until(self, probe: Callable[[], bool], timeout: float, what: str = "ready") -> None:
        """Call `probe` until it returns true.

        DevClusterError with the last lines of the log where the process ends first or `timeout` seconds pass.
        """
        deadline = time.monotonic() + timeout
        while not probe():
            if not self.alive:
                code = self._reap()
                raise DevClusterError(f"{self.name} ended with {code} before it was {what}:\n{log_tail(self.log)}")
            if time.monotonic() > deadline:
                raise DevClusterError(f"{self.name} was not {what} after {timeout:g} s:\n{log_tail(self.log)}")
            time.sleep(_POLL_SECONDS)

    def terminate(self, grace: float = 10.0) -> None:
        """SIGTERM, then SIGKILL after `grace` seconds; returns when it and its group are gone."""
        if self._popen is None or self._popen.returncode is not None:
            return
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # a paused process acts on SIGTERM only once it goes on
        self._wait_exit(grace)
        self.kill()

    def kill(self) -> None:
        """SIGKILL it and its group; returns when it is gone."""
        if self._popen is None or self._popen.returncode is not None:
            return
        self.signal(signal.SIGKILL)
        self._wait_exit(None)
        self._reap()

    def stop(self) -> None:
        """Pause it (SIGSTOP): its sockets stay open and nobody answers."""
        self.signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        self.signal(signal.SIGCONT)

    def signal(self, number: int) -> None:
        """Send a signal to the process itself; nothing happens where it has ended."""
        if self.alive:
            os.kill(self.pid, number)

    def _wait_exit(self, timeout: float | None) -> None:
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # Not select(), which takes no number above 1023.
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(None if timeout is None else timeout * 1000)
        finally:
            os.close(descriptor)

    def _reap(self) -> int | None:
        if self._popen is None:
            return None
        if self._popen.returncode is None and has_exited(self._popen.pid):
            kill_group(self._popen.pid)
            self._popen.wait()
        return self._popen.returncode

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.terminate()
