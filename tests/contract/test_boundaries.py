"""The moments at which something ends, exactly: the shortest time that a store tells apart before, at and after it."""

from __future__ import annotations

import pytest

from at_least_semaphore_pod_hook.semaphore.model import ENDED_SECONDS, FRESH_SECONDS, Acquired, Adoptee, Outcome
from tests.contract.subjects import Subject
from tests.contract.wishes import KEY, REDLOCK, create, wish

LEASE_SECONDS = 60
LEASE_MS = LEASE_SECONDS * 1000

pytestmark = pytest.mark.parametrize("ticks", [-1, 0, 1], ids=["before", "at", "after"])


def pass_time(subject: Subject, seconds: float, ticks: int) -> bool:
    """Let time pass until some ticks from a moment. Returns whether the moment has come."""
    subject.advance(seconds + ticks * subject.tick)
    return ticks >= 0


async def fill(subject: Subject) -> Acquired:
    """Grant the only permit of a semaphore."""
    await create(subject, length=1)
    return await subject.store.acquire(wish("a", length=1, expiration_seconds=LEASE_SECONDS))


async def drain(subject: Subject) -> None:
    """Grant two permits, of which one is over the length; the other's lease is longer."""
    await create(subject, length=2)
    await subject.store.acquire(wish("a", length=2, expiration_seconds=LEASE_SECONDS))
    await subject.store.acquire(wish("b", length=2, expiration_seconds=2 * LEASE_SECONDS))
    await create(subject, length=1)


async def test_acquire_finds_it_free_when_the_lease_has_ended(subject: Subject, ticks: int) -> None:
    await fill(subject)
    ended = pass_time(subject, LEASE_SECONDS, ticks)
    for dry_run in (True, False):
        answer = await subject.store.acquire(wish("b", length=1, dry_run=dry_run))
        assert (answer.outcome, answer.held) == (Outcome.GRANTED if ended else Outcome.FULL, 1)


async def test_a_lease_counts_from_the_last_renewal(subject: Subject, ticks: int) -> None:
    await fill(subject)
    subject.advance(LEASE_SECONDS / 2)
    assert await subject.store.renew(KEY, "a", "pod-a") == LEASE_MS
    ended = pass_time(subject, LEASE_SECONDS, ticks)
    assert (await subject.store.state(KEY)).free == ended


async def test_acquire_repeats_a_grant_until_its_lease_has_ended(subject: Subject, ticks: int) -> None:
    first = await fill(subject)
    ended = pass_time(subject, LEASE_SECONDS, ticks)
    again = await subject.store.acquire(wish("a", length=1))
    assert again.outcome is (Outcome.GRANTED if ended else Outcome.RESUMED)
    assert (again.token > first.token) is ended


async def test_acquire_resumes_a_reservation_while_it_is_fresh(subject: Subject, ticks: int) -> None:
    await create(subject)
    await subject.store.acquire(wish("a", expiration_seconds=LEASE_SECONDS))
    late = pass_time(subject, FRESH_SECONDS, ticks)
    answer = await subject.store.acquire(wish("b", carried="a", identity="id-a"))
    assert (answer.outcome, answer.permit) == ((Outcome.GRANTED, "b") if late else (Outcome.RESUMED, "a"))


async def test_acquire_resumes_a_reservation_until_its_lease_has_ended(subject: Subject, ticks: int) -> None:
    await create(subject)
    await subject.store.acquire(wish("a", expiration_seconds=10))
    ended = pass_time(subject, 10, ticks)
    answer = await subject.store.acquire(wish("b", carried="a", identity="id-a"))
    assert (answer.outcome, answer.permit) == ((Outcome.GRANTED, "b") if ended else (Outcome.RESUMED, "a"))


async def test_renew_needs_a_place_when_the_lease_has_ended(subject: Subject, ticks: int) -> None:
    await drain(subject)
    ended = pass_time(subject, LEASE_SECONDS, ticks)
    assert await subject.store.renew(KEY, "a", "pod-a") == (0 if ended else LEASE_MS)
    assert (await subject.store.state(KEY)).permits == ({"b"} if ended else {"a", "b"})


async def test_keep_needs_a_place_when_the_lease_has_ended(subject: Subject, ticks: int) -> None:
    await drain(subject)
    ended = pass_time(subject, LEASE_SECONDS, ticks)
    assert await subject.store.keep(KEY, "a", "pod-a", "uid-a") == (0 if ended else LEASE_MS)
    assert (await subject.store.state(KEY)).permits == ({"b"} if ended else {"a", "b"})


async def test_release_gives_back_until_the_lease_has_ended(subject: Subject, ticks: int) -> None:
    await fill(subject)
    ended = pass_time(subject, LEASE_SECONDS, ticks)
    assert await subject.store.release(KEY, "a") is not ended
    assert (await subject.store.state(KEY)).free == 1


async def test_reclaim_takes_back_when_the_lease_has_ended(subject: Subject, ticks: int) -> None:
    await fill(subject)
    ended = pass_time(subject, LEASE_SECONDS, ticks)
    assert await subject.store.reclaim(KEY) == (ended and not subject.reclaims)
    assert await subject.store.renew(KEY, "a") == (0 if ended else LEASE_MS)


async def test_state_and_a_guarded_step_count_it_until_the_lease_has_ended(subject: Subject, ticks: int) -> None:
    await fill(subject)
    ended = pass_time(subject, LEASE_SECONDS, ticks)
    state = await subject.store.state(KEY)
    assert state.free == ended
    leases_ms = [] if ended else [round(subject.tick * 1000)]
    assert [holder.lease_ms for holder in state.holders] == leases_ms
    assert (await subject.store.begin(KEY, REDLOCK)).held == len(leases_ms)


async def test_adopt_puts_back_what_has_expired(subject: Subject, ticks: int) -> None:
    first = await fill(subject)
    ended = pass_time(subject, LEASE_SECONDS, ticks)
    step = await subject.store.begin(KEY, REDLOCK)
    lost = Adoptee("a", "pod-a", "uid-a", first.token, LEASE_SECONDS)
    assert await subject.store.adopt(KEY, [lost], step.fence) == ended
    (holder,) = (await subject.store.state(KEY)).holders
    assert (holder.uid, holder.lease_ms) == (("uid-a", LEASE_MS) if ended else ("", round(subject.tick * 1000)))


async def test_renew_says_that_the_pod_has_ended_for_an_hour(subject: Subject, ticks: int) -> None:
    await fill(subject)
    assert await subject.store.release(KEY, "a", ended=True) is True
    over = pass_time(subject, ENDED_SECONDS, ticks)
    assert await subject.store.renew(KEY, "a", "pod-a") == (0 if over else -1)
