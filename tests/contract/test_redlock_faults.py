"""The redlock with servers that are down, frozen, restarted or not what they should be."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from at_least_semaphore_pod_hook.errors import LockUnavailableError
from at_least_semaphore_pod_hook.locks.redlock import Redlock
from at_least_semaphore_pod_hook.redis_client import connect
from tests.contract.lock_backends import address

if TYPE_CHECKING:
    from collections.abc import Callable

    from at_least_semaphore_pod_hook.semaphore.contracts import Lock
    from devcluster.stores import RedisServer

    Closing = Callable[[Lock], Lock]

_NAME = "namespace/key"
_KEY = "lock/namespace/key"


def _redlock(servers: list[RedisServer], ttl: float = 1.5) -> Redlock:
    return Redlock([address(server) for server in servers], ttl=ttl, node_timeout=0.2)


async def test_a_minority_may_be_down(mortal_redis_servers: list[RedisServer], closing: Closing) -> None:
    lock, other = closing(_redlock(mortal_redis_servers)), closing(_redlock(mortal_redis_servers))
    mortal_redis_servers[0].kill()
    await lock.ping()
    async with lock.hold(_NAME, 1):
        with pytest.raises(LockUnavailableError, match=f"still taken.*{mortal_redis_servers[0].address}"):
            async with other.hold(_NAME, 0.2):
                pytest.fail("two holders")
    async with other.hold(_NAME, 0.3):
        pass


async def test_a_majority_that_is_down_is_said_at_once_by_name(
    mortal_redis_servers: list[RedisServer], closing: Closing
) -> None:
    lock = closing(_redlock(mortal_redis_servers))
    async with lock.hold(_NAME, 1):
        pass
    for server in mortal_redis_servers[:2]:
        server.kill()
    began = time.monotonic()
    with pytest.raises(LockUnavailableError, match="needs 2 of 3 Redis servers") as caught:
        async with lock.hold(_NAME, 5):
            pytest.fail("no majority")
    assert time.monotonic() - began < 0.3
    with pytest.raises(LockUnavailableError, match="needs 2 of 3 Redis servers"):
        await lock.ping()
    for server in mortal_redis_servers:
        assert (server.address in str(caught.value)) is (server is not mortal_redis_servers[2])
    # The one vote that was had is given back at once.
    assert await _read(mortal_redis_servers[2]) is None


async def test_servers_that_came_back_are_used_again(mortal_redis_servers: list[RedisServer], closing: Closing) -> None:
    lock = closing(_redlock(mortal_redis_servers))
    async with lock.hold(_NAME, 1):
        pass
    for server in mortal_redis_servers:
        server.kill()
        server.start()
    async with lock.hold(_NAME, 1):
        pass


async def test_a_frozen_minority_costs_no_time(mortal_redis_servers: list[RedisServer], closing: Closing) -> None:
    lock = closing(_redlock(mortal_redis_servers))
    async with lock.hold(_NAME, 1):
        pass
    mortal_redis_servers[1].pause()
    try:
        began = time.monotonic()
        async with lock.hold(_NAME, 1):
            pass
        async with lock.hold(_NAME, 1):
            pass
        assert time.monotonic() - began < 0.15
    finally:
        mortal_redis_servers[1].resume()


async def test_a_frozen_majority_holds_nobody_up_beyond_the_bound(
    mortal_redis_servers: list[RedisServer], closing: Closing
) -> None:
    lock = closing(_redlock(mortal_redis_servers))
    for server in mortal_redis_servers[:2]:
        server.pause()
    try:
        for timeout, bound in ((0.1, 0.3), (5, 0.8)):
            began = time.monotonic()
            with pytest.raises(LockUnavailableError, match=r"needs 2 of 3 Redis servers.*no answer in time"):
                async with lock.hold(_NAME, timeout):
                    pytest.fail("no majority")
            assert time.monotonic() - began < bound
    finally:
        for server in mortal_redis_servers[:2]:
            server.resume()


async def test_what_a_slow_server_still_applied_is_removed_as_well(
    mortal_redis_servers: list[RedisServer], closing: Closing
) -> None:
    slow = mortal_redis_servers[2]
    lock = closing(_redlock(mortal_redis_servers, ttl=30))
    await lock.ping()
    slow.pause()
    async with lock.hold(_NAME, 1):
        await asyncio.sleep(0.05)
        slow.resume()
    await lock.close()
    assert [await _read(server) for server in mortal_redis_servers] == [None] * 3


async def test_a_holder_that_takes_too_long_is_stopped(redis_servers: list[RedisServer], closing: Closing) -> None:
    lock, other = closing(_redlock(redis_servers[:3], ttl=0.5)), closing(_redlock(redis_servers[:3]))
    began = time.monotonic()
    with pytest.raises(LockUnavailableError, match="ended while it was held"):
        async with lock.hold("namespace/slow", 1):
            await asyncio.sleep(60)
    assert time.monotonic() - began < 0.6
    async with other.hold("namespace/slow", 1):
        pass


async def test_the_lock_of_another_is_never_removed(redis_servers: list[RedisServer], closing: Closing) -> None:
    servers = redis_servers[:3]
    lock, other = closing(_redlock(servers, ttl=0.3)), closing(_redlock(servers))
    async with AsyncExitStack() as stack:
        async with lock.hold("namespace/late", 1):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            # Stopped in time, it goes on all the same, as one that was paused would.
            await stack.enter_async_context(other.hold("namespace/late", 1))
        with pytest.raises(LockUnavailableError, match="still taken"):
            async with lock.hold("namespace/late", 0.1):
                pytest.fail("two holders")


async def test_user_and_password_are_used_and_never_told(
    mortal_redis_servers: list[RedisServer], closing: Closing
) -> None:
    server = mortal_redis_servers[0]
    client: Any = connect(address(server), timeout=1, max_connections=1)
    await client.execute_command("ACL", "SETUSER", "hook", "on", ">secret-word", "~lock/*", "+@all")
    await client.execute_command("ACL", "SETUSER", "default", "off")
    await client.aclose()
    right = address(server)._replace(username="hook", password="secret-word", database=3)
    async with closing(Redlock([right])).hold(_NAME, 1):
        pass
    for wrong in (right._replace(password="wrong-word"), address(server)):
        with pytest.raises(LockUnavailableError) as caught:
            async with closing(Redlock([wrong])).hold(_NAME, 1):
                pytest.fail("let in")
        assert server.address in str(caught.value)
        assert "-word" not in str(caught.value)


async def _read(server: RedisServer) -> object:
    client = connect(address(server), timeout=1, max_connections=1)
    try:
        return await client.get(_KEY)
    finally:
        await client.aclose()
