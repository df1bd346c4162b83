"""The etcd store over three members that fail, freeze and are cut off."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.semaphore.model import Outcome
from devcluster.topologies_etcd import EtcdGroup
from tests.contract.etcd.stores import create, until, wish
from tests.contract.wishes import KEY

if TYPE_CHECKING:
    from tests.contract.etcd.stores import Opener


async def test_a_group_goes_on_without_its_leader(group: EtcdGroup, opened: Opener) -> None:
    store = opened(*group.members)
    await create(store, 10)
    await store.acquire(wish("a", 10))
    leader = group.leader()
    leader.kill()
    answer = await store.acquire(wish("b", 10), 5)
    assert (answer.outcome, answer.held) == (Outcome.GRANTED, 2)
    assert await store.renew(KEY, "a", "pod-a") == 60_000
    group.start(leader)
    rejoined = opened(leader)
    assert (await rejoined.acquire(wish("c", 10), 5)).held == 3


async def test_a_frozen_leader_costs_a_second(group: EtcdGroup, opened: Opener) -> None:
    leader = group.leader()
    store = opened(leader, *group.followers())
    await create(store, 10)
    changes = store.changes()
    heard = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.2)
    leader.pause()
    try:
        began = time.monotonic()
        assert (await store.acquire(wish("a", 10), 8)).outcome is Outcome.GRANTED
        assert time.monotonic() - began < 4
        assert await store.renew(KEY, "a", "pod-a") == 60_000
        assert await store.release(KEY, "a", "pod-a") is True
        # The watch was at the frozen member: that is noticed, and what was missed is heard all the same.
        async with asyncio.timeout(10):
            assert await heard == KEY
    finally:
        leader.resume()
        await changes.aclose()  # type: ignore[attr-defined]


async def test_a_member_that_is_cut_off_is_passed_over(group: EtcdGroup, opened: Opener) -> None:
    first, second, third = group.members
    store = opened(*group.members)
    await create(store, 10)
    alone = opened(first)
    second.pause()
    third.pause()
    try:
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=first.address):
            await alone.acquire(wish("x", 10), 1.5)
        assert time.monotonic() - began < 2
    finally:
        second.resume()
        third.resume()
    answer = await store.acquire(wish("a", 10), 8)
    assert (answer.outcome, answer.held) == (Outcome.GRANTED, 1)


async def test_exclusion_holds_while_leaders_come_and_go(group: EtcdGroup, opened: Opener) -> None:
    stores = [opened(*group.members[n:], *group.members[:n]) for n in range(3)]
    await create(stores[0], 4)
    over = time.monotonic() + 6
    holding: dict[str, int] = {}
    most = grants = 0

    async def churn(number: int) -> None:
        nonlocal most, grants
        store, turn = stores[number % 3], 0
        while time.monotonic() < over:
            turn += 1
            permit = f"p{number}-{turn}"
            try:
                answer = await store.acquire(wish(permit, 4), 3)
            except StoreUnavailableError:
                continue
            if answer.outcome is not Outcome.GRANTED:
                await asyncio.sleep(0.01)
                continue
            holding[permit] = answer.token
            grants += 1
            most = max(most, len(holding))
            await asyncio.sleep(0.01)
            del holding[permit]
            with contextlib.suppress(StoreUnavailableError):
                await store.release(KEY, permit)

    async def disturb() -> None:
        for n in range(3):
            await asyncio.sleep(0.8)
            leader = await asyncio.to_thread(group.leader)
            if n % 2:
                leader.pause()
                await asyncio.sleep(0.8)
                leader.resume()
            else:
                await asyncio.to_thread(leader.kill)
                await asyncio.sleep(0.5)
                await asyncio.to_thread(group.start, leader)

    await asyncio.gather(disturb(), *(churn(number) for number in range(9)))
    assert most <= 4
    assert grants > 20

    async def nothing_is_lost() -> bool:
        state = await stores[0].state(KEY)
        for permit in state.permits:
            await stores[0].release(KEY, permit)
        return state.held == 0

    await until(nothing_is_lost, 10)
