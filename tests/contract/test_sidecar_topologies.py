"""Sidecars of stores of several servers, and how sidecars, store and lock are let in: files, TLS, Unix sockets."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from redis.crc import key_slot

from at_least_semaphore_pod_hook.addresses import REDIS_PORT, REDIS_SCHEMES, parse_address, parse_store_url
from at_least_semaphore_pod_hook.errors import LockUnavailableError, StoreUnavailableError
from at_least_semaphore_pod_hook.locks.redlock import Redlock
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.stores.opening import open_store
from devcluster.stores import RedisServer
from devcluster.topologies import RedisCluster, SentinelGroup, TlsServer, client, followers, until
from tests.contract.test_sidecar import MAX_RSS_KB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from at_least_semaphore_pod_hook.semaphore.contracts import Store
    from tests.sidecar_harness import Process

    Starter = Callable[..., Process]

KEY = SemaphoreKey("ns", "key")
SLOT = key_slot(b"ns/key")
PERMIT = "p1"
UNUSED = "127.0.0.1:1"


@asynccontextmanager
async def holding(url: str, lease: int = 60) -> AsyncIterator[Store]:
    """Open a store in which the sidecar's permit is held."""
    store = open_store(parse_store_url(url))
    try:
        step = await store.begin(KEY, Fence("redlock", 0))
        await store.set_length(KEY, 3, step.fence)
        taken = await store.acquire(AcquireRequest(KEY, 3, lease, PERMIT, "identity"))
        assert taken.outcome is Outcome.GRANTED
        yield store
    finally:
        await store.close()


async def confirmed(store: Store, timeout: float = 10) -> int:
    """Wait for the sidecar's next renewal; returns its age in milliseconds."""
    async with asyncio.timeout(timeout):
        before = time.monotonic()
        while True:
            holders = (await store.state(KEY)).holders
            if holders and holders[0].confirmed and holders[0].silent_ms < (time.monotonic() - before) * 1000:
                return holders[0].silent_ms
            await asyncio.sleep(0.02)


async def ended(sidecar: Process, number: int = signal.SIGTERM) -> int:
    return (await asyncio.to_thread(sidecar.end, number))[0]


@pytest.mark.parametrize("disturbance", ["kill", "pause"])
async def test_a_sidecar_follows_sentinels(tmp_path: Path, new_sidecar: Starter, disturbance: str) -> None:
    with SentinelGroup(tmp_path / "group") as group:
        async with holding(group.url, lease=6) as store:
            sidecar = new_sidecar(UNUSED, "--queue-url", group.url)
            await confirmed(store)
            assert sidecar.rss_kb() <= MAX_RSS_KB
            primary = group.primary()
            until(lambda: followers(primary, "clients") == 2, "replicated")
            getattr(primary, disturbance)()
            await asyncio.to_thread(group.wait_for_another, primary)
            await confirmed(store)
            assert await ended(sidecar) == 0
            assert (await store.state(KEY)).held == 0
            assert sidecar.lines()[-1]["message"].startswith("gave the permit back")
            assert not sidecar.lines("error")
        primary.kill()


async def test_a_sidecar_leaves_a_primary_that_still_believes_in_itself(tmp_path: Path, new_sidecar: Starter) -> None:
    with SentinelGroup(tmp_path / "group") as group:
        async with holding(group.url, lease=6) as store:
            sidecar = new_sidecar(UNUSED, "--queue-url", group.url)
            await confirmed(store)
            before = group.primary()
            until(lambda: followers(before, "clients") == 2, "replicated")
            group.isolate(before)
            await asyncio.to_thread(group.wait_for_another, before)
            await confirmed(store)
            assert await ended(sidecar) == 0
            assert (await store.state(KEY)).held == 0
            with group.client(before) as asked:
                assert asked.execute_command("ROLE")[0] == "master"
            assert not sidecar.lines("error")


async def test_a_sidecar_says_what_no_sentinel_knows(tmp_path: Path, new_sidecar: Starter) -> None:
    with SentinelGroup(tmp_path / "group", replicas=0) as group:
        sidecar = new_sidecar(
            UNUSED,
            "--queue-url",
            group.url.replace("/semaphores", "/other"),
            "--termination-grace-period-seconds=1",
        )
        await asyncio.to_thread(sidecar.says, "it knows no primary of other")
        assert "clients" not in sidecar.log()
        assert await ended(sidecar) == 1


async def test_a_sidecar_follows_a_slot_and_remembers_where_it_is(tmp_path: Path, new_sidecar: Starter) -> None:
    with RedisCluster(tmp_path / "cluster") as cluster:
        source = cluster.owner(SLOT)
        to, seed = (server for server in cluster.servers if server is not source)
        async with holding(cluster.url, lease=2) as store:
            sidecar = new_sidecar(UNUSED, "--queue-url", f"redis+cluster://{seed.address}")
            await confirmed(store)
            assert sidecar.rss_kb() <= MAX_RSS_KB
            cluster.move(SLOT, to, finish=False)
            await asyncio.to_thread(cluster.finish_move, SLOT, source, to)
            await confirmed(store)
            # It does not need the seed any more.
            seed.kill()
            await confirmed(store)
            assert await ended(sidecar) == 0
            with client(to.port) as asked:
                assert asked.exists(f"inflight/{{{KEY}}}") == 0
            assert not sidecar.lines("error")


