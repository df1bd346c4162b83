"""What `Store`'s docstrings promise, over every store: lengths, guarded steps, epochs and rebuilds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from at_least_semaphore_pod_hook.errors import StaleFenceError
from at_least_semaphore_pod_hook.semaphore.model import (
    Adoptee,
    Fence,
    Outcome,
)
from tests.contract.wishes import KEY, REDLOCK, create, wish

if TYPE_CHECKING:
    from tests.contract.subjects import Subject


async def test_another_length_is_said_and_not_applied(subject: Subject) -> None:
    await create(subject, length=3)
    await subject.store.acquire(wish("a"))
    other = await subject.store.acquire(wish("b", length=5))
    assert (other.outcome, other.length, other.held) == (Outcome.OTHER_LENGTH, 3, 1)
    assert (await subject.store.acquire(wish("b", length=0))).outcome is Outcome.GRANTED


async def test_shrinking_drains_and_takes_no_permit_away(subject: Subject) -> None:
    await create(subject, length=3)
    for permit in "abc":
        await subject.store.acquire(wish(permit))
    await create(subject, length=1)
    state = await subject.store.state(KEY)
    assert (state.length, state.held, state.free) == (1, 3, 0)
    for permit in "ab":
        assert (await subject.store.acquire(wish("d", length=1))).outcome is Outcome.FULL
        assert await subject.store.release(KEY, permit)
    assert (await subject.store.acquire(wish("d", length=1))).outcome is Outcome.FULL
    await subject.store.release(KEY, "c")
    assert (await subject.store.acquire(wish("d", length=1))).outcome is Outcome.GRANTED


async def test_a_step_that_was_overtaken_writes_nothing(subject: Subject) -> None:
    paused = await subject.store.begin(KEY, REDLOCK)
    newer = await subject.store.begin(KEY, REDLOCK)
    assert newer.fence.token > paused.fence.token
    await subject.store.set_length(KEY, 4, newer.fence)
    with pytest.raises(StaleFenceError):
        await subject.store.set_length(KEY, 9, paused.fence)
    assert (await subject.store.state(KEY)).length == 4
    await subject.store.set_length(KEY, 5, newer.fence)


async def test_a_locks_own_tokens_are_compared_within_their_domain(subject: Subject) -> None:
    newer = await subject.store.begin(KEY, Fence("etcd/1", 20))
    with pytest.raises(StaleFenceError):
        await subject.store.begin(KEY, Fence("etcd/1", 19))
    again = await subject.store.begin(KEY, Fence("etcd/1", 20))
    assert newer.fence == again.fence == Fence("etcd/1", 20)
    rebuilt_cluster = await subject.store.begin(KEY, Fence("etcd/2", 3))
    assert rebuilt_cluster.fence.token == 3


async def test_a_step_sees_what_is_there(subject: Subject) -> None:
    step = await subject.store.begin(KEY, REDLOCK)
    assert (step.length, step.held) == (0, 0)
    await subject.store.set_length(KEY, 3, step.fence)
    await subject.store.acquire(wish("a"))
    step = await subject.store.begin(KEY, REDLOCK)
    assert (step.length, step.held) == (3, 1)


async def test_a_length_of_a_million_costs_no_more_than_one(subject: Subject) -> None:
    await create(subject, length=1_000_000)
    await subject.store.acquire(wish("a", length=1_000_000))
    assert (await subject.store.state(KEY)).free == 999_999
    assert len(repr(subject.dump())) < 2_000


async def test_in_a_new_epoch_nothing_is_granted_before_a_guarded_step(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a"))
    await subject.store.renew(KEY, "a", "pod-a")
    assert (await subject.store.state(KEY)).complete
    subject.begin_epoch()
    before = subject.dump()
    refused = await subject.store.acquire(wish("b", owner="Job/b"))
    assert (refused.outcome, refused.length, refused.held) == (Outcome.INCOMPLETE, 3, 1)
    assert (await subject.store.acquire(wish("b", length=0))).outcome is Outcome.INCOMPLETE
    assert (await subject.store.acquire(wish("b", dry_run=True))).outcome is Outcome.GRANTED
    assert subject.dump() == before
    assert not (await subject.store.state(KEY)).complete
    # Whoever holds a permit goes on.
    assert await subject.store.renew(KEY, "a", "pod-a") == 60_000
    assert (await subject.store.acquire(wish("a"))).outcome is Outcome.RESUMED
    step = await subject.store.begin(KEY, REDLOCK)
    assert (step.length, step.held, step.complete) == (3, 1, False)
    await subject.store.set_length(KEY, 3, step.fence)
    assert (await subject.store.begin(KEY, REDLOCK)).complete
    assert (await subject.store.acquire(wish("b"))).outcome is Outcome.GRANTED


async def test_a_semaphore_that_does_not_exist_is_not_complete(subject: Subject) -> None:
    assert not (await subject.store.begin(KEY, REDLOCK)).complete
    assert not (await subject.store.state(KEY)).complete


async def test_lost_holders_are_put_back_with_their_tokens(subject: Subject) -> None:
    await create(subject)
    first = await subject.store.acquire(wish("a"))
    second = await subject.store.acquire(wish("b"))
    await subject.store.renew(KEY, "a", "pod-a")
    subject.lose(KEY, "b")
    subject.begin_epoch()
    ahead = second.token + 1_000_000_000_000
    step = await subject.store.begin(KEY, REDLOCK)
    lost = [
        Adoptee("a", "other", "uid-a", 1, 5),
        Adoptee("b", "pod-b", "uid-b", second.token, 30),
        Adoptee("c", "pod-c", "uid-c", ahead, 30),
        Adoptee("d", "pod-d", "uid-d", 0, 30),
    ]
    assert await subject.store.adopt(KEY, lost, step.fence) == 3
    assert await subject.store.adopt(KEY, lost, step.fence) == 0
    await subject.store.set_length(KEY, 3, step.fence)
    state = await subject.store.state(KEY)
    holders = {holder.permit: holder for holder in state.holders}
    assert (state.held, state.free) == (4, 0)
    assert (holders["a"].token, holders["a"].pod, holders["a"].confirmed) == (first.token, "pod-a", True)
    assert [holders[permit].token for permit in "bc"] == [second.token, ahead]
    assert holders["d"].token > ahead
    assert (holders["b"].pod, holders["b"].uid, holders["b"].confirmed) == ("pod-b", "uid-b", False)
    assert holders["b"].expiration_ms == 30_000
    assert (await subject.store.acquire(wish("e"))).outcome is Outcome.FULL
    assert await subject.store.renew(KEY, "b", "pod-b") == 30_000
    for permit in "ab":
        await subject.store.release(KEY, permit)
    granted = await subject.store.acquire(wish("e"))
    assert (granted.outcome, granted.token > holders["d"].token) == (Outcome.GRANTED, True)


async def test_an_expired_holder_is_put_back_as_well(subject: Subject) -> None:
    await create(subject)
    acquired = await subject.store.acquire(wish("a", expiration_seconds=5))
    subject.advance(5)
    step = await subject.store.begin(KEY, REDLOCK)
    assert await subject.store.adopt(KEY, [Adoptee("a", "pod-a", "uid-a", acquired.token, 5)], step.fence) == 1
    (holder,) = (await subject.store.state(KEY)).holders
    assert (holder.permit, holder.token) == ("a", acquired.token)


async def test_a_step_that_was_overtaken_puts_nobody_back(subject: Subject) -> None:
    await create(subject)
    paused = await subject.store.begin(KEY, REDLOCK)
    await subject.store.begin(KEY, REDLOCK)
    before = subject.dump()
    with pytest.raises(StaleFenceError):
        await subject.store.adopt(KEY, [Adoptee("a", "pod-a", "uid-a", 1, 60)], paused.fence)
    with pytest.raises(StaleFenceError):
        await subject.store.adopt(KEY, [], paused.fence)
    assert subject.dump() == before


async def test_many_holders_are_put_back(subject: Subject) -> None:
    await create(subject, length=1000)
    step = await subject.store.begin(KEY, REDLOCK)
    many = [Adoptee(f"p{n}", f"pod-{n}", f"uid-{n}", n + 1, 60) for n in range(1000)]
    assert await subject.store.adopt(KEY, many, step.fence) == 1000
    assert (await subject.store.state(KEY)).held == 1000


async def test_a_large_semaphore_is_read_as_a_whole(subject: Subject) -> None:
    await create(subject, length=5000)
    step = await subject.store.begin(KEY, REDLOCK)
    names = [f"p{n}" for n in range(3500)]
    await subject.store.adopt(KEY, [Adoptee(name, "pod", "uid", 1, 60) for name in names], step.fence)
    state = await subject.store.state(KEY)
    assert (state.held, state.permits) == (3500, set(names))
