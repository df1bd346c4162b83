"""One suite over every store: what `Store`'s docstrings promise of acquires and of what is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.semaphore.model import (
    FRESH_SECONDS,
    Outcome,
    SemaphoreKey,
)
from tests.contract.wishes import KEY, create, wish

if TYPE_CHECKING:
    from tests.contract.subjects import Subject


async def test_a_semaphore_that_does_not_exist_grants_nothing(subject: Subject) -> None:
    before = subject.dump()
    acquired = await subject.store.acquire(wish("a"))
    assert (acquired.outcome, acquired.length) == (Outcome.OTHER_LENGTH, 0)
    assert (await subject.store.acquire(wish("a", length=0))).outcome is Outcome.OTHER_LENGTH
    assert subject.dump() == before


async def test_grants_until_it_is_full_and_names_who_holds(subject: Subject) -> None:
    await create(subject)
    tokens = []
    for number, permit in enumerate("abc", start=1):
        acquired = await subject.store.acquire(wish(permit))
        assert (acquired.outcome, acquired.length, acquired.held) == (Outcome.GRANTED, 3, number)
        assert acquired.permit == permit
        tokens.append(acquired.token)
    assert tokens == sorted(set(tokens))
    full = await subject.store.acquire(wish("d"))
    assert (full.outcome, full.length, full.held) == (Outcome.FULL, 3, 3)
    assert sorted(full.holders) == ["pod-a", "pod-b", "pod-c"]
    state = await subject.store.state(KEY)
    assert (state.length, state.held, state.free) == (3, 3, 0)
    assert {holder.permit for holder in state.holders} == {"a", "b", "c"}


async def test_a_repeated_acquire_takes_one_permit(subject: Subject) -> None:
    await create(subject)
    first = await subject.store.acquire(wish("a"))
    again = await subject.store.acquire(wish("a"))
    assert (again.outcome, again.permit, again.token, again.held) == (Outcome.RESUMED, "a", first.token, 1)


async def test_a_pod_that_was_seen_gets_its_permit_once_however_often_it_asks(subject: Subject) -> None:
    await create(subject)
    seen = wish("uid-1", identity="uid-1", uid="uid-1")
    first = await subject.store.acquire(seen)
    (holder,) = (await subject.store.state(KEY)).holders
    assert (holder.permit, holder.uid, holder.token) == ("uid-1", "uid-1", first.token)
    assert await subject.store.renew(KEY, "uid-1", "web-0") > 0
    again = await subject.store.acquire(seen)
    assert (again.outcome, again.token, again.held) == (Outcome.RESUMED, first.token, 1)


async def test_a_permit_that_is_held_is_not_granted_to_another(subject: Subject) -> None:
    await create(subject)
    first = await subject.store.acquire(wish("a"))
    other = await subject.store.acquire(wish("a", identity="another"))
    assert (other.outcome, other.held) == (Outcome.FULL, 1)
    (holder,) = (await subject.store.state(KEY)).holders
    assert (holder.token, holder.pod) == (first.token, "pod-a")


async def test_a_carried_reservation_counts_only_for_its_own_request(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a"))
    resumed = await subject.store.acquire(wish("b", carried="a", identity="id-a"))
    assert (resumed.outcome, resumed.permit, resumed.held) == (Outcome.RESUMED, "a", 1)
    other = await subject.store.acquire(wish("b", carried="a", identity="id-other"))
    assert (other.outcome, other.permit, other.held) == (Outcome.GRANTED, "b", 2)
    unknown = await subject.store.acquire(wish("c", carried="never-was", identity="id-a"))
    assert (unknown.outcome, unknown.permit) == (Outcome.GRANTED, "c")


async def test_a_permit_that_a_running_pod_holds_is_never_resumed(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a"))
    assert await subject.store.renew(KEY, "a", "pod-a-1") == 60_000
    copied = await subject.store.acquire(wish("b", carried="a", identity="id-a"))
    assert (copied.outcome, copied.permit, copied.held) == (Outcome.GRANTED, "b", 2)


async def test_a_reservation_is_fresh_for_its_time_only(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a"))
    subject.advance(FRESH_SECONDS)
    late = await subject.store.acquire(wish("b", carried="a", identity="id-a"))
    assert (late.outcome, late.permit) == (Outcome.GRANTED, "b")


async def test_a_full_semaphore_resumes_a_reservation_all_the_same(subject: Subject) -> None:
    await create(subject, length=1)
    await subject.store.acquire(wish("a", length=1))
    resumed = await subject.store.acquire(wish("b", length=1, carried="a", identity="id-a"))
    assert (resumed.outcome, resumed.permit) == (Outcome.RESUMED, "a")


async def test_a_dry_run_answers_alike_and_writes_nothing(subject: Subject) -> None:
    await create(subject, length=1)
    before = subject.dump()
    for _ in range(5):
        answer = await subject.store.acquire(wish("a", length=1, dry_run=True))
        assert (answer.outcome, answer.held, answer.permit) == (Outcome.GRANTED, 1, "a")
    assert (await subject.store.acquire(wish("a", length=2, dry_run=True))).outcome is Outcome.OTHER_LENGTH
    assumed = await subject.store.acquire(wish("a", length=2, dry_run=True, assumed_length=2))
    assert (assumed.outcome, assumed.length) == (Outcome.GRANTED, 2)
    assert subject.dump() == before
    await subject.store.acquire(wish("b", length=1))
    before = subject.dump()
    full = await subject.store.acquire(wish("a", length=1, dry_run=True))
    assert (full.outcome, full.held) == (Outcome.FULL, 1)
    assert subject.dump() == before


async def test_a_dry_run_counts_expired_permits_as_free_and_leaves_them(subject: Subject) -> None:
    await create(subject, length=1)
    await subject.store.acquire(wish("a", length=1))
    subject.advance(61)
    before = subject.dump()
    assert (await subject.store.acquire(wish("b", length=1, dry_run=True))).outcome is Outcome.GRANTED
    assert subject.dump() == before


async def test_64_at_once_on_10_permits_are_exactly_10(subject: Subject) -> None:
    await create(subject, length=10)
    answers = await asyncio.gather(*(subject.store.acquire(wish(f"p{n}", length=10)) for n in range(64)))
    granted = [answer for answer in answers if answer.outcome is Outcome.GRANTED]
    assert len(granted) == 10
    assert len({answer.token for answer in granted}) == 10
    assert (await subject.store.state(KEY)).held == 10


async def test_semaphores_do_not_touch_each_other(subject: Subject) -> None:
    keys = [SemaphoreKey("a", "k"), SemaphoreKey("a", "k2"), SemaphoreKey("b", "k")]
    for key in keys:
        await create(subject, length=1, key=key)
        assert (await subject.store.acquire(wish("x", key=key, length=1))).outcome is Outcome.GRANTED
    assert {key async for key in subject.store.semaphores()} == set(keys)
    await subject.store.release(keys[0], "x")
    assert [(await subject.store.state(key)).held for key in keys] == [0, 1, 1]


async def test_tokens_go_on_rising_when_a_semaphore_is_emptied(subject: Subject) -> None:
    await create(subject, length=1)
    last = 0
    for n in range(20):
        acquired = await subject.store.acquire(wish(f"p{n}", length=1))
        assert acquired.token > last
        last = acquired.token
        await subject.store.release(KEY, f"p{n}")


async def test_owners_of_denied_pods_are_remembered_until_served(subject: Subject) -> None:
    await create(subject, length=1)
    await subject.store.acquire(wish("a", length=1, owner="ReplicaSet/first"))
    for owner in ("Job/b", "ReplicaSet/a", "Job/b", ""):
        await subject.store.acquire(wish("b", length=1, owner=owner))
        subject.advance(0.01)
    await subject.store.acquire(wish("b", length=1, owner="Job/dry", dry_run=True))
    assert set((await subject.store.state(KEY)).denied) == {"Job/b", "ReplicaSet/a"}
    await subject.store.release(KEY, "a")
    await subject.store.acquire(wish("b", length=1, owner="Job/b"))
    assert (await subject.store.state(KEY)).denied == ("ReplicaSet/a",)
    await subject.store.forget_denied(KEY, "ReplicaSet/a")
    await subject.store.forget_denied(KEY, "never-was")
    assert (await subject.store.state(KEY)).denied == ()
