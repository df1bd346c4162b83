"""The etcd store under competing callers, and where answers are lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.etcd import Client
from at_least_semaphore_pod_hook.etcd.outcomes import UnansweredError
from at_least_semaphore_pod_hook.locks.etcd import EtcdLock
from at_least_semaphore_pod_hook.semaphore.model import Adoptee, Outcome
from at_least_semaphore_pod_hook.semaphore.service import SemaphoreService
from at_least_semaphore_pod_hook.stores.etcd.store import EtcdStore
from devcluster.stores import EtcdServer
from tests.contract.etcd.stores import create, until, wish
from tests.contract.lock_backends import address
from tests.contract.wishes import KEY, REDLOCK

if TYPE_CHECKING:
    from tests.contract.etcd.stores import Opener


async def test_three_processes_with_thirty_callers_each_get_exactly_ten(
    store: EtcdStore, etcd_server: EtcdServer, opened: Opener
) -> None:
    await create(store, 10)
    stores = [store, opened(etcd_server), opened(etcd_server)]
    answers = await asyncio.gather(
        *(one.acquire(wish(f"p{number}-{n}", 10), 10) for number, one in enumerate(stores) for n in range(30))
    )
    granted = [answer for answer in answers if answer.outcome is Outcome.GRANTED]
    assert len(granted) == 10
    assert len({answer.token for answer in granted}) == 10
    assert all(answer.held == 10 for answer in answers if answer.outcome is Outcome.FULL)
    assert {holder.permit for holder in (await store.state(KEY)).holders} == {answer.permit for answer in granted}


async def test_churn_loses_no_permit_and_gives_none_twice(
    store: EtcdStore, etcd_server: EtcdServer, opened: Opener
) -> None:
    await create(store, 5)
    stores = [store, opened(etcd_server), opened(etcd_server)]
    holding: set[str] = set()
    most = grants = 0
    tokens: list[int] = []

    async def churn(one: EtcdStore, name: str) -> None:
        nonlocal most, grants
        for turn in range(12):
            permit = f"{name}-{turn}"
            answer = await one.acquire(wish(permit, 5), 10)
            if answer.outcome is not Outcome.GRANTED:
                continue
            holding.add(permit)
            tokens.append(answer.token)
            grants += 1
            most = max(most, len(holding))
            await asyncio.sleep(0.002)
            holding.remove(permit)
            assert await one.release(KEY, permit)

    await asyncio.gather(*(churn(one, f"p{number}-{n}") for number, one in enumerate(stores) for n in range(4)))
    assert most <= 5
    assert grants >= 12
    assert len(set(tokens)) == grants
    assert (await store.state(KEY)).free == 5
    refilled = [await store.acquire(wish(f"last-{n}", 5)) for n in range(6)]
    assert [answer.outcome for answer in refilled] == [Outcome.GRANTED] * 5 + [Outcome.FULL]


class Cut(Client):
    """Loses the answers to what is written, or the requests themselves, as often as it is told."""

    lose_answers = lose_requests = 0

    async def _post(self, endpoint: Address, path: str, body: bytes, token: str) -> bytes:
        if path.endswith("/txn") and b'"compare":[{' in body:
            if self.lose_requests:
                self.lose_requests -= 1
                raise UnansweredError("lost on the way")
            if self.lose_answers:
                self.lose_answers -= 1
                await super()._post(endpoint, path, body, token)
                raise UnansweredError("its answer was lost")
        return await super()._post(endpoint, path, body, token)


@pytest.mark.parametrize("lost", ["lose_answers", "lose_requests"])
async def test_what_gets_no_answer_is_done_once(store: EtcdStore, etcd_server: EtcdServer, lost: str) -> None:
    await create(store, 2)
    client = Cut([address(etcd_server)], patience=2)
    cut = EtcdStore(client)
    setattr(client, lost, 1)
    granted = await cut.acquire(wish("a", 2))
    assert (granted.outcome, granted.held) == (Outcome.GRANTED, 1)
    assert await store.renew(KEY, "a", "pod-a") == 60_000
    setattr(client, lost, 1)
    step = await cut.begin(KEY, REDLOCK)
    setattr(client, lost, 1)
    assert await cut.adopt(KEY, [Adoptee("b", "pod-b", "uid-b", 1, 60), Adoptee("a", "", "", 1, 60)], step.fence) == 1
    assert (await store.state(KEY)).permits == {"a", "b"}
    setattr(client, lost, 1)
    # Nobody can tell who has deleted it where the answer was lost.
    assert await cut.release(KEY, "a", "pod-a") is (lost == "lose_requests")
    assert (await store.state(KEY)).permits == {"b"}
    await cut.close()


async def test_a_grant_in_doubt_is_not_applied_later(store: EtcdStore, etcd_server: EtcdServer) -> None:
    await create(store, 1)
    client = Cut([address(etcd_server)])
    cut = EtcdStore(client)
    client.lose_answers = 1_000
    with pytest.raises(StoreUnavailableError, match="its answer was lost"):
        await cut.acquire(wish("a", 1))

    async def is_free() -> bool:
        return (await store.state(KEY)).held == 0

    await until(is_free)
    await cut.close()


async def test_callers_that_give_up_leave_nothing(store: EtcdStore) -> None:
    await create(store, 100)
    tasks = [asyncio.create_task(store.acquire(wish(f"p{n}", 100))) for n in range(40)]
    await asyncio.sleep(0.03)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    granted = {answer.permit for answer in answers if not isinstance(answer, BaseException)}
    assert len(granted) >= 20

    async def rest_is_free() -> bool:
        return (await store.state(KEY)).permits == granted

    await until(rest_is_free)


async def test_the_lock_of_the_same_cluster_guards_first_use_and_resize(
    store: EtcdStore, etcd_server: EtcdServer
) -> None:
    lock = EtcdLock([address(etcd_server)])
    service = SemaphoreService(store, lock)
    answers = await asyncio.gather(*(service.acquire(wish(f"p{n}", 2), 9) for n in range(6)))
    outcomes = [answer.acquired.outcome for answer in answers]
    assert (outcomes.count(Outcome.GRANTED), outcomes.count(Outcome.FULL)) == (2, 4)
    resized = await service.acquire(wish("late", 3), 9)
    assert (resized.acquired.outcome, resized.acquired.held, resized.replaced_length) == (Outcome.GRANTED, 3, 2)
    await service.close()
