from __future__ import annotations

import asyncio
from typing import Any

import pytest

from at_least_semaphore_pod_hook.errors import ApiUnavailableError, LockUnavailableError, StoreUnavailableError
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Adoptee, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.semaphore.service import SemaphoreService, new_permit
from tests.unit.fakes import FaultyStore, LocalLock

KEY = SemaphoreKey("default", "k")


def wish(permit: str, length: int = 3, **other: Any) -> AcquireRequest:
    return AcquireRequest(KEY, length, 60, permit, f"id-{permit}")._replace(**other)


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(lambda: 1_800_000_000.0)


@pytest.fixture
def lock() -> LocalLock:
    return LocalLock()


@pytest.fixture
def service(store: FaultyStore, lock: LocalLock, monkeypatch: pytest.MonkeyPatch) -> SemaphoreService:
    monkeypatch.setattr("at_least_semaphore_pod_hook.semaphore.service.UNDO_PAUSES_SECONDS", (0, 0, 0))
    return SemaphoreService(store, lock)


def test_permits_are_not_guessed() -> None:
    assert len({new_permit() for _ in range(1000)}) == 1000


async def test_the_first_pod_creates_the_semaphore(service: SemaphoreService, store: FaultyStore) -> None:
    admitted = await service.acquire(wish("a"), 1)
    assert (admitted.acquired.outcome, admitted.acquired.length, admitted.replaced_length) == (Outcome.GRANTED, 3, 0)
    store.calls.clear()
    await service.acquire(wish("b"), 1)
    assert store.calls == ["acquire"]


async def test_concurrent_callers_share_one_step(service: SemaphoreService, lock: LocalLock) -> None:
    answers = await asyncio.gather(*(service.acquire(wish(f"p{n}", 10), 5) for n in range(64)))
    assert sum(answer.acquired.outcome is Outcome.GRANTED for answer in answers) == 10
    assert lock.acquisitions == 1


async def test_another_length_resizes_and_says_so_while_others_hold(service: SemaphoreService) -> None:
    await service.acquire(wish("a", 3), 1)
    admitted = await service.acquire(wish("b", 5), 1)
    assert (admitted.acquired.outcome, admitted.acquired.length, admitted.replaced_length) == (Outcome.GRANTED, 5, 3)


async def test_a_resize_without_holders_needs_no_warning(service: SemaphoreService) -> None:
    await service.acquire(wish("a", 3), 1)
    await service._store.release(KEY, "a")
    assert (await service.acquire(wish("b", 5), 1)).replaced_length == 0


async def test_two_lengths_that_take_turns_both_get_an_answer(service: SemaphoreService) -> None:
    wishes = [wish(f"p{n}", 20 + n % 2) for n in range(16)]
    answers = await asyncio.gather(*(service.acquire(each, 5) for each in wishes))
    assert all(answer.acquired.outcome is Outcome.GRANTED for answer in answers)


async def test_a_dry_run_of_a_new_key_writes_nothing(
    service: SemaphoreService, store: FaultyStore, lock: LocalLock
) -> None:
    admitted = await service.acquire(wish("a", dry_run=True), 1)
    assert (admitted.acquired.outcome, admitted.acquired.length) == (Outcome.GRANTED, 3)
    assert set(store.calls) == {"acquire"}
    assert lock.acquisitions == 0
    assert not store._semaphores


async def test_a_dry_run_that_would_need_the_lock_says_that_it_cannot_be_had(
    service: SemaphoreService, lock: LocalLock
) -> None:
    await service.acquire(wish("a"), 1)
    lock.reachable = False
    assert (await service.acquire(wish("b", dry_run=True), 1)).acquired.outcome is Outcome.GRANTED
    with pytest.raises(LockUnavailableError, match="nobody answers"):
        await service.acquire(wish("c", 5, dry_run=True), 1)


async def test_a_dry_run_of_another_length_warns_as_the_real_one_would(service: SemaphoreService) -> None:
    await service.acquire(wish("a", 1), 1)
    assert (await service.acquire(wish("b", 1, dry_run=True), 1)).acquired.outcome is Outcome.FULL
    admitted = await service.acquire(wish("b", 2, dry_run=True), 1)
    assert (admitted.acquired.outcome, admitted.replaced_length) == (Outcome.GRANTED, 1)
    assert (await service._store.state(KEY)).length == 1


async def test_an_answer_that_is_older_than_half_its_lease_is_not_waited_for(
    service: SemaphoreService, store: FaultyStore
) -> None:
    await service.acquire(wish("a"), 1)
    store.faults = {"acquire": ["hang after"]}
    with pytest.raises(StoreUnavailableError):
        async with asyncio.timeout(2):
            await service.acquire(wish("b", expiration_seconds=1), 10)
    await service.close()
    assert (await store.state(KEY)).permits == {"a"}


@pytest.mark.parametrize("fault", ["fail before", "fail after", "hang before", "hang after"])
async def test_what_may_have_been_taken_is_given_back(
    service: SemaphoreService, store: FaultyStore, fault: str
) -> None:
    await service.acquire(wish("a"), 1)
    store.faults = {"acquire": [fault], "release": ["fail before"]}
    with pytest.raises(StoreUnavailableError):
        await service.acquire(wish("b"), 0.05)
    await service.close()
    assert [holder.permit for holder in (await store.state(KEY)).holders] == ["a"]
    assert "release" in store.calls


