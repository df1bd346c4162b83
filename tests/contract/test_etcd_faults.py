"""The etcd lock with endpoints that are down or frozen, tokens that are gone, and leases that are lost."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import aiohttp
import pytest

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.connector import Connector
from at_least_semaphore_pod_hook.errors import LockUnavailableError
from at_least_semaphore_pod_hook.etcd import Client, Delete, EtcdRefusedError, Put, Range, prefix_end
from at_least_semaphore_pod_hook.locks.etcd import EtcdLock
from tests.contract.lock_backends import address

if TYPE_CHECKING:
    from collections.abc import Callable

    from at_least_semaphore_pod_hook.semaphore.contracts import Lock
    from devcluster.stores import EtcdServer

    Closing = Callable[[Lock], Lock]

_NAME = "namespace/key"
_DEAD = Address("127.0.0.1", 1)


async def test_fences_rise_within_the_cluster(etcd_server: EtcdServer, closing: Closing) -> None:
    lock = closing(EtcdLock([address(etcd_server)]))
    tokens = []
    for _ in range(3):
        async with lock.hold(_NAME, 1) as fence:
            assert fence.domain.startswith("etcd/")
            assert int(fence.domain.removeprefix("etcd/"), 16) > 0
            tokens.append(fence.token)
    assert 0 < tokens[0] < tokens[1] < tokens[2]


async def test_waiters_are_served_first_in_first_out(etcd_server: EtcdServer, closing: Closing) -> None:
    lock = closing(EtcdLock([address(etcd_server)]))
    served = []

    async def wait(number: int) -> None:
        async with lock.hold("namespace/line", 5):
            served.append(number)

    async with lock.hold("namespace/line", 1):
        waiters = []
        for number in range(5):
            waiters.append(asyncio.create_task(wait(number)))
            await asyncio.sleep(0.05)
    await asyncio.gather(*waiters)
    assert served == [0, 1, 2, 3, 4]


async def test_a_waiter_outlives_its_first_lease(etcd_server: EtcdServer, closing: Closing) -> None:
    lock = closing(EtcdLock([address(etcd_server)], lease_seconds=1))
    async with lock.hold("namespace/long", 1):
        waiter = asyncio.create_task(lock.hold("namespace/long", 5).__aenter__())
        await asyncio.sleep(1.8)  # the holder outlives its own just the same
        assert not waiter.done()
    began = time.monotonic()
    await waiter
    assert time.monotonic() - began < 0.2


async def test_nothing_is_left_in_the_queue(etcd_server: EtcdServer, closing: Closing) -> None:
    lock = closing(EtcdLock([address(etcd_server)]))
    async with lock.hold("namespace/clean", 1):
        with pytest.raises(LockUnavailableError, match=r"still taken after 0\.1 s"):
            async with lock.hold("namespace/clean", 0.1):
                pytest.fail("two holders")
    client = Client([address(etcd_server)])
    prefix = b"lock/namespace/clean/"
    assert (await client.range(Range(prefix, prefix_end(prefix)))).kvs == []
    await client.close()


async def test_a_dead_endpoint_is_passed_over(etcd_server: EtcdServer, closing: Closing) -> None:
    lock = closing(EtcdLock([_DEAD, address(etcd_server)]))
    await lock.ping()
    async with lock.hold("namespace/over", 1):
        waiter = asyncio.create_task(lock.hold("namespace/over", 5).__aenter__())
        await asyncio.sleep(0.1)
    await waiter


async def test_no_endpoint_is_said_at_once_by_name(closing: Closing) -> None:
    lock = closing(EtcdLock([_DEAD, Address("127.0.0.1", 2)]))
    began = time.monotonic()
    with pytest.raises(LockUnavailableError, match=r"127\.0\.0\.1:1: Connection refused; 127\.0\.0\.1:2: Connection"):
        async with lock.hold(_NAME, 5):
            pytest.fail("nobody is there")
    with pytest.raises(LockUnavailableError, match=r"127\.0\.0\.1:1"):
        await lock.ping()
    assert time.monotonic() - began < 0.5


async def test_a_frozen_server_holds_nobody_up_beyond_the_bound(
    mortal_etcd_server: EtcdServer, closing: Closing
) -> None:
    lock = closing(EtcdLock([address(mortal_etcd_server)], timeout=0.3))
    async with lock.hold(_NAME, 1):
        pass
    mortal_etcd_server.pause()
    try:
        for timeout, bound in ((0.1, 0.5), (5, 1.0)):
            began = time.monotonic()
            with pytest.raises(LockUnavailableError, match="etcd"):
                async with lock.hold(_NAME, timeout):
                    pytest.fail("nobody answers")
            assert time.monotonic() - began < bound
    finally:
        mortal_etcd_server.resume()


async def test_a_holder_without_its_lease_is_stopped(etcd_server: EtcdServer, closing: Closing) -> None:
    lock = closing(EtcdLock([address(etcd_server)], lease_seconds=1))
    client = Client([address(etcd_server)])
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        stack.enter_context(pytest.raises(LockUnavailableError, match="ended while it was held"))
        await stack.enter_async_context(lock.hold("namespace/lost", 1))
        prefix = b"lock/namespace/lost/"
        for kv in (await client.range(Range(prefix, prefix_end(prefix)))).kvs:
            await client.revoke(kv.lease)
        await asyncio.sleep(60)
    assert time.monotonic() - began < 1
    await client.close()


async def test_a_waiter_without_its_lease_says_so(etcd_server: EtcdServer, closing: Closing) -> None:
    lock = closing(EtcdLock([address(etcd_server)], lease_seconds=1))
    client = Client([address(etcd_server)])
    async with lock.hold("namespace/queue", 1):
        waiter = asyncio.create_task(lock.hold("namespace/queue", 5).__aenter__())
        await asyncio.sleep(0.1)
        prefix = b"lock/namespace/queue/"
        newest = Range(prefix, prefix_end(prefix), limit=1, sort_order="DESCEND", sort_target="CREATE")
        await client.revoke((await client.range(newest)).kvs[0].lease)
        with pytest.raises(LockUnavailableError, match="the lease ended in the queue"):
            await waiter
    await client.close()


async def test_a_holder_whose_etcd_dies_is_stopped(mortal_etcd_server: EtcdServer, closing: Closing) -> None:
    lock = closing(EtcdLock([address(mortal_etcd_server)], lease_seconds=1, timeout=0.3))
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        stack.enter_context(pytest.raises(LockUnavailableError, match="ended while it was held"))
        await stack.enter_async_context(lock.hold(_NAME, 1))
        mortal_etcd_server.kill()
        await asyncio.sleep(60)
    assert 0.5 < time.monotonic() - began < 1.5


async def test_users_log_in_and_do_so_again_once_their_token_is_gone(
    mortal_etcd_server: EtcdServer, closing: Closing
) -> None:
    await _enable_authentication(mortal_etcd_server)
    user = address(mortal_etcd_server)._replace(username="root", password="secret-word")
    lock = closing(EtcdLock([user]))
    async with lock.hold(_NAME, 2):
        pass
    mortal_etcd_server.restart()  # its tokens do not outlive it
    holders = [asyncio.create_task(lock.hold(f"namespace/{number}", 2).__aenter__()) for number in range(5)]
    await asyncio.gather(*holders)
    for wrong in (user._replace(password="wrong-word"), address(mortal_etcd_server)):
        with pytest.raises(LockUnavailableError, match=r"invalid user|user name is empty") as caught:
            async with closing(EtcdLock([wrong])).hold(_NAME, 1):
                pytest.fail("let in")
        assert "-word" not in str(caught.value)


async def test_credentials_do_no_harm_where_authentication_is_off(etcd_server: EtcdServer, closing: Closing) -> None:
    user = address(etcd_server)._replace(username="root", password="secret-word")
    async with closing(EtcdLock([user])).hold("namespace/off", 1):
        pass


async def test_plain_reads_writes_and_refusals(etcd_server: EtcdServer) -> None:
    client = Client([address(etcd_server)])
    try:
        written = await client.put(Put(b"plain/\x00\xff", b"value"))
        read = await client.range(Range(b"plain/", prefix_end(b"plain/")))
        assert [(kv.key, kv.value, kv.create_revision) for kv in read.kvs] == [
            (b"plain/\x00\xff", b"value", written.header.revision)
        ]
        assert (await client.delete(Delete(b"plain/", prefix_end(b"plain/")))).deleted == 1
        with pytest.raises(EtcdRefusedError, match="lease not found") as caught:
            await client.put(Put(b"plain/", lease=1))
        assert caught.value.code == EtcdRefusedError.NOT_FOUND
        assert await client.keep_alive(1) == 0
        await client.revoke(1)
    finally:
        await client.close()


async def _enable_authentication(server: EtcdServer) -> None:
    async with aiohttp.ClientSession(server.url, connector=Connector()) as session:
        for path, body in (
            ("/v3/auth/user/add", {"name": "root", "password": "secret-word"}),
            ("/v3/auth/role/add", {"name": "root"}),
            ("/v3/auth/user/grant", {"user": "root", "role": "root"}),
            ("/v3/auth/enable", {}),
        ):
            async with session.post(path, json=body) as response:
                assert response.status == 200, await response.text()
