"""The batcher against a server that misbehaves."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import pytest

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.stores.redis.store import RedisStore, open_redis_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.sidecar_harness import Server

KEY = SemaphoreKey("ns", "key")


def wish(number: int) -> AcquireRequest:
    return AcquireRequest(KEY, 1000, 60, f"permit-{number}", f"identity-{number}")


@pytest.fixture
async def store(server: Server) -> AsyncIterator[RedisStore]:
    store = open_redis_store(Address("127.0.0.1", server.port), timeout=1)
    step = await store.begin(KEY, Fence("redlock", 0))
    await store.set_length(KEY, 1000, step.fence)
    yield store
    await store.close()


async def test_many_calls_of_one_turn_are_each_answered(store: RedisStore) -> None:
    answers = await asyncio.gather(*(store.acquire(wish(number)) for number in range(600)))
    assert [answer.permit for answer in answers] == [f"permit-{number}" for number in range(600)]
    assert len({answer.token for answer in answers}) == 600


async def test_a_restarted_server_is_found_again_without_an_error(store: RedisStore, server: Server) -> None:
    await store.acquire(wish(1))
    server.stop()
    server.start()
    # The connection is gone, and so are the scripts.
    answers = await asyncio.gather(*(store.acquire(wish(number)) for number in range(10)))
    assert sum(answer.outcome is Outcome.INCOMPLETE for answer in answers) == 9
    assert (await store.state(KEY)).held == 1


async def test_a_server_that_is_down_is_said_at_once(store: RedisStore, server: Server) -> None:
    server.stop()
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=f"the store at 127.0.0.1:{server.port} did not acquire"):
        await store.acquire(wish(1))
    assert time.monotonic() - started < 0.5


async def test_a_paused_server_costs_no_more_than_the_deadline(store: RedisStore, server: Server) -> None:
    server.signal(signal.SIGSTOP)
    started = time.monotonic()
    try:
        results = await asyncio.gather(
            *(store.acquire(wish(number), timeout=0.3) for number in range(3)), return_exceptions=True
        )
        waited = time.monotonic() - started
        late = asyncio.create_task(store.acquire(wish(3), timeout=0.3))
        with pytest.raises(StoreUnavailableError, match="no answer in time"):
            await late
    finally:
        server.signal(signal.SIGCONT)
    assert all(isinstance(result, StoreUnavailableError) for result in results)
    assert waited < 0.6
    assert (await store.acquire(wish(4), timeout=3)).outcome is Outcome.GRANTED


async def test_a_caller_that_gives_up_leaves_the_others_alone(store: RedisStore) -> None:
    tasks = [asyncio.create_task(store.acquire(wish(number))) for number in range(5)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[2], asyncio.CancelledError)
    others = [result for number, result in enumerate(results) if number != 2]
    assert [getattr(result, "permit", result) for result in others] == [f"permit-{n}" for n in (0, 1, 3, 4)]


async def test_a_server_error_is_that_calls_alone(
    new_server: Callable[..., Server],
) -> None:
    server = new_server("--maxmemory", "1", "--maxmemory-policy", "noeviction")
    store = open_redis_store(Address("127.0.0.1", server.port), timeout=1)
    with pytest.raises(StoreUnavailableError, match=r"did not begin: .*maxmemory"):
        await store.begin(KEY, Fence("redlock", 0))
    assert (await store.state(KEY)).length == 0
    await store.close()


async def test_out_of_memory_ends_grants_and_keeps_holders(store: RedisStore, server: Server) -> None:
    await store.acquire(wish(1))
    server.client.config_set("maxmemory-policy", "noeviction")
    server.client.config_set("maxmemory", "1")
    with pytest.raises(StoreUnavailableError, match="maxmemory"):
        await store.acquire(wish(2))
    assert await store.renew(KEY, "permit-1", "pod") == 60_000
    assert await store.reclaim(KEY) == 0
    assert await store.release(KEY, "permit-1", ended=True)
    assert await store.renew(KEY, "permit-1", "pod") == -1


async def test_keys_that_are_none_of_ours_are_passed_over(store: RedisStore, server: Server) -> None:
    await store.acquire(wish(1))
    for name in (b"inflight/{/x}", b"inflight/{\xff/x}", b"inflight/{a/b/c}", b"inflight/{x}", b"inflight/{A/x}"):
        server.client.zadd(name, {"x": 1})
    server.client.set("inflight/{ns/text}", "x")
    assert [key async for key in store.semaphores()] == [KEY]
