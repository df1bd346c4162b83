"""What the tests of the etcd store begin with: a semaphore, a pod's wish, and a condition to wait for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, SemaphoreKey
from at_least_semaphore_pod_hook.stores.etcd.store import EtcdStore
from tests.contract.wishes import KEY, REDLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    Opener = Callable[..., EtcdStore]


def wish(permit: str, length: int = 3, **other: Any) -> AcquireRequest:
    return AcquireRequest(KEY, length, 60, permit, identity=f"id-{permit}", pod=f"pod-{permit}")._replace(**other)


async def create(store: EtcdStore, length: int = 3, key: SemaphoreKey = KEY) -> None:
    step = await store.begin(key, REDLOCK)
    await store.set_length(key, length, step.fence)


async def until(condition: Callable[[], Any], timeout: float = 5.0) -> None:
    async with asyncio.timeout(timeout):
        while not await condition():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.02)