async def test_an_acquire_that_is_applied_a_second_time_after_its_release_is_given_back_too(
    service: SemaphoreService, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.acquire(wish("a"), 1)
    released = store.release
    late = [wish("b", 0)]

    async def release(*args: Any, **named: Any) -> bool:
        answer = await released(*args, **named)
        while late:
            await store.acquire(late.pop())
        return answer

    monkeypatch.setattr(store, "release", release)
    store.faults = {"acquire": ["fail after"]}
    with pytest.raises(StoreUnavailableError):
        await service.acquire(wish("b"), 1)
    await service.close()
    assert (await store.state(KEY)).permits == {"a"}


async def test_a_cancelled_admission_leaves_no_permit(service: SemaphoreService, store: FaultyStore) -> None:
    await service.acquire(wish("a"), 1)
    store.faults = {"acquire": ["hang after"]}
    task = asyncio.create_task(service.acquire(wish("b"), 5))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await service.close()
    assert [holder.permit for holder in (await store.state(KEY)).holders] == ["a"]


async def test_a_failed_dry_run_gives_nothing_back(service: SemaphoreService, store: FaultyStore) -> None:
    store.faults = {"acquire": ["fail before"]}
    with pytest.raises(StoreUnavailableError):
        await service.acquire(wish("a", dry_run=True), 1)
    await service.close()
    assert "release" not in store.calls


async def test_a_failed_step_fails_its_callers_and_the_next_one_works(
    service: SemaphoreService, store: FaultyStore
) -> None:
    store.faults = {"set_length": ["fail before"]}
    results = await asyncio.gather(*(service.acquire(wish(f"p{n}"), 1) for n in range(3)), return_exceptions=True)
    assert all(isinstance(result, StoreUnavailableError) for result in results)
    assert (await service.acquire(wish("next"), 1)).acquired.outcome is Outcome.GRANTED


async def test_one_caller_that_gives_up_leaves_the_step_to_the_others(
    service: SemaphoreService, store: FaultyStore, lock: LocalLock
) -> None:
    async with lock.hold(str(KEY), 1):
        impatient = asyncio.create_task(service.acquire(wish("a"), 0.02))
        patient = asyncio.create_task(service.acquire(wish("b"), 5))
        with pytest.raises(StoreUnavailableError, match=r"no answer within 0\.0 s"):
            await impatient
    assert (await patient).acquired.outcome is Outcome.GRANTED
    await service.close()
    assert [holder.permit for holder in (await store.state(KEY)).holders] == ["b"]


async def test_a_step_that_was_overtaken_is_an_unavailable_store(service: SemaphoreService, store: FaultyStore) -> None:
    real = store.begin

    async def overtaken(key: SemaphoreKey, fence: Any) -> Any:
        step = await real(key, fence)
        await real(key, step.fence._replace(token=step.fence.token + 1))
        return step

    store.begin = overtaken  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailableError, match="out of date"):
        await service.acquire(wish("a"), 1)
    await service.close()


async def test_the_sweep_reclaims_everywhere() -> None:
    now = [1_800_000_000.0]
    store = FaultyStore(lambda: now[0])
    swept = []
    service = SemaphoreService(store, LocalLock(), on_reclaim=lambda key, count: swept.append((str(key), count)))
    for name in "xy":
        await service.acquire(wish(f"{name}1", key=SemaphoreKey("ns", name)), 1)
    assert await service.sweep() == 0
    now[0] += 60
    assert await service.sweep() == 2
    assert sorted(swept) == [("ns/x", 1), ("ns/y", 1)]


async def test_a_store_that_may_have_lost_holders_is_rebuilt_before_it_grants(
    store: FaultyStore, lock: LocalLock
) -> None:
    asked: list[SemaphoreKey] = []

    async def survey(key: SemaphoreKey) -> list[Adoptee]:
        asked.append(key)
        return [Adoptee(f"p{number}", f"pod-{number}", f"uid-{number}", number, 60) for number in (1, 2)]

    service = SemaphoreService(store, lock, survey=survey)
    assert (await service.acquire(wish("a"), 1)).acquired.held == 3
    await store.release(KEY, "a")
    store.epoch += 1
    await store.release(KEY, "p1")
    store.calls.clear()
    admitted = await service.acquire(wish("b"), 1)
    assert (admitted.acquired.outcome, admitted.acquired.held, admitted.replaced_length) == (Outcome.GRANTED, 3, 0)
    assert store.calls == ["acquire", "begin", "set_length", "acquire"]
    assert (await service.acquire(wish("c"), 1)).acquired.outcome is Outcome.FULL
    assert asked == [KEY, KEY]
    assert (await store.state(KEY)).permits == {"p1", "p2", "b"}


async def test_nothing_is_granted_where_nobody_can_say_who_lives(store: FaultyStore, lock: LocalLock) -> None:
    async def survey(_key: SemaphoreKey) -> list[Adoptee]:
        raise ApiUnavailableError("the API server does not answer")

    service = SemaphoreService(store, lock, survey=survey)
    with pytest.raises(ApiUnavailableError):
        await service.acquire(wish("a"), 1)
    await service.close()
    assert (await store.state(KEY)).held == 0


async def test_a_resize_rebuilds_as_well(store: FaultyStore, lock: LocalLock) -> None:
    async def survey(_key: SemaphoreKey) -> list[Adoptee]:
        return [Adoptee("p1", "pod-1", "uid-1", 5, 60)]

    service = SemaphoreService(store, lock, survey=survey)
    await service.resize(KEY, 3, 1)
    state = await store.state(KEY)
    assert (state.permits, state.complete) == ({"p1"}, True)
