"""Real servers for the contract suites: each started once, on a free port of the loopback interface."""

from __future__ import annotations

import compileall
import json
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import pytest
import redis

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.stores.memory import MemoryStore
from at_least_semaphore_pod_hook.stores.redis.store import RedisStore
from devcluster.stores import EtcdServer, RedisServer
from tests.contract.lock_backends import LockBackend
from tests.contract.lock_worker import ETCD_TTL, REDLOCK_TTL
from tests.sidecar_harness import PACKAGE, Process, Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from at_least_semaphore_pod_hook.semaphore.contracts import Lock, Store
    from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey


class Subject(ABC):
    """A store under test, with a hand on its clock."""

    store: Store

    @abstractmethod
    def advance(self, seconds: float) -> None:
        """Let time pass."""

    @abstractmethod
    def dump(self) -> object:
        """Everything that is stored, to be compared."""

    @abstractmethod
    def begin_epoch(self) -> None:
        """Do what happens to a store that may lose data by it."""

    @abstractmethod
    def lose(self, key: SemaphoreKey, permit: str) -> None:
        """Lose a holder."""


class MemorySubject(Subject):
    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.memory = MemoryStore(lambda: self.now)
        self.store: Store = self.memory

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def dump(self) -> object:
        return repr(self.memory._semaphores)

    def begin_epoch(self) -> None:
        self.memory.epoch += 1

    def lose(self, key: SemaphoreKey, permit: str) -> None:
        del self.memory._semaphores[key].permits[permit]


class RedisSubject(Subject):
    """Time passes by moving what is stored into the past: the server's own clock stays as it is."""

    def __init__(self, server: RedisServer) -> None:
        self.client: Any = redis.Redis(port=server.port, decode_responses=True)
        self.client.flushall()
        self.store: Store = RedisStore(Address("127.0.0.1", server.port))

    def advance(self, seconds: float) -> None:
        milliseconds = int(seconds * 1000)
        for name in self.client.scan_iter(match="inflight/*", _type="ZSET"):
            for permit in self.client.zrange(name, 0, -1):
                self.client.zincrby(name, -milliseconds, permit)
                if name.endswith("/ended"):
                    continue
                holder = json.loads(self.client.hget(f"{name}/holders", permit))
                holder["granted"] -= milliseconds
                holder["renewed"] -= milliseconds
                self.client.hset(f"{name}/holders", permit, json.dumps(holder))

    def dump(self) -> object:
        return {name: self.client.dump(name) for name in sorted(self.client.scan_iter())}

    def begin_epoch(self) -> None:
        # As a replica that is made a primary.
        self.client.replicaof("127.0.0.1", "1")
        self.client.replicaof("NO", "ONE")
        self.client.client_kill_filter(_type="normal", skipme=True)

    def lose(self, key: SemaphoreKey, permit: str) -> None:
        self.client.zrem(f"inflight/{{{key}}}", permit)
        self.client.hdel(f"inflight/{{{key}}}/holders", permit)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), prefer="redis") as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("valkey"), prefer="valkey") as server:
        assert server.kind == "valkey"
        yield server


@pytest.fixture(params=["memory", "redis", "valkey"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    made: Subject
    if request.param == "memory":
        made = MemorySubject()
    else:
        made = RedisSubject(request.getfixturevalue(f"{request.param}_server"))
    yield made
    await made.store.close()
    if isinstance(made, RedisSubject):
        made.client.close()


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """An image is compiled as well; compiling by itself would cost a sidecar 2 MB."""
    compileall.compile_dir(PACKAGE, quiet=2)


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*flags: str, password: str = "") -> Server:
        servers.append(Server(tmp_path, *flags, password=password))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def server(new_server: Callable[..., Server]) -> Server:
    return new_server()


@pytest.fixture
def new_sidecar(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(address: str, *flags: str, permit: str = "p1", redirections: str = "") -> Process:
        processes.append(
            Process(tmp_path / f"log-{len(processes)}", address, *flags, permit=permit, redirections=redirections)
        )
        return processes[-1]

    yield start
    for process in processes:
        process.close()


@pytest.fixture(scope="session")
def redis_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    yield from _redis_servers(tmp_path_factory.mktemp("redis"), 5)


@pytest.fixture
def mortal_redis_servers(tmp_path: Path) -> Iterator[list[RedisServer]]:
    """Three servers of the test's own, to stop and to kill."""
    yield from _redis_servers(tmp_path, 3)


def _redis_servers(directory: Path, count: int) -> Iterator[list[RedisServer]]:
    servers: list[RedisServer] = []
    try:
        for number in range(count):
            server = RedisServer(directory / str(number))
            server.start()
            servers.append(server)
        yield servers
    finally:
        for server in servers:
            server.kill()


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd"), fsync=False) as server:
        yield server


@pytest.fixture
def mortal_etcd_server(tmp_path: Path) -> Iterator[EtcdServer]:
    """A server of the test's own, to stop and to kill."""
    with EtcdServer(tmp_path, fsync=False) as server:
        yield server


@pytest.fixture(params=["redlock-1", "redlock-3", "redlock-5", "etcd"])
def lock_backend(request: pytest.FixtureRequest) -> LockBackend:
    kind: str = request.param
    if kind == "etcd":
        return LockBackend(kind, (request.getfixturevalue("etcd_server").port,), ETCD_TTL)
    servers = request.getfixturevalue("redis_servers")[: int(kind[-1])]
    return LockBackend(kind, tuple(server.port for server in servers), REDLOCK_TTL)


@pytest.fixture
async def closing() -> AsyncIterator[Callable[[Lock], Lock]]:
    """Close at the end of the test what it is called with."""
    locks: list[Lock] = []

    def remember(lock: Lock) -> Lock:
        locks.append(lock)
        return lock

    yield remember
    for lock in locks:
        await lock.close()
