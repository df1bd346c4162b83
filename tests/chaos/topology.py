"""What a run's semaphores and locks live in: servers that are started, paused, killed, cut off and started anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import redis

from devcluster.errors import DevClusterError
from devcluster.stores import RedisServer
from tests.chaos.history import Recorder
from tests.chaos.proxy import Tap
from tests.chaos.tap import RespTap

FLUSH_SECONDS = {"always": 0.0, "everysec": 2.0, "no": 3.0}
"""How old a write may be that a power cut takes along, by appendfsync; without a sync it is the kernel that decides."""


_START_TRIES = 10
_START_PAUSE_SECONDS = 0.3


def start_again(start: Callable[[], None]) -> None:
    """Start what was ended; its port may have become that of somebody's outgoing connection for a moment."""
    for _ in range(_START_TRIES):
        try:
            start()
        except DevClusterError:
            time.sleep(_START_PAUSE_SECONDS)
        else:
            return
    start()


class Topology(Protocol):
    """A store's servers, of whatever kind and number."""

    name: str

    def start(self) -> None:
        """Start all of them."""

    def close(self) -> None:
        """End all of them."""

    @property
    def ports(self) -> list[int]:
        """Where clients go."""

    def tap(self, recorder: Recorder, process: str) -> Callable[[], Tap]:
        """Return what makes a reader of the protocol that the store speaks."""

    def client(self) -> redis.Redis:
        """Return a client of the server that counts at this moment, past every link."""

    def kill(self) -> None:
        """End the server that counts at this moment as a crash of its process does."""

    def cut_power(self) -> None:
        """End it as a power cut does: what was not synced is gone."""

    def revive(self) -> None:
        """Start again what was ended."""

    def pause(self) -> None:
        """Freeze the server that counts at this moment."""

    def resume(self) -> None:
        """Let what is frozen go on."""


class Single:
    """One Redis.

    Args:
        directory: Its data.
        sync: Its appendfsync.
        env: Variables of its own, e.g. for a clock that goes wrong.
    """

    def __init__(self, directory: Path, sync: str, env: dict[str, str] | None = None) -> None:
        self.name = f"single/{sync}"
        self.sync = sync
        self._directory = directory
        # No rewrite: the file then only grows, so that its older length is its older state.
        arguments = ("--appendfsync", sync, "--auto-aof-rewrite-percentage", "0")
        # Redis' jemalloc and libfaketime cannot be in one process; Valkey does without the former.
        prefer: Literal["redis", "valkey"] = "valkey" if env else "redis"
        self.server = RedisServer(directory, prefer=prefer, appendonly=True, arguments=arguments)
        self.server.process.env = env
        self._synced: list[tuple[float, int]] = []

    def start(self) -> None:
        self.server.start()

    def close(self) -> None:
        self.server.kill()

    @property
    def ports(self) -> list[int]:
        return [self.server.port]

    def tap(self, recorder: Recorder, process: str) -> Callable[[], Tap]:
        return lambda: RespTap(recorder, process)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.server.port, decode_responses=True, socket_timeout=5)

    def note(self) -> None:
        """Note how much has been written by now; called a few times a second."""
        if self._log.exists():
            self._synced.append((time.monotonic(), self._log.stat().st_size))

    def kill(self) -> None:
        self.server.kill()

    def cut_power(self) -> None:
        self.server.kill()
        oldest = time.monotonic() - FLUSH_SECONDS[self.sync]
        sizes = [size for at, size in self._synced if at <= oldest]
        if self.sync != "always" and sizes and self._log.exists():
            with self._log.open("r+b") as log:
                log.truncate(min(sizes[-1], self._log.stat().st_size))

    def revive(self) -> None:
        if not self.server.process.alive:
            start_again(self.server.start)

    def pause(self) -> None:
        self.server.pause()

    def resume(self) -> None:
        self.server.resume()

    @property
    def _log(self) -> Path:
        return self._directory / "appendonlydir" / "appendonly.aof.1.incr.aof"
