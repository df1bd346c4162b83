"""A semaphore belongs to its namespace: whatever is done to one changes nothing of another, over every store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from at_least_semaphore_pod_hook.semaphore.model import Adoptee, SemaphoreKey
from tests.contract.wishes import REDLOCK, create, wish

if TYPE_CHECKING:
    from tests.contract.subjects import Subject


# Few letters, so that one name is often the beginning, the end or a part of another; and what stores use themselves.
NAMESPACES = st.from_regex(r"[ab]([ab-]{0,3}[ab])?", fullmatch=True) | st.sampled_from(["queue", "inflight", "a-b"])
KEYS = st.from_regex(r"[ab]([ab._-]{0,3}[ab])?", fullmatch=True) | st.sampled_from(
    ["holders", "denied", "ended", "queue", "inflight", "length", "epoch", "a.holders", "b"]
)
SEMAPHORES = st.builds(SemaphoreKey, NAMESPACES, KEYS)


async def use(subject: Subject, key: SemaphoreKey) -> None:
    """Do all that there is to one semaphore, with the permits' names that the other one has."""
    store = subject.store
    step = await store.begin(key, REDLOCK)
    await store.set_length(key, 2, step.fence)
    for permit in ("a", "b", "c"):
        await store.acquire(wish(permit, key=key, length=2, pod="pod-x"))
    await store.keep(key, "a", "pod-y", "uid-y")
    await store.renew(key, "a", "pod-y", "uid-y")
    await store.state(key)
    await store.release(key, "a")
    await store.release(key, "b", ended=True)
    await store.reclaim(key)
    step = await store.begin(key, REDLOCK)
    await store.adopt(key, (Adoptee("a", "pod-z", "uid-z", 7, 30),), step.fence)
    await store.set_length(key, 1, step.fence)


@given(SEMAPHORES, SEMAPHORES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_what_is_done_to_one_changes_nothing_of_another(
    subject: Subject, mine: SemaphoreKey, others: SemaphoreKey
) -> None:
    assume(mine != others)
    for key in (mine, others):
        subject.forget(key)
    await create(subject, 2, mine)
    assert (await subject.store.acquire(wish("a", key=mine, length=2))).token
    await subject.store.acquire(wish("b", key=mine, length=2))
    await subject.store.renew(mine, "a", "pod-a")
    before = await subject.store.state(mine)

    await use(subject, others)
    subject.forget(others)

    assert await subject.store.state(mine) == before
    assert await subject.store.renew(mine, "a", "pod-a") > 0
    assert (await subject.store.acquire(wish("c", key=mine, length=2))).held == before.held
