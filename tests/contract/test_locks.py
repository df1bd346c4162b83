"""What every lock must do (`semaphore.contracts.Lock`), over real servers."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING

import pytest

from at_least_semaphore_pod_hook.errors import LockUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from at_least_semaphore_pod_hook.semaphore.contracts import Lock
    from tests.contract.lock_backends import LockBackend

    Closing = Callable[[Lock], Lock]

_NUMBERS = itertools.count()


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"namespace/lock-{next(_NUMBERS)}"


@pytest.fixture
def lock(lock_backend: LockBackend, closing: Closing) -> Lock:
    return closing(lock_backend.open())


@pytest.fixture
def other(lock_backend: LockBackend, closing: Closing) -> Lock:
    """A second client: another process, as far as the lock can tell."""
    return closing(lock_backend.open())


async def test_fifty_tasks_in_two_processes_exclude_each_other(
    lock_backend: LockBackend, name: str, tmp_path: Path
) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0", encoding="ascii")
    command = lock_backend.worker("count", name, str(counter), "25")
    workers = [await asyncio.create_subprocess_exec(*command) for _ in range(2)]
    assert [await worker.wait() for worker in workers] == [0, 0]
    assert counter.read_text(encoding="ascii") == "50"


async def test_tasks_of_one_client_exclude_each_other(lock: Lock, name: str) -> None:
    inside = 0

    async def enter() -> None:
        nonlocal inside
        async with lock.hold(name, 10):
            inside += 1
            assert inside == 1
            await asyncio.sleep(0.001)
            inside -= 1

    await asyncio.gather(*(enter() for _ in range(10)))


async def test_waiting_is_bounded_and_leaves_nothing_behind(lock: Lock, other: Lock, name: str) -> None:
    async with lock.hold(name, 5):
        began = time.monotonic()
        with pytest.raises(LockUnavailableError, match="still taken"):
            async with other.hold(name, 0.3):
                pytest.fail("two holders")
        assert 0.15 < time.monotonic() - began < 0.3 + 0.3
    await _is_free(other, name)


async def test_a_timeout_of_zero_is_no_error_of_its_own(lock: Lock, name: str) -> None:
    with pytest.raises(LockUnavailableError):
        async with lock.hold(name, 0):
            pytest.fail("nobody can answer in no time")
    await _is_free(lock, name)


async def test_a_waiter_gets_it_right_after_the_release(lock: Lock, other: Lock, name: str) -> None:
    async def wait() -> float:
        async with other.hold(name, 5):
            return time.monotonic()

    async with lock.hold(name, 5):
        waiter = asyncio.create_task(wait())
        await asyncio.sleep(0.3)
        assert not waiter.done()
    released = time.monotonic()
    assert await waiter - released < 0.2


async def test_a_killed_holder_frees_it_after_its_time_to_live(
    lock_backend: LockBackend, lock: Lock, name: str
) -> None:
    worker = await asyncio.create_subprocess_exec(*lock_backend.worker("hold", name), stdout=asyncio.subprocess.PIPE)
    assert worker.stdout is not None
    assert await worker.stdout.readline() == b"held\n"
    worker.kill()
    killed = time.monotonic()
    await worker.communicate()
    async with lock.hold(name, lock_backend.ttl + 5):
        assert time.monotonic() - killed < lock_backend.ttl + 1


@pytest.mark.parametrize("after", [0.0, 0.0005, 0.002, 0.005, 0.05])
async def test_a_cancelled_waiter_leaves_nothing_behind(lock: Lock, other: Lock, name: str, after: float) -> None:
    await other.ping()  # its connections are there: the moments below fall into its requests
    async with lock.hold(name, 5):
        waiters = [asyncio.create_task(_enter(other, name)) for _ in range(3)]
        await asyncio.sleep(after)
        await _cancel(*waiters)
    await _is_free(lock, name)


@pytest.mark.parametrize("after", [0.0, 0.0003, 0.001, 0.002, 0.004])
async def test_one_cancelled_while_it_takes_a_free_lock_leaves_nothing_behind(
    lock: Lock, other: Lock, name: str, after: float
) -> None:
    await lock.ping()
    taker = asyncio.create_task(_enter(lock, name, for_seconds=60))
    await asyncio.sleep(after)
    await _cancel(taker)
    await _is_free(other, name)


async def test_a_cancelled_holder_gives_it_back(lock: Lock, other: Lock, name: str) -> None:
    holding = asyncio.Event()

    async def hold() -> None:
        async with lock.hold(name, 5):
            holding.set()
            await asyncio.sleep(60)

    holder = asyncio.create_task(hold())
    await holding.wait()
    await _cancel(holder)
    await _is_free(other, name)


@pytest.mark.parametrize("error", [ValueError("mine"), TimeoutError("mine"), LockUnavailableError("mine")])
async def test_an_error_of_the_body_comes_through(lock: Lock, name: str, error: Exception) -> None:
    with pytest.raises(type(error), match=r"^mine$"):
        async with lock.hold(name, 5):
            raise error
    await _is_free(lock, name)


async def test_names_are_independent(lock: Lock, other: Lock, name: str) -> None:
    names = [name, f"{name}/nested", f"{name}/nested/deeper", name.partition("/")[0], f"{name}%2Fnested"]
    for number, held in enumerate(names):
        async with lock.hold(held, 5):
            for free in names[number + 1 :] + names[:number]:
                async with other.hold(free, 1):
                    pass


async def test_fences_of_one_lock_share_a_domain_and_rise_where_they_have_tokens(
    lock: Lock, other: Lock, name: str
) -> None:
    fences = []
    for client in (lock, other, lock):
        async with client.hold(name, 5) as fence:
            fences.append(fence)
    assert len({fence.domain for fence in fences}) == 1
    tokens = [fence.token for fence in fences]
    assert tokens == [0, 0, 0] or tokens == sorted(set(tokens))


async def test_ping_returns(lock: Lock) -> None:
    await lock.ping()


async def test_close_without_use(lock_backend: LockBackend) -> None:
    await lock_backend.open().close()


async def _enter(lock: Lock, name: str, for_seconds: float = 0) -> None:
    async with lock.hold(name, 5):
        await asyncio.sleep(for_seconds)


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True))


async def _is_free(lock: Lock, name: str) -> None:
    """Far sooner than any time to live."""
    async with lock.hold(name, 0.4):
        pass
