"""The rights in docs/security.md are all that store and sidecar need."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from at_least_semaphore_pod_hook.addresses import Address, parse_store_url
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.stores.opening import open_store
from at_least_semaphore_pod_hook.stores.redis.store import open_redis_store
from devcluster.topologies import RedisCluster, SentinelGroup
from devcluster.topologies import client as connected
from tests.sidecar_harness import Server, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sidecar_harness import Process

SECURITY = Path(__file__).resolve().parents[2] / "docs/security.md"
KEY = SemaphoreKey("ns", "key")
PASSWORD = "s3cret"


def documented(pattern: str) -> list[str]:
    found = re.search(pattern, SECURITY.read_text())
    assert found
    return found[1].split()


RIGHTS = documented(r"ACL SETUSER semaphores on >PASSWORD ([^`]+)```")


def let_in(client: Any, *rights: str) -> None:
    """Make a user that the document describes."""
    client.execute_command("ACL", "SETUSER", "semaphores", "on", f">{PASSWORD}", *(rights or RIGHTS))


async def test_every_operation_of_the_store(server: Server) -> None:
    let_in(server.client)
    store = open_redis_store(Address("127.0.0.1", server.port, username="semaphores", password=PASSWORD))
    changes = store.changes()
    try:
        assert await store.version() == 0
        assert await store.mark(1) == 1
        step = await store.begin(KEY, Fence("redlock", 0))
        await store.set_length(KEY, 1, step.fence)
        wish = AcquireRequest(KEY, 1, 60, "a", "identity", owner="Job/b")
        heard = asyncio.ensure_future(anext(changes))
        async with asyncio.timeout(5):
            while not heard.done():
                assert (await store.acquire(wish)).outcome is Outcome.GRANTED
                assert (await store.acquire(wish._replace(permit="b", identity="b"))).outcome is Outcome.FULL
                assert await store.renew(KEY, "a", "pod") == 60_000
                assert await store.keep(KEY, "a", "pod", "uid") == 60_000
                assert (await store.state(KEY)).denied == ("Job/b",)
                assert [key async for key in store.semaphores()] == [KEY]
                assert await store.release(KEY, "a", "pod", ended=True)
                assert await store.renew(KEY, "a", "pod") == -1
                await asyncio.sleep(0.01)
        assert heard.result() == KEY
        await store.forget_denied(KEY, "Job/b")
        assert await store.reclaim(KEY) == 0
    finally:
        await changes.aclose()  # type: ignore[attr-defined]
        await store.close()


def test_a_sidecar(server: Server, new_sidecar: Callable[..., Process]) -> None:
    let_in(server.client)
    server.acquire(lease_ms=900)
    sidecar = new_sidecar(f"redis://semaphores:{PASSWORD}@{server.address}")
    until(server.confirmed)
    before = server.lease_end()
    until(lambda: server.lease_end() > before)
    assert sidecar.end()[0] == 0
    assert [line["level"] for line in sidecar.lines()] == ["info", "info"]


def test_a_sidecar_with_fewer_rights(server: Server, new_sidecar: Callable[..., Process]) -> None:
    let_in(server.client, "-@all", "~queue/*", "~inflight/*", "&queue/{*}", *documented(r"neither grant[^`]+`([^`]+)`"))
    server.acquire(lease_ms=900)
    sidecar = new_sidecar(f"redis://semaphores:{PASSWORD}@{server.address}/0")
    until(server.confirmed)
    server.client.zincrby("inflight/{ns/key}", -1_000_000, "p1")
    before = server.lease_end()
    until(lambda: server.lease_end() > before)
    server.end()
    assert sidecar.process.wait(5) == 0
    assert [line["level"] for line in sidecar.lines()] == ["info", "info"]


async def take_one(url: str) -> None:
    store = open_store(parse_store_url(url))
    try:
        step = await store.begin(KEY, Fence("redlock", 0))
        await store.set_length(KEY, 1, step.fence)
        assert (await store.acquire(AcquireRequest(KEY, 1, 60, "p1", "identity"))).outcome is Outcome.GRANTED
        assert [key async for key in store.semaphores()] == [KEY]
    finally:
        await store.close()


def ends_well(sidecar: Process) -> bool:
    sidecar.says("confirmed the permit")
    return sidecar.end()[0] == 0


async def test_with_sentinels(tmp_path: Path, new_sidecar: Callable[..., Process]) -> None:
    with SentinelGroup(tmp_path / "group") as group:
        for server in group.servers:
            with group.client(server) as client:
                let_in(client)
        for sentinel in group.sentinels:
            with connected(sentinel.port) as client:
                let_in(client, "resetchannels", "-@all", *documented(r"Of Sentinels, webhooks need `([^`]+)`"))
        places = group.url.partition("@")[2]
        asking = f"sentinel-username=semaphores&sentinel-password={PASSWORD}"
        url = f"redis+sentinel://semaphores:{PASSWORD}@{places}?wait-replicas=1&{asking}"
        await take_one(url)
        store = open_store(parse_store_url(url))
        try:
            await store.state(KEY)

            def listens() -> bool:
                with connected(group.sentinels[0].port) as client:
                    return any(one["user"] == "semaphores" and one["sub"] == "1" for one in client.client_list())

            await asyncio.to_thread(until, listens)
        finally:
            await store.close()
        assert await asyncio.to_thread(ends_well, new_sidecar("127.0.0.1:1", "--queue-url", url))
        for sentinel in group.sentinels:
            with connected(sentinel.port) as client:
                assert client.execute_command("ACL", "LOG") == []


async def test_with_a_cluster(tmp_path: Path, new_sidecar: Callable[..., Process]) -> None:
    with RedisCluster(tmp_path / "cluster", replicas=1) as cluster:
        for server in cluster.servers:
            with connected(server.port) as client:
                let_in(client)
        url = cluster.url.replace("://", f"://semaphores:{PASSWORD}@") + "?wait-replicas=1"
        await take_one(url)
        assert await asyncio.to_thread(ends_well, new_sidecar("127.0.0.1:1", "--queue-url", url))
