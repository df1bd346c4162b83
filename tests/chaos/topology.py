"""What a run's semaphores and locks live in: servers that are started, paused, killed, cut off and started anew."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import redis

from devcluster.errors import DevClusterError
from devcluster.stores import RedisServer
from tests.chaos.history import Recorder
from tests.chaos.proxy import Link, Loop, Tap
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


class Held(NamedTuple):
    """What a store says at a moment.

    Attributes:
        permits: Those whose leases have not ended, by key.
        lengths: By key.
    """

    permits: dict[str, set[str]]
    lengths: dict[str, int]


class Topology(Protocol):
    """A store's servers, of whatever kind and number."""

    name: str
    locks: bool
    """Whether the lock is in them, too."""

    def start(self) -> None:
        """Start all of them."""

    def close(self) -> None:
        """End all of them."""

    @property
    def ports(self) -> list[int]:
        """Where clients go, each by a link of its own."""

    def rewritten(self, links: Mapping[int, int]) -> Callable[[bytes], bytes] | None:
        """Return what puts the links of a client in place of where servers say that they are, where they say so.

        Args:
            links: The ports of the client's links by where they lead to.
        """

    def flags(self, addresses: Sequence[str]) -> list[str]:
        """Return the webhook's flags for a store, and perhaps a lock, behind links at `addresses`."""

    def tap(self, recorder: Recorder, process: str) -> Callable[[], Tap] | None:
        """Return what makes a reader of the protocol that the store speaks, where there is one."""

    def held(self) -> Held:
        """Read what is held, past every link."""

    def note(self) -> None:
        """Note how much has been written by now; called a few times a second."""


def store_links(topology: Topology, loop: Loop, recorder: Recorder, process: str, rng: random.Random) -> list[Link]:
    """Make the links by which a process, or all sidecars where `process` is empty, comes to a store's servers."""
    tap = topology.tap(recorder, process)
    ways: dict[int, int] = {}
    links: list[Link] = []
    rewritten = topology.rewritten(ways)
    for port in topology.ports:
        links.append(Link(loop, [port], tap=tap, rewritten=rewritten, rng=random.Random(rng.random())))
        ways[port] = links[-1].port
    return links


def held_in_redis(clients: Sequence[Any]) -> Held:
    """Read what is held in servers that share the semaphores among them."""
    held = Held({}, {})
    for client in clients:
        seconds, micros = client.time()
        now = seconds * 1000 + micros // 1000
        for name in client.scan_iter(match="inflight/{*}", _type="zset"):
            if not name.endswith("/ended"):
                holders = client.zrangebyscore(name, f"({now}", "+inf")
                if holders:
                    held.permits[_key(name)] = set(holders)
        for name in client.scan_iter(match="queue/{*}", _type="hash"):
            held.lengths[_key(name)] = int(client.hget(name, "length") or 0)
    return held


def _key(name: str) -> str:
    return name.partition("/")[2].strip("{}").partition("/")[2]


class Single:
    """One Redis.

    Args:
        directory: Its data.
        sync: Its appendfsync.
        env: Variables of its own, e.g. for a clock that goes wrong.
    """

    locks = False

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

    def rewritten(self, links: Mapping[int, int]) -> None:
        """It does not say where it is."""

    def tap(self, recorder: Recorder, process: str) -> Callable[[], Tap]:
        return lambda: RespTap(recorder, process)

    def flags(self, addresses: Sequence[str]) -> list[str]:
        return [f"--queue-redis-address={address}" for address in addresses]

    def held(self) -> Held:
        with self.client() as client:
            return held_in_redis([client])

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.server.port, decode_responses=True, socket_timeout=5)

    def note(self) -> None:
        if self._log.exists():
            self._synced.append((time.monotonic(), self._log.stat().st_size))

    def kill(self) -> None:
        """End it as a crash of its process does."""
        self.server.kill()

    def cut_power(self) -> None:
        """End it as a power cut does: what was not synced is gone."""
        self.server.kill()
        if self.sync != "always":
            self.forget(FLUSH_SECONDS[self.sync])

    def forget(self, seconds: float) -> None:
        """Put the data in place that it had `seconds` ago, while it is not running."""
        oldest = time.monotonic() - seconds
        sizes = [size for at, size in self._synced if at <= oldest]
        if sizes and self._log.exists():
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