async def test_a_sidecar_follows_a_masters_replica(tmp_path: Path, new_sidecar: Starter) -> None:
    with RedisCluster(tmp_path / "cluster", replicas=1) as cluster:
        async with holding(cluster.url, lease=6) as store:
            sidecar = new_sidecar(UNUSED, "--queue-url", cluster.url)
            await confirmed(store)
            master = cluster.owner(SLOT)
            until(lambda: followers(master) == 1, "replicated")
            master.kill()
            await asyncio.to_thread(cluster.wait_for_another, SLOT, master)
            await confirmed(store)
            assert await ended(sidecar) == 0
            assert (await store.state(KEY)).held == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("release_on", ["sigterm", "exit"])
async def test_a_sidecar_of_a_store_in_memory_waits_for_its_signal(
    new_sidecar: Starter, number: int, release_on: str
) -> None:
    sidecar = new_sidecar(UNUSED, "--queue-url=memory://", f"--release-on={release_on}")
    await asyncio.to_thread(sidecar.says, "its controller renews the permit and gives it back")
    assert sidecar.process.poll() is None
    assert sidecar.rss_kb() <= MAX_RSS_KB
    assert await ended(sidecar, number) == 0
    assert [line["level"] for line in sidecar.lines()] == ["info"]


async def test_a_unix_socket(tmp_path: Path, new_sidecar: Starter) -> None:
    path = tmp_path / "redis.sock"
    with RedisServer(tmp_path / "0", arguments=("--unixsocket", str(path))) as server:
        url = f"unix://{path}?db=2"
        async with holding(url) as store:
            sidecar = new_sidecar(UNUSED, "--queue-url", url)
            await confirmed(store)
            assert await ended(sidecar) == 0
            assert [key async for key in store.semaphores()] == []
            server.kill()
            with pytest.raises(StoreUnavailableError, match=f"the store at {path} did not renew: "):
                await store.renew(KEY, PERMIT)


async def test_a_password_that_changes_while_all_run(tmp_path: Path, new_sidecar: Starter) -> None:
    password = tmp_path / "password"
    password.write_text("word-1\n")
    with RedisServer(tmp_path / "0", arguments=("--requirepass", "word-1")) as server:
        url = f"redis://{server.address}?password-file={password}"
        lock = Redlock([parse_address(url, REDIS_SCHEMES, REDIS_PORT)])
        try:
            async with holding(url, lease=2) as store:
                sidecar = new_sidecar(UNUSED, "--queue-url", url)
                await confirmed(store)
                async with lock.hold("ns/key", 1):
                    pass

                def change(to: str) -> None:
                    with client(server.port, password.read_text().strip()) as asked:
                        asked.config_set("requirepass", to)
                        asked.client_kill_filter(_type="normal", skipme=True)

                change("word-2")
                with pytest.raises(StoreUnavailableError, match=r"refused the user or the password|WRONGPASS"):
                    await store.state(KEY)
                with pytest.raises(LockUnavailableError):
                    async with lock.hold("ns/key", 0.3):
                        pass
                await asyncio.to_thread(sidecar.says, "WRONGPASS to AUTH")
                password.write_text("word-2\n")
                await confirmed(store)
                async with lock.hold("ns/key", 1):
                    pass
                password.unlink()
                with client(server.port, "word-2") as asked:
                    asked.client_kill_filter(_type="normal", skipme=True)
                with pytest.raises(StoreUnavailableError, match=f"{password}: No such file"):
                    await store.state(KEY)
                await asyncio.to_thread(sidecar.says, f"{password}: No such file")
                password.write_text("word-2\n")
                assert await ended(sidecar) == 0
                assert "word-1" not in sidecar.log()
                assert "word-2" not in sidecar.log()
        finally:
            await lock.close()


async def test_tls_with_an_authority_a_client_certificate_and_a_name_of_its_own(
    tmp_path: Path, new_sidecar: Starter
) -> None:
    with TlsServer(tmp_path / "tls") as server:
        url = f"rediss://127.0.0.1:{server.tls_port}?{server.options}"
        lock = Redlock([parse_address(url, REDIS_SCHEMES, REDIS_PORT)])
        try:
            async with holding(url, lease=2) as store, lock.hold("ns/key", 2):
                sidecar = new_sidecar(UNUSED, "--queue-url", url)
                await confirmed(store)
                # Certificates are read anew: the old one is not there any more.
                server.issue()
                with client(server.port) as asked:
                    asked.client_kill_filter(_type="normal", skipme=True)
                await confirmed(store)
                assert await ended(sidecar) == 0
                assert (await store.state(KEY)).held == 0
        finally:
            await lock.close()


def _wrong(server: TlsServer, what: str) -> str:
    options: dict[str, str] = {
        "authority": f"cert-file={server.cert_file}&key-file={server.key_file}&server-name={server.server_name}",
        "name": server.options.replace(f"server-name={server.server_name}", "server-name=other.test"),
        "certificate": f"ca-file={server.ca_file}&server-name={server.server_name}",
        "file": server.options.replace(str(server.cert_file), "/nowhere.crt"),
    }
    return f"rediss://127.0.0.1:{server.tls_port}?{options[what]}"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("authority", "certificate verify failed"),
        ("name", "not valid for 'other.test'"),
        ("certificate", ""),
        ("file", "nowhere.crt"),
    ],
)
async def test_tls_that_is_not_right_lets_nobody_in(tmp_path: Path, new_sidecar: Starter, what: str, said: str) -> None:
    with TlsServer(tmp_path / "tls") as server:
        url = _wrong(server, what)
        store: Any = open_store(parse_store_url(url))
        try:
            with pytest.raises(StoreUnavailableError) as caught:
                await store.state(KEY)
            assert said in str(caught.value)
        finally:
            await store.close()
        sidecar = new_sidecar(UNUSED, "--queue-url", url, "--termination-grace-period-seconds=1")
        await asyncio.to_thread(sidecar.says, "the store is unavailable")
        assert said in sidecar.log()
        assert await ended(sidecar) == 1
