"""What `Store`'s docstrings promise, over every store: renewals, releases and what expires."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.semaphore.model import (
    ENDED_SECONDS,
    Outcome,
    SemaphoreKey,
)
from tests.contract.wishes import KEY, REDLOCK, create, wish

if TYPE_CHECKING:
    from tests.contract.subjects import Subject


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
