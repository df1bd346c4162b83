"""The sidecar as a process of its own, with a real etcd as its store."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.etcd import Client, Delete, Range
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, Holder, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.stores.etcd.store import EtcdStore, open_etcd_store
from devcluster.certificates import Authority
from devcluster.stores import EtcdServer
from devcluster.topologies_etcd import EtcdGroup
from tests.contract.lock_backends import address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.sidecar_harness import Process

    Starter = Callable[..., Process]

KEY = SemaphoreKey("ns", "key")
MAX_RSS_KB = 14 * 1024
MAX_TLS_RSS_KB = 20 * 1024
PASSWORD = "s3cr3t%"


class Held:
    """A semaphore of two permits, of which `p1` is granted, and sidecars for it."""

    def __init__(self, store: EtcdStore, url: str, start: Starter) -> None:
        self.store, self.url = store, url
        self._start = start

    async def acquire(self, permit: str = "p1", seconds: int = 60, length: int = 2) -> Outcome:
        step = await self.store.begin(KEY, Fence("redlock", 0))
        await self.store.set_length(KEY, length, step.fence)
        return (await self.store.acquire(AcquireRequest(KEY, length, seconds, permit, "identity", pod="pod-"))).outcome

    def sidecar(self, *flags: str, url: str = "") -> Process:
        return self._start("127.0.0.1:1", f"--queue-url={url or self.url}", *flags)

    async def holder(self, permit: str = "p1") -> Holder | None:
        state = await self.store.state(KEY)
        return next((holder for holder in state.holders if holder.permit == permit), None)

    async def confirmed(self) -> None:
        await until(self._is_confirmed)

    async def _is_confirmed(self) -> bool:
        holder = await self.holder()
        return bool(holder and holder.confirmed)


async def until(condition: Callable[[], Any], timeout: float = 6.0) -> None:
    async with asyncio.timeout(timeout):
        while not await condition():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.02)


async def ended(sidecar: Process, number: int = signal.SIGTERM) -> tuple[int, float]:
    return await asyncio.to_thread(sidecar.end, number)


async def says(sidecar: Process, text: str) -> None:
    await asyncio.to_thread(sidecar.says, text)


@pytest.fixture
async def held(etcd_server: EtcdServer, new_sidecar: Starter) -> AsyncIterator[Held]:
    client = Client([address(etcd_server)])
    await client.delete(Delete(b"\0", b"\0"))
    await client.close()
    store = open_etcd_store([address(etcd_server)])
    yield Held(store, f"etcd://{etcd_server.address}", new_sidecar)
    await store.close()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[EtcdGroup]:
    with EtcdGroup(tmp_path) as members:
        yield members


async def test_it_confirms_renews_and_gives_back(held: Held) -> None:
    await held.acquire(seconds=3)
    sidecar = held.sidecar()
    await held.confirmed()
    await asyncio.sleep(4)
    holder = await held.holder()
    assert holder is not None
    assert (holder.pod, holder.confirmed, holder.expiration_ms) == ("pod-1", True, 3_000)
    code, seconds = await ended(sidecar)
    assert (code, seconds < 1) == (0, True)
    assert await held.holder() is None
    assert [line["message"] for line in sidecar.lines()] == [
        "confirmed the permit: renewed for 3000 ms, and again every 1 s",
        "gave the permit back",
    ]


async def test_nothing_is_left_of_its_lease(held: Held, etcd_server: EtcdServer) -> None:
    await held.acquire()
    client = Client([address(etcd_server)])
    (kv,) = (await client.range(Range(b"inflight/ns/key/p1"))).kvs
    sidecar = held.sidecar()
    await held.confirmed()
    assert (await ended(sidecar, signal.SIGINT))[0] == 0
    assert (await client.time_to_live(kv.lease)).ttl == -1
    await client.close()


async def test_a_killed_sidecars_permit_ends_with_its_lease(held: Held) -> None:
    await held.acquire(seconds=2, length=1)
    sidecar = held.sidecar()
    await held.confirmed()
    await ended(sidecar, signal.SIGKILL)
    assert await held.acquire("next", length=1) is Outcome.FULL

    async def is_free() -> bool:
        return await held.acquire("next", length=1) is Outcome.GRANTED

    await until(is_free)


async def test_it_ends_soon_after_the_pods_other_containers(held: Held) -> None:
    await held.acquire()
    sidecar = held.sidecar("--end-with-pod=true")
    await held.confirmed()
    start = time.monotonic()
    assert await held.store.release(KEY, "p1", ended=True)
    assert await asyncio.to_thread(sidecar.process.wait, 5) == 0
    assert time.monotonic() - start < 1.5
    assert "other containers have ended" in sidecar.lines()[-1]["message"]


async def test_a_permit_that_was_taken_away_is_said_and_no_other_is_released(held: Held) -> None:
    await held.acquire(seconds=2, length=1)
    sidecar = held.sidecar()
    await held.confirmed()
    assert await held.store.release(KEY, "p1")
    assert await held.acquire("other", length=1) is Outcome.GRANTED
    await says(sidecar, "not ours any more")
    assert (await ended(sidecar))[0] == 0
    assert await held.holder("other") is not None


async def test_a_permit_that_is_granted_anew_is_renewed_under_its_new_lease(held: Held) -> None:
    await held.acquire(seconds=3)
    sidecar = held.sidecar()
    await held.confirmed()
    assert await held.store.release(KEY, "p1")
    assert await held.acquire(seconds=3) is Outcome.GRANTED
    await held.confirmed()
    assert sidecar.lines("error") == []
    assert (await ended(sidecar))[0] == 0
    assert await held.holder() is None


async def test_an_outage_is_ridden_out(mortal_etcd_server: EtcdServer, new_sidecar: Starter) -> None:
    server = mortal_etcd_server
    store = open_etcd_store([address(server)])
    held = Held(store, f"etcd://{server.address}", new_sidecar)
    await held.acquire(seconds=9)
    sidecar = held.sidecar("--termination-grace-period-seconds=10")
    await held.confirmed()
    await asyncio.to_thread(server.kill)
    await says(sidecar, "Connection refused")
    await asyncio.to_thread(server.start)
    await says(sidecar, "renewed the permit again")
    server.pause()
    sidecar.process.send_signal(signal.SIGTERM)
    await says(sidecar, "no answer in time")
    server.resume()
    assert await asyncio.to_thread(sidecar.process.wait, 8) == 0
    assert await held.holder() is None
    await store.close()


async def test_a_store_that_stays_away_ends_in_a_failure_in_time(
    mortal_etcd_server: EtcdServer, new_sidecar: Starter
) -> None:
    store = open_etcd_store([address(mortal_etcd_server)])
    held = Held(store, f"etcd://{mortal_etcd_server.address}", new_sidecar)
    await held.acquire()
    sidecar = held.sidecar("--termination-grace-period-seconds=1")
    await held.confirmed()
    mortal_etcd_server.pause()
    code, seconds = await ended(sidecar)
    assert (code, seconds < 2) == (1, True)
    mortal_etcd_server.resume()
    await store.close()


async def test_it_goes_on_at_another_member(group: EtcdGroup, new_sidecar: Starter) -> None:
    leader = group.leader()
    members = [leader, *group.followers()]
    store = open_etcd_store([Address("127.0.0.1", member.port) for member in members])
    held = Held(store, f"etcd://{','.join(member.address for member in members)}", new_sidecar)
    await held.acquire(seconds=9)
    sidecar = held.sidecar()
    await held.confirmed()
    leader.pause()
    # Longer than the lease: it was renewed elsewhere.
    await asyncio.sleep(11)
    holder = await held.holder()
    assert holder is not None
    assert sidecar.lines("error") == []
    assert (await ended(sidecar))[0] == 0
    assert await held.holder() is None
    leader.resume()
    await store.close()


async def test_it_logs_in_and_once_more_when_its_token_is_gone(
    mortal_etcd_server: EtcdServer, new_sidecar: Starter, tmp_path: Path
) -> None:
    server = mortal_etcd_server
    client = Client([address(server)])
    steps: list[tuple[str, dict[str, Any]]] = [
        ("user/add", {"name": "root", "password": PASSWORD}),
        ("role/add", {"name": "root"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("enable", {}),
    ]
    for path, body in steps:
        await client.exchange(f"/v3/auth/{path}", body)
    await client.close()
    store = open_etcd_store([address(server)._replace(username="root", password=PASSWORD)])
    held = Held(store, f"etcd://root:s3cr3t%25@{server.address}", new_sidecar)
    await held.acquire(seconds=3)
    sidecar = held.sidecar()
    await held.confirmed()
    # Whose password is written anew has no valid token any more.
    client = Client([address(server)._replace(username="root", password=PASSWORD)])
    await client.exchange("/v3/auth/user/changepw", {"name": "root", "password": PASSWORD})
    await client.close()
    await asyncio.sleep(4)
    assert await held.holder() is not None
    assert sidecar.lines("warning") == []
    assert (await ended(sidecar))[0] == 0
    assert await held.holder() is None
    wrong = held.sidecar(url=f"etcd://root:wrong-word@{server.address}")
    await says(wrong, "it says: ")
    await asyncio.to_thread(wrong.end, signal.SIGKILL)
    assert "wrong-word" not in wrong.log()
    await store.close()


async def test_what_is_no_etcd_is_said(held: Held) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        sidecar = held.sidecar(url=f"etcd://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await says(sidecar, "the answer is not HTTP/1.1")
        await ended(sidecar, signal.SIGKILL)


def test_memory(held_rss: tuple[int, int]) -> None:
    plain, tls = held_rss
    sys.stdout.write(f"sidecar with etcd: VmRSS {plain} kB, with TLS {tls} kB\n")
    assert plain <= MAX_RSS_KB
    assert tls <= MAX_TLS_RSS_KB


@pytest.fixture
async def held_rss(held: Held, tmp_path: Path) -> AsyncIterator[tuple[int, int]]:
    await held.acquire(seconds=3)
    sidecar = held.sidecar()
    await held.confirmed()
    await asyncio.sleep(2.5)
    plain = sidecar.rss_kb()
    assert (await ended(sidecar))[0] == 0
    authority = Authority(tmp_path)
    server = EtcdServer(tmp_path, fsync=False, tls=authority.issue_server("etcd.test", ["127.0.0.1"]))
    server.process.start()
    place = Address("127.0.0.1", server.port, tls=True, ca_file=str(authority.ca_file))
    over_tls = Held(open_etcd_store([place]), f"etcds://{server.address}?ca-file={authority.ca_file}", held._start)
    try:

        async def serves() -> bool:
            try:
                return await over_tls.acquire(seconds=3) is Outcome.GRANTED
            except StoreUnavailableError:
                return False

        await until(serves, 10)
        sidecar = over_tls.sidecar()
        await over_tls.confirmed()
        await asyncio.sleep(2.5)
        tls = sidecar.rss_kb()
        assert (await ended(sidecar))[0] == 0
        yield plain, tls
    finally:
        await over_tls.store.close()
        server.process.kill()
