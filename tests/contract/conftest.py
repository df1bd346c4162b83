"""Real servers for the contract suites: each started once, on a free port of the loopback interface."""

from __future__ import annotations

import compileall
from typing import TYPE_CHECKING

import pytest

from devcluster.stores import EtcdServer, RedisServer
from devcluster.topologies import RedisCluster, SentinelGroup, client
from devcluster.topologies_etcd import EtcdGroup
from tests.contract import accounts
from tests.contract.etcd_subject import EtcdSubject
from tests.contract.lock_backends import LockBackend
from tests.contract.lock_worker import ETCD_TTL, REDLOCK_TTL
from tests.contract.subjects import MemorySubject, RedisSubject, Subject
from tests.sidecar_harness import PACKAGE, Process, Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from at_least_semaphore_pod_hook.semaphore.contracts import Lock


KINDS = ("memory", "redis", "valkey", "sentinel", "cluster", "etcd", "etcd-3")
"""The stores of the contract suite."""

DEBUGGING = ("--enable-debug-command", "local")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), prefer="redis", arguments=DEBUGGING) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("valkey"), prefer="valkey", arguments=DEBUGGING) as server:
        assert server.kind == "valkey"
        yield server


@pytest.fixture(scope="session")
def sentinel_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelGroup]:
    # Nothing is to fail over here, however busy the machine is.
    directory = tmp_path_factory.mktemp("sentinel")
    with SentinelGroup(directory, down_after_ms=30_000, arguments=DEBUGGING) as group:
        yield group


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    directory = tmp_path_factory.mktemp("cluster")
    with RedisCluster(directory, node_timeout_ms=30_000, arguments=DEBUGGING) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def etcd_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdGroup]:
    with EtcdGroup(tmp_path_factory.mktemp("etcd-group")) as group:
        accounts.EtcdAdmin(group.members[0].port).let_in()
        yield group


@pytest.fixture(scope="session")
def etcd_with_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd-with-users"), fsync=False) as server:
        accounts.EtcdAdmin(server.port).let_in()
        yield server


@pytest.fixture(scope="session")
def new_subject(request: pytest.FixtureRequest) -> Callable[[str], Subject]:
    """Make a subject of a kind, with the webhook's account; the servers of that kind start with the first one."""

    def single(kind: str) -> Subject:
        server: RedisServer = request.getfixturevalue(f"{kind}_server")
        admin = client(server.port)
        accounts.let_in(admin, "users.acl")
        return RedisSubject(f"redis://{accounts.WEBHOOK}:{accounts.PASSWORD}@{server.address}", [admin])

    def sentinel() -> Subject:
        group: SentinelGroup = request.getfixturevalue("sentinel_group")
        return RedisSubject(accounts.into_sentinels(group), [group.client(group.primary())])

    def cluster() -> Subject:
        nodes: RedisCluster = request.getfixturevalue("redis_cluster")
        return RedisSubject(accounts.into_cluster(nodes), [client(server.port) for server in nodes.servers])

    makers: dict[str, Callable[[], Subject]] = {
        "memory": MemorySubject,
        "redis": lambda: single("redis"),
        "valkey": lambda: single("valkey"),
        "sentinel": sentinel,
        "cluster": cluster,
        "etcd": lambda: EtcdSubject([request.getfixturevalue("etcd_with_users").port]),
        "etcd-3": lambda: EtcdSubject([member.port for member in request.getfixturevalue("etcd_group").members]),
    }
    return lambda kind: makers[kind]()


@pytest.fixture(params=KINDS)
async def subject(request: pytest.FixtureRequest, new_subject: Callable[[str], Subject]) -> AsyncIterator[Subject]:
    made = new_subject(request.param)
    yield made
    await made.close()


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
