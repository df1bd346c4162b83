"""The etcd store with semaphores that have many holders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.etcd import Client, Range
from at_least_semaphore_pod_hook.semaphore.model import Adoptee, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.stores.etcd import listening
from at_least_semaphore_pod_hook.stores.etcd.leases import MAX_ASKED_ANEW
from at_least_semaphore_pod_hook.stores.etcd.store import EtcdStore
from devcluster.stores import EtcdServer
from tests.contract.etcd.stores import create, wish
from tests.contract.etcd_subject import EtcdSubject
from tests.contract.wishes import KEY, REDLOCK

if TYPE_CHECKING:
    import pytest


async def test_more_than_are_counted_are_exact_at_the_bound(store: EtcdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("at_least_semaphore_pod_hook.etcd_permits.EXACT", 4)
    monkeypatch.setattr("at_least_semaphore_pod_hook.stores.etcd.acquiring.EXACT", 4)
    await create(store, 8)
    for n in range(8):
        assert (await store.acquire(wish(f"p{n}", 8))).outcome is Outcome.GRANTED
    assert (await store.acquire(wish("late", 8))).outcome is Outcome.FULL
    for n in range(3):
        assert await store.release(KEY, f"p{n}")
    # Whose lease ends lowers no bound: only a count tells.
    client = Client([address_of(store)])
    (kv,) = (await client.range(Range(b"inflight/default/resource-name/p3"))).kvs
    await client.revoke(kv.lease)
    await client.close()
    outcomes = [(await store.acquire(wish(f"q{n}", 8))).outcome for n in range(5)]
    assert outcomes == [Outcome.GRANTED] * 4 + [Outcome.FULL]
    assert (await store.state(KEY)).held == 8


async def test_semaphores_with_many_holders_are_named_once(store: EtcdStore) -> None:
    keys = [SemaphoreKey("a", "many"), SemaphoreKey("a", "many.more"), SemaphoreKey("b", "few")]
    for key in keys:
        step = await store.begin(key, REDLOCK)
        many = listening.PAGE + 50 if key.key == "many" else 2
        lost = [Adoptee(f"p{n}", "pod", "uid", n + 1, 600) for n in range(many)]
        assert await store.adopt(key, lost, step.fence) == many
    assert sorted([key async for key in store.semaphores()]) == keys


async def test_of_many_holders_it_is_known_what_is_left_at_least(etcd_server: EtcdServer) -> None:
    subject = EtcdSubject([etcd_server.port])
    store, other = subject.stores
    step = await store.begin(KEY, REDLOCK)
    many = [Adoptee(f"p{n}", "pod", "uid", n + 1, 60) for n in range(MAX_ASKED_ANEW + 1)]
    await store.adopt(KEY, many, step.fence)

    async def left() -> set[int]:
        return {holder.lease_ms for holder in (await store.state(KEY)).holders}

    assert await left() == {60_000}
    subject.advance(20)
    for one in many[:5]:
        await other.renew(KEY, one.permit, "pod")
    # Those were not asked about again: half of what was known of their leases is left.
    assert await left() == {40_000}
    subject.advance(10)
    assert await left() == {50_000, 30_000}
    await store.renew(KEY, "p7", "pod")
    assert await left() == {50_000, 30_000, 60_000}
    await subject.close()


def address_of(store: EtcdStore) -> Address:
    return store._client._endpoints[0]
