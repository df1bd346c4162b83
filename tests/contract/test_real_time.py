"""Every store as it ships, in real time: what the rest of the suite says of given times holds of the server's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from at_least_semaphore_pod_hook.semaphore.contracts import Store
from at_least_semaphore_pod_hook.semaphore.model import Fence, Outcome
from tests.contract.subjects import Subject
from tests.contract.wishes import KEY, wish

LENGTH = 1


@pytest.fixture
async def shipped(subject: Subject) -> AsyncIterator[Store]:
    store = subject.open()
    step = await store.begin(KEY, Fence("redlock", 0))
    await store.set_length(KEY, LENGTH, step.fence)
    yield store
    await store.close()


async def test_a_permit_is_free_when_its_lease_has_ended(shipped: Store) -> None:
    started = time.monotonic()
    await shipped.acquire(wish("a", length=LENGTH, expiration_seconds=2))
    async with asyncio.timeout(15):
        while (answer := await shipped.acquire(wish("b", length=LENGTH))).outcome is Outcome.FULL:
            assert answer.held == 1
            await asyncio.sleep(0.02)
    assert (answer.outcome, answer.held) == (Outcome.GRANTED, 1)
    assert time.monotonic() - started >= 1.99
    assert await shipped.renew(KEY, "a", "pod-a") == 0


async def test_a_renewal_starts_the_lease_anew(shipped: Store) -> None:
    await shipped.acquire(wish("a", length=LENGTH, expiration_seconds=2))
    await asyncio.sleep(1.2)
    assert await shipped.renew(KEY, "a", "pod-a") == 2000
    await asyncio.sleep(1.2)
    (holder,) = (await shipped.state(KEY)).holders
    assert (holder.pod, holder.confirmed, holder.expiration_ms) == ("pod-a", True, 2000)
    assert 0 <= holder.lease_ms <= 1000
    assert holder.age_ms >= 2000
    assert 1000 <= holder.silent_ms < holder.age_ms


async def test_a_permits_way_from_grant_to_end(shipped: Store) -> None:
    before_us = time.time() * 1_000_000
    first = await shipped.acquire(wish("a", length=LENGTH))
    assert before_us - 10_000_000 < first.token < before_us + 60_000_000
    assert (await shipped.acquire(wish("b", length=LENGTH, carried="a", identity="id-a"))).outcome is Outcome.RESUMED
    assert await shipped.keep(KEY, "a", "pod-a", "uid-a") == 60_000
    assert await shipped.renew(KEY, "a", "pod-a") == 60_000
    assert await shipped.reclaim(KEY) == 0
    assert await shipped.release(KEY, "a", "pod-a", ended=True) is True
    assert await shipped.renew(KEY, "a", "pod-a") == -1
    assert (await shipped.acquire(wish("a", length=LENGTH))).token > first.token
