"""The redlock's arithmetic, and what it accepts."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.errors import InvalidInputError, LockUnavailableError
from at_least_semaphore_pod_hook.locks.lifetime import Cleanups
from at_least_semaphore_pod_hook.locks.redlock import Redlock, backoffs, quorum, validity
from at_least_semaphore_pod_hook.locks.turns import Turns


def _addresses(count: int) -> list[Address]:
    return [Address("127.0.0.1", 7000 + number, password="secret-word") for number in range(count)]


@pytest.mark.parametrize(("servers", "needed"), [(1, 1), (3, 2), (5, 3)])
def test_quorum(servers: int, needed: int) -> None:
    assert quorum(servers) == needed


@pytest.mark.parametrize(
    ("ttl", "elapsed", "left"), [(10, 0, 9.898), (10, 0.5, 9.398), (1, 0.988, 0), (1, 2, -1.012), (0.002, 0, -0.00002)]
)
def test_validity_counts_what_passed_and_the_drift(ttl: float, elapsed: float, left: float) -> None:
    assert validity(ttl, elapsed) == pytest.approx(left)


def test_backoffs_are_random_and_grow_up_to_a_limit() -> None:
    pauses = list(itertools.islice(backoffs(), 100))
    assert all(0.005 <= pause <= 0.08 for pause in pauses)
    assert pauses[0] <= 0.01
    assert min(pauses[4:]) >= 0.04
    assert len(set(pauses)) > 90


@pytest.mark.parametrize("count", [1, 3, 5])
async def test_accepted_sizes(count: int) -> None:
    await Redlock(_addresses(count)).close()


@pytest.mark.parametrize("count", [0, 2, 4, 6, 7])
def test_other_sizes_are_refused_with_what_is_accepted(count: int) -> None:
    with pytest.raises(InvalidInputError, match="1, 3 or 5 Redis addresses") as caught:
        Redlock(_addresses(count))
    assert "secret-word" not in str(caught.value)


def test_two_databases_of_one_server_are_refused() -> None:
    first, second, third = _addresses(3)
    with pytest.raises(
        InvalidInputError, match=r"each a server of its own.*0\.1:7000, 127\.0\.0\.1:7001, 127\.0\.0\.1:7000"
    ):
        Redlock([first, second, third._replace(port=first.port, database=1)])


@pytest.mark.parametrize(("ttl", "node_timeout"), [(1.0, 0.0), (1.0, -1.0), (1.0, 1.0), (0.002, None), (0.0, None)])
def test_times_that_leave_nothing_are_refused(ttl: float, node_timeout: float | None) -> None:
    with pytest.raises(InvalidInputError, match="node timeout"):
        Redlock(_addresses(1), ttl=ttl, node_timeout=node_timeout)


async def test_turns_come_in_order_and_leave_nothing_behind() -> None:
    turns, order = Turns(), []
    deadline = asyncio.get_running_loop().time() + 5

    async def take(number: int) -> None:
        async with turns.turn("name", deadline) as waited:
            order.append((number, waited))
            await asyncio.sleep(0)

    await asyncio.gather(*(take(number) for number in range(3)))
    assert order == [(0, False), (1, True), (2, True)]
    async with turns.turn("name", deadline):
        with pytest.raises(LockUnavailableError, match="'name' is still taken"):
            async with turns.turn("name", asyncio.get_running_loop().time() + 0.01):
                pytest.fail("two at once")
        async with turns.turn("other", deadline) as waited:
            assert not waited
    assert turns._lines._lines == {}


async def test_a_cleanup_outlives_its_cancelled_caller() -> None:
    cleanups, done = Cleanups(grace=5), asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.01)
        done.set()

    caller = asyncio.create_task(cleanups.run(work()))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert caller.cancelled()
    assert not done.is_set()
    await cleanups.close(1)
    assert done.is_set()


async def test_a_cleanup_that_hangs_holds_up_neither_its_caller_nor_the_close() -> None:
    cleanups = Cleanups(grace=0.01)
    cancelled = False

    async def hang() -> None:
        nonlocal cancelled
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled = True
            raise

    async with asyncio.timeout(1):
        await cleanups.run(hang())
        assert not cancelled
        await cleanups.close(0.01)
    assert cancelled
