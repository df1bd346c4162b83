"""Many calls at once, of two store objects: as two replicas of the webhook make them."""

from __future__ import annotations

import asyncio
import itertools

from at_least_semaphore_pod_hook.semaphore.contracts import Store
from at_least_semaphore_pod_hook.semaphore.model import Outcome
from tests.contract.subjects import Subject
from tests.contract.wishes import KEY, create, wish


async def test_64_at_once_by_two_replicas_on_10_permits_are_exactly_10(subject: Subject) -> None:
    await create(subject, length=10)
    stores = itertools.cycle(subject.stores)
    answers = await asyncio.gather(*(next(stores).acquire(wish(f"p{n}", length=10)) for n in range(64)))
    granted = {answer.permit: answer.token for answer in answers if answer.outcome is Outcome.GRANTED}
    assert len(granted) == len(set(granted.values())) == 10
    assert {answer.outcome for answer in answers} == {Outcome.GRANTED, Outcome.FULL}
    state = await subject.store.state(KEY)
    assert {holder.permit: holder.token for holder in state.holders} == granted


async def test_one_pod_that_asks_two_replicas_gets_one_permit(subject: Subject) -> None:
    await create(subject)
    stores = itertools.cycle(subject.stores)
    answers = await asyncio.gather(*(next(stores).acquire(wish("a")) for _ in range(16)))
    assert sorted(answer.outcome for answer in answers) == [Outcome.GRANTED, *[Outcome.RESUMED] * 15]
    assert len({answer.token for answer in answers}) == 1
    assert (await subject.store.state(KEY)).held == 1


async def test_permits_that_come_and_go_are_never_too_many_and_none_is_lost(subject: Subject) -> None:
    length = 3
    await create(subject, length=length)
    inside: set[str] = set()

    async def acquire(store: Store, permit: str) -> None:
        while True:
            if (await store.acquire(wish(permit, length=length))).outcome is Outcome.GRANTED:
                return
            await asyncio.sleep(0)

    async def come_and_go(store: Store, name: str) -> None:
        for number in range(8):
            permit = f"{name}-{number}"
            await acquire(store, permit)
            inside.add(permit)
            assert len(inside) <= length
            state = await store.state(KEY)
            assert permit in state.permits
            assert state.held <= length
            inside.remove(permit)
            assert await store.release(KEY, permit)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(come_and_go(subject.stores[number % 2], f"p{number}"))
    state = await subject.store.state(KEY)
    assert (state.held, state.free) == (0, length)


async def test_a_late_renewal_that_meets_a_sweep_and_a_grant_ends_with_one_holder(subject: Subject) -> None:
    await create(subject, length=1)
    for number in range(20):
        old, new = f"old-{number}", f"new-{number}"
        assert (await subject.store.acquire(wish(old, length=1))).outcome is Outcome.GRANTED
        subject.advance(60)
        one, other = subject.stores if number % 2 else reversed(subject.stores)
        reclaimed, lease_ms, acquired = await asyncio.gather(
            one.reclaim(KEY), other.renew(KEY, old, "pod"), one.acquire(wish(new, length=1))
        )
        revived = lease_ms > 0
        assert acquired.outcome is (Outcome.FULL if revived else Outcome.GRANTED)
        assert reclaimed == 0 or not revived
        winner = old if revived else new
        assert (await subject.store.state(KEY)).permits == {winner}
        assert await subject.store.release(KEY, winner)


async def test_a_semaphore_that_is_read_while_a_permit_goes_back_is_as_before_or_after(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("stays"))
    for number in range(40):
        permit = f"p{number}"
        await subject.store.acquire(wish(permit))
        releasing = asyncio.ensure_future(subject.stores[0].release(KEY, permit))
        states = await asyncio.gather(*(subject.stores[1].state(KEY) for _ in range(5)))
        assert await releasing
        for state in states:
            assert state.permits in ({"stays"}, {"stays", permit})
            assert all(holder.lease_ms == 60_000 for holder in state.holders)
