"""One suite over every store: what `Store`'s docstrings promise."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from at_least_semaphore_pod_hook.errors import StaleFenceError
from at_least_semaphore_pod_hook.semaphore.model import (
    ENDED_SECONDS,
    FRESH_SECONDS,
    Adoptee,
    Fence,
    Outcome,
    SemaphoreKey,
)
from tests.contract.wishes import KEY, REDLOCK, create, wish

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


async def test_release_gives_back_once(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a"))
    assert await subject.store.release(KEY, "a") is True
    assert await subject.store.release(KEY, "a") is False
    assert (await subject.store.state(KEY)).free == 3


async def test_release_of_an_expired_permit_gives_nothing_back_and_ends_it(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a", expiration_seconds=5))
    subject.advance(5)
    assert await subject.store.release(KEY, "a") is False
    assert await subject.store.renew(KEY, "a") == 0
    assert await subject.store.reclaim(KEY) == 0


async def test_release_of_a_permit_that_is_not_held_changes_nothing(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a"))
    before = subject.dump()
    assert await subject.store.release(KEY, "b") is False
    assert await subject.store.release(SemaphoreKey("other", KEY.key), "a") is False
    assert subject.dump() == before


async def test_an_expired_permit_is_free_at_the_next_acquire(subject: Subject) -> None:
    await create(subject, length=1)
    await subject.store.acquire(wish("a", length=1, expiration_seconds=5))
    subject.advance(4)
    assert (await subject.store.acquire(wish("b", length=1))).outcome is Outcome.FULL
    subject.advance(1)
    granted = await subject.store.acquire(wish("b", length=1))
    assert (granted.outcome, granted.held) == (Outcome.GRANTED, 1)
    assert await subject.store.renew(KEY, "a") == 0
    assert await subject.store.release(KEY, "a") is False
    assert [holder.permit for holder in (await subject.store.state(KEY)).holders] == ["b"]


async def test_renewal_extends_by_the_permits_own_expiration(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a", expiration_seconds=30))
    subject.advance(29)
    assert await subject.store.renew(KEY, "a", "pod-a-1") == 30_000
    subject.advance(29)
    (holder,) = (await subject.store.state(KEY)).holders
    assert (holder.pod, holder.confirmed) == ("pod-a-1", True)
    assert 0 < holder.lease_ms <= 1_000


async def test_an_expired_permit_is_revived_while_its_place_is_free(subject: Subject) -> None:
    await create(subject, length=2)
    for permit in "ab":
        await subject.store.acquire(wish(permit, length=2))
    subject.advance(61)
    if subject.reclaims:
        assert await subject.store.renew(KEY, "a") == 0
        return
    assert await subject.store.renew(KEY, "a") == 60_000
    assert await subject.store.renew(KEY, "b") == 60_000
    subject.advance(61)
    step = await subject.store.begin(KEY, REDLOCK)
    await subject.store.set_length(KEY, 1, step.fence)
    assert await subject.store.renew(KEY, "a") == 60_000
    assert await subject.store.renew(KEY, "b") == 0


async def test_reclaim_takes_what_is_expired_and_nothing_else(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a", expiration_seconds=5))
    await subject.store.acquire(wish("b", expiration_seconds=60))
    assert await subject.store.reclaim(KEY) == 0
    subject.advance(5)
    # One that reclaims by itself has taken it back already.
    assert await subject.store.reclaim(KEY) == int(not subject.reclaims)
    assert await subject.store.reclaim(KEY) == 0
    assert [holder.permit for holder in (await subject.store.state(KEY)).holders] == ["b"]
    assert await subject.store.renew(KEY, "a") == 0


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


async def test_a_length_of_a_million_costs_no_more_than_one(subject: Subject) -> None:
    await create(subject, length=1_000_000)
    await subject.store.acquire(wish("a", length=1_000_000))
    assert (await subject.store.state(KEY)).free == 999_999
    assert len(repr(subject.dump())) < 2_000


async def test_a_pod_that_was_seen_is_kept_and_its_reservation_is_not_resumed(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a", expiration_seconds=30))
    subject.advance(20)
    assert await subject.store.keep(KEY, "a", "pod-a-1", "uid-1") == 30_000
    (holder,) = (await subject.store.state(KEY)).holders
    assert (holder.pod, holder.uid, holder.confirmed) == ("pod-a-1", "uid-1", False)
    assert holder.expiration_ms == 30_000
    assert 29_000 < holder.lease_ms <= 30_000
    assert 20_000 <= holder.age_ms < 21_000
    assert 20_000 <= holder.silent_ms < 21_000
    other = await subject.store.acquire(wish("b", carried="a", identity="id-a"))
    assert (other.outcome, other.permit) == (Outcome.GRANTED, "b")
    assert await subject.store.keep(KEY, "never-was", "x", "y") == 0


async def test_a_renewal_of_the_sidecar_is_told_from_one_on_its_behalf(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a"))
    await subject.store.renew(KEY, "a", "pod-a")
    subject.advance(50)
    await subject.store.keep(KEY, "a", "pod-a", "uid-1")
    (holder,) = (await subject.store.state(KEY)).holders
    assert (holder.confirmed, holder.uid) == (True, "uid-1")
    assert 50_000 <= holder.silent_ms < 51_000


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


async def test_a_release_is_told_to_who_listens(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a"))
    changes = subject.store.changes()
    heard = asyncio.ensure_future(anext(changes))
    async with asyncio.timeout(5):
        # Listening begins at some moment: releases before it are missed.
        while not heard.done():
            await subject.store.acquire(wish("a"))
            await subject.store.release(KEY, "a")
            await asyncio.sleep(0.01)
    assert heard.result() == KEY
    await changes.aclose()  # type: ignore[attr-defined]


async def test_a_permit_belongs_to_the_pod_that_confirmed_it(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a"))
    assert await subject.store.renew(KEY, "a", "pod-1") == 60_000
    assert await subject.store.renew(KEY, "a", "pod-2") == 0
    assert await subject.store.release(KEY, "a", "pod-2") is False
    (holder,) = (await subject.store.state(KEY)).holders
    assert holder.pod == "pod-1"
    assert await subject.store.renew(KEY, "a", "pod-1") == 60_000
    assert await subject.store.release(KEY, "a", "pod-1") is True


async def test_a_reservation_is_given_back_under_any_name(subject: Subject) -> None:
    await create(subject)
    for permit, pod in (("a", ""), ("b", "pod-b-1")):
        await subject.store.acquire(wish(permit))
        assert await subject.store.release(KEY, permit, pod) is True


async def test_a_sidecar_learns_that_its_pod_has_ended(subject: Subject) -> None:
    await create(subject)
    for permit in "ab":
        await subject.store.acquire(wish(permit))
        assert await subject.store.renew(KEY, permit, f"pod-{permit}-1") == 60_000
    assert await subject.store.release(KEY, "a", ended=True) is True
    assert await subject.store.renew(KEY, "a", "pod-a-1") == -1
    assert await subject.store.renew(KEY, "a") == -1
    assert await subject.store.keep(KEY, "a", "pod-a-1", "uid-1") == 0
    # One that was given back without a word of its pod is only lost.
    assert await subject.store.release(KEY, "b") is True
    assert await subject.store.renew(KEY, "b", "pod-b-1") == 0
    assert (await subject.store.state(KEY)).free == 3


async def test_the_end_of_a_pod_is_noted_where_its_permit_is_free_already(subject: Subject) -> None:
    assert await subject.store.release(KEY, "a", ended=True) is False
    assert await subject.store.renew(KEY, "a", "pod-a-1") == -1
    # A note is no permit, and no semaphore.
    assert (await subject.store.state(KEY)).held == 0
    assert [key async for key in subject.store.semaphores()] == []
    assert await subject.store.renew(SemaphoreKey("other", KEY.key), "a", "pod-a-1") == 0


async def test_a_permit_that_another_pod_confirmed_ends_with_that_pod_alone(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a"))
    await subject.store.renew(KEY, "a", "pod-1")
    before = subject.dump()
    assert await subject.store.release(KEY, "a", "pod-2", ended=True) is False
    assert subject.dump() == before
    assert await subject.store.release(KEY, "a", "pod-1", ended=True) is True
    assert await subject.store.renew(KEY, "a", "pod-1") == -1


async def test_a_permit_that_is_granted_anew_is_alive(subject: Subject) -> None:
    await create(subject)
    await subject.store.release(KEY, "a", ended=True)
    assert (await subject.store.acquire(wish("a", dry_run=True))).outcome is Outcome.GRANTED
    assert await subject.store.renew(KEY, "a") == -1
    assert (await subject.store.acquire(wish("a"))).outcome is Outcome.GRANTED
    assert await subject.store.renew(KEY, "a") == 60_000
    await subject.store.release(KEY, "a")
    assert await subject.store.renew(KEY, "a") == 0


async def test_the_end_of_a_pod_is_remembered_for_an_hour(subject: Subject) -> None:
    await subject.store.release(KEY, "a", ended=True)
    await subject.store.release(KEY, "b", ended=True)
    subject.advance(ENDED_SECONDS - 5)
    assert await subject.store.renew(KEY, "a") == -1
    # Noted anew, it counts from now.
    await subject.store.release(KEY, "b", ended=True)
    subject.advance(6)
    assert await subject.store.renew(KEY, "a") == 0
    assert await subject.store.renew(KEY, "b") == -1
    with_both = len(repr(subject.dump()))
    await subject.store.release(KEY, "b", ended=True)
    # One that reclaims by itself has forgotten the other one already.
    assert len(repr(subject.dump())) < with_both + int(subject.reclaims)


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
