"""Leases of the etcd store over real time."""

from __future__ import annotations

import asyncio
import time

from at_least_semaphore_pod_hook.semaphore.model import Outcome
from at_least_semaphore_pod_hook.stores.etcd.store import EtcdStore
from tests.contract.etcd.stores import create, wish
from tests.contract.wishes import KEY


async def test_a_lease_that_ends_frees_the_permit_and_is_told(store: EtcdStore) -> None:
    await create(store, 1)
    changes = store.changes()
    heard = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await store.acquire(wish("a", 1, expiration_seconds=2))
    assert await store.renew(KEY, "a", "pod-a") == 2_000
    assert (await store.acquire(wish("b", 1))).outcome is Outcome.FULL
    async with asyncio.timeout(6):
        assert await heard == KEY
    assert time.monotonic() - began > 1.9
    assert await store.renew(KEY, "a", "pod-a") == 0
    assert await store.release(KEY, "a", "pod-a") is False
    granted = await store.acquire(wish("b", 1))
    assert (granted.outcome, granted.held) == (Outcome.GRANTED, 1)
    await changes.aclose()  # type: ignore[attr-defined]


async def test_what_is_renewed_lives(store: EtcdStore) -> None:
    await create(store)
    await store.acquire(wish("a", expiration_seconds=1))
    for _ in range(8):
        await asyncio.sleep(0.3)
        assert await store.renew(KEY, "a", "pod-a") == 1_000
    await store.release(KEY, "a")


async def test_real_leases_tell_age_and_silence(store: EtcdStore) -> None:
    await create(store)
    await store.acquire(wish("a", expiration_seconds=10))
    await asyncio.sleep(2.2)
    (holder,) = (await store.state(KEY)).holders
    assert 2_000 <= holder.age_ms <= 3_300
    assert 6_500 <= holder.lease_ms <= 8_000
    await store.keep(KEY, "a", "pod-a", "uid-a")
    (holder,) = (await store.state(KEY)).holders
    assert 8_900 <= holder.lease_ms <= 10_000
    assert 2_000 <= holder.silent_ms <= 4_300
    await store.renew(KEY, "a", "pod-a")
    (holder,) = (await store.state(KEY)).holders
    assert holder.silent_ms <= 1_100
