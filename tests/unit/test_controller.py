"""The controller in virtual time: order, crashes, two at once, replies that are lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, SemaphoreKey
from tests.unit.cluster_double import Cluster
from tests.unit.virtual_time import now, run

KEY = SemaphoreKey("default", "k")


def simulated(story: Callable[[Cluster], Awaitable[None]]) -> None:
    async def whole() -> None:
        cluster = Cluster()
        try:
            async with asyncio.timeout(3600):
                await story(cluster)
        finally:
            await cluster.close()

    run(whole())


async def until(probe: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = now() + seconds
    while not probe():
        assert now() < deadline
        await asyncio.sleep(0.001)


async def fill(cluster: Cluster, count: int, length: int = 3) -> list[str]:
    names = [f"p{number:03}" for number in range(count)]
    for name in names:
        cluster.create(name, length=length)
        await asyncio.sleep(0.002)
    return names


async def consistent(cluster: Cluster, length: int) -> None:
    """Check that each pod that was let in holds one permit under the token that it was told, and no other does."""
    state = await cluster.store.state(KEY)
    held = {holder.pod: holder.token for holder in state.holders}
    assert len(held) == state.held <= length
    assert held == {name: cluster.token(name) for name in cluster.active()}


def test_a_burst_is_served_in_order_and_its_tokens_rise() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.start()
        names = await fill(cluster, 30)
        for served in range(3, 30):
            await until(lambda: len(cluster.let_in) >= served)  # noqa: B023 - used up at once
            await consistent(cluster, 3)
            cluster.finish(cluster.active()[0])
        await until(lambda: len(cluster.let_in) == 30)
        assert cluster.let_in == names
        tokens = [cluster.token(name) for name in names]
        assert tokens == sorted(set(tokens))
        assert cluster.most_active == 3
        assert cluster.patches == 30
        assert max(cluster.meter.handed_over_seconds) < 0.02

    simulated(story)


def test_pods_for_which_there_is_room_cost_one_write_and_no_event() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.start()
        await fill(cluster, 200, length=1000)
        await until(lambda: len(cluster.let_in) == 200)
        await asyncio.sleep(20)
        assert (cluster.patches, cluster.events) == (200, [])
        await consistent(cluster, 1000)

    simulated(story)


def test_a_waiter_is_told_once_that_it_waits_and_once_that_it_need_not_any_more() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.start()
        names = await fill(cluster, 3, length=1)
        await asyncio.sleep(20)
        cluster.finish(names[0])
        await asyncio.sleep(20)
        told = {name: [reason for pod, reason in cluster.events if pod == name] for name in names}
        assert told == {
            names[0]: ["PermitReclaimed"],
            names[1]: ["WaitingForPermit", "PermitGranted"],
            names[2]: ["WaitingForPermit"],
        }
        figures = cluster.meter.figures[KEY]
        assert figures is not None
        assert (figures.length, figures.held, figures.waiting) == (1, 1, 1)
        assert figures.oldest_wait_since == pytest.approx(cluster.view(names[2]).came)

    simulated(story)


@pytest.mark.parametrize("fault", ["before patch", "after patch"])
def test_a_patch_without_an_answer_is_tried_again_under_the_same_permit(fault: str) -> None:
    async def story(cluster: Cluster) -> None:
        cluster.faults = [fault]
        cluster.start()
        cluster.create("a", length=1)
        await until(lambda: cluster.let_in == ["a"])
        await asyncio.sleep(10)
        await consistent(cluster, 1)
        assert cluster.meter.grants == 1

    simulated(story)


def test_who_comes_after_a_crash_lets_those_in_who_have_their_permits() -> None:
    async def story(cluster: Cluster) -> None:
        first = cluster.start()
        cluster.create("a", length=1)
        cluster.create("b", length=1)
        await until(lambda: bool(cluster.meter.grants))
        await cluster.kill(first)
        assert cluster.let_in == []
        cluster.start()
        await until(lambda: cluster.let_in == ["a"])
        await asyncio.sleep(10)
        await consistent(cluster, 1)
        assert cluster.meter.grants == 1

    simulated(story)


@pytest.mark.parametrize("late", [2.9, 3.1, 4.9])
def test_an_answer_that_is_older_than_half_its_lease_lets_nobody_in(late: float) -> None:
    async def story(cluster: Cluster) -> None:
        cluster.store.late = [late]
        cluster.start()
        cluster.create("a", length=1, expiration="3")
        await until(lambda: cluster.let_in == ["a"])
        assert cluster.without_permit == []
        await asyncio.sleep(10)
        await consistent(cluster, 1)

    simulated(story)


def test_a_patch_that_takes_longer_than_half_the_lease_is_tried_again_under_a_permit_that_is_renewed() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.slow_patches = [3.5]
        cluster.start()
        cluster.create("a", length=1, expiration="3")
        cluster.create("b", length=1, expiration="3")
        await until(lambda: cluster.let_in == ["a"])
        assert cluster.without_permit == []
        assert cluster.meter.grants == 1

    simulated(story)


def test_a_pod_that_goes_between_grant_and_gate_leaves_its_permit_to_the_next() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.start()
        cluster.create("a", length=1)
        await until(lambda: bool(cluster.meter.grants))
        cluster.delete("a")
        cluster.create("b", length=1)
        await until(lambda: cluster.let_in == ["b"], 1)
        await consistent(cluster, 1)

    simulated(story)


def test_a_successor_of_the_same_name_is_another_waiter() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.start()
        cluster.create("a", length=1)
        await until(lambda: bool(cluster.meter.grants))
        cluster.delete("a")
        cluster.create("a", length=1)
        await until(lambda: cluster.let_in == ["a"], 7)
        await consistent(cluster, 1)
        (holder,) = (await cluster.store.state(KEY)).holders
        assert holder.uid == cluster.view("a").uid

    simulated(story)


def test_waiters_that_go_leave_the_line_and_nothing_else() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.start()
        names = await fill(cluster, 50)
        await until(lambda: len(cluster.let_in) == 3)
        await asyncio.sleep(0.1)
        for name in names:
            cluster.delete(name)
        await asyncio.sleep(2)
        assert (await cluster.store.state(KEY)).held == 0
        assert cluster.let_in == names[:3]

    simulated(story)


def test_a_pod_whose_gate_somebody_removed_comes_before_all_waiters() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.start()
        names = await fill(cluster, 3, length=1)
        cluster.create("sneaked", length=1, gated=False)
        await asyncio.sleep(10)
        assert ("sneaked", "WithoutPermit") in cluster.events
        cluster.finish(names[0])
        await until(lambda: "fencing-token" in str(cluster.documents["sneaked"]))
        assert cluster.let_in == names[:1]

    simulated(story)


def test_a_pod_whose_work_waits_for_a_permit_is_told_and_counted_as_a_waiter_and_served_first() -> None:
    async def story(cluster: Cluster) -> None:
        names = await fill(cluster, 2, length=1)
        cluster.start()
        await until(lambda: cluster.let_in == names[:1])
        await asyncio.sleep(60)
        cluster.create("held-back", length=1, gated=False, confirmed=False)
        cluster.start_sidecar("held-back")
        await asyncio.sleep(20)
        figures = cluster.meter.figures[KEY]
        assert figures is not None
        assert (figures.waiting, figures.late) == (2, 0)
        assert figures.oldest_wait_since == pytest.approx(cluster.view(names[1]).came)
        cluster.finish(names[0])
        await until(lambda: "fencing-token" in str(cluster.documents["held-back"]))
        await asyncio.sleep(20)
        assert [reason for pod, reason in cluster.events if pod == "held-back"] == ["WaitingForPermit", "PermitGranted"]
        assert cluster.let_in == names[:1]

    simulated(story)


def test_a_pod_that_is_held_back_is_served_two_seconds_after_its_permit_was_missed_and_not_a_resync_later() -> None:
    async def story(cluster: Cluster) -> None:
        names = await fill(cluster, 1, length=1)
        cluster.start()
        await until(lambda: cluster.let_in == names)
        await asyncio.sleep(2.1)
        # Told at once, as its sidecar does not run yet, and before that is known the permit is free.
        cluster.create("held-back", length=1, gated=False, confirmed=False)
        await asyncio.sleep(0.1)
        cluster.start_sidecar("held-back")
        await asyncio.sleep(0.1)
        cluster.finish(names[0])
        await until(lambda: "fencing-token" in str(cluster.documents["held-back"]), 2)
        await asyncio.sleep(1)
        assert [reason for pod, reason in cluster.events if pod == "held-back"] == ["WaitingForPermit", "PermitGranted"]

    simulated(story)


def test_the_length_follows_the_waiter_that_came_last() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.start()
        await fill(cluster, 4, length=1)
        await asyncio.sleep(1)
        assert len(cluster.let_in) == 1
        cluster.create("wide", length=3)
        await until(lambda: len(cluster.let_in) == 3, 1)
        assert cluster.let_in == ["p000", "p001", "p002"]

    simulated(story)


def test_an_ordinary_sidecar_is_told_when_the_others_have_ended() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.start()
        cluster.create("a", length=1, native=False)
        cluster.create("b", length=1, native=False)
        await until(lambda: cluster.let_in == ["a"])
        permit = cluster.view("a").permit
        assert await cluster.store.renew(KEY, permit, "a") == 60_000
        cluster.end_main("a")
        await until(lambda: cluster.let_in == ["a", "b"], 1)
        assert await cluster.store.renew(KEY, permit, "a") == -1
        assert cluster.events.count(("a", "PermitReclaimed")) == 0

    simulated(story)


def test_a_reservation_whose_pod_never_came_is_free_after_its_time_and_not_a_resync_later() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.start()
        await cluster.service.resize(KEY, 1, 1)
        await asyncio.sleep(2.5)
        await cluster.store.acquire(AcquireRequest(KEY, 1, 600, "never", "x"))
        await asyncio.sleep(14.9)
        assert (await cluster.store.state(KEY)).held == 1
        await asyncio.sleep(0.3)
        assert (await cluster.store.state(KEY)).held == 0
        assert cluster.meter.reasons == ["never_stored"]

    simulated(story)


def test_a_denied_owner_is_woken_when_nobody_waits() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.start()
        cluster.create("a", length=1)
        await until(lambda: cluster.let_in == ["a"])
        denied = AcquireRequest(KEY, 1, 60, "x", "x", owner="ReplicaSet/web")
        await cluster.store.acquire(denied)
        cluster.finish("a")
        await until(lambda: cluster.touched == ["ReplicaSet/web"], 1)
        await asyncio.sleep(6)
        assert (await cluster.store.state(KEY)).denied == ()
        assert ("web", "Woken") in cluster.events

    simulated(story)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_nobody_is_served_twice_and_nobody_is_forgotten(seed: int) -> None:
    """Two controllers at once, some of them killed, patches that fail before and after; pods that finish and go."""
    choose = random.Random(seed)  # noqa: S311 - the same at each run

    async def story(cluster: Cluster) -> None:
        controllers = [cluster.start(), cluster.start()]
        created = 0
        for _ in range(200):
            step = choose.random()
            if step < 0.4:
                cluster.create(f"p{created:03}", length=3)
                created += 1
            elif step < 0.7 and (active := cluster.active()):
                leave = choose.choice([cluster.finish, cluster.delete])
                leave(choose.choice(active))
            elif step < 0.75 and cluster.documents:
                cluster.delete(choose.choice(list(cluster.documents)))
            elif step < 0.85:
                cluster.faults.append(choose.choice(["before patch", "after patch"]))
            elif step < 0.9:
                await cluster.kill(controllers.pop(0))
                controllers.append(cluster.start())
            await asyncio.sleep(choose.choice([0, 0.001, 0.004, 0.02]))
            assert (await cluster.store.state(KEY)).held <= 3
        cluster.faults.clear()
        while waiting := [name for name in cluster.documents if cluster.view(name).gated]:
            before = len(waiting)
            for name in cluster.active():
                cluster.finish(name)
            await until(lambda: sum(cluster.view(n).gated for n in cluster.documents) < before, 12)  # noqa: B023 - used up at once
        await asyncio.sleep(20)
        await consistent(cluster, 3)
        assert len(set(cluster.let_in)) == len(cluster.let_in)
        assert cluster.most_active <= 3

    simulated(story)


def test_a_pod_whose_end_the_watch_has_not_told_does_not_come_before_those_that_are_there() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.start()
        cluster.create("a", length=1)
        await until(lambda: cluster.let_in == ["a"])
        permit = cluster.view("a").permit
        del cluster.documents["a"]
        cluster.create("b", length=1)
        patches = cluster.patches
        await cluster.store.release(KEY, permit)
        await until(lambda: cluster.let_in == ["a", "b"])
        await asyncio.sleep(10)
        assert cluster.patches - patches == 2  # one that found no pod "a", one that let "b" in
        await consistent(cluster, 1)

    simulated(story)
