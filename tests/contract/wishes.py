"""What the tests of every store begin with: a semaphore, and a pod's wish for a permit of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, SemaphoreKey

if TYPE_CHECKING:
    from tests.contract.subjects import Subject

KEY = SemaphoreKey("default", "resource-name")
REDLOCK = Fence("redlock", 0)


def wish(permit: str, **other: Any) -> AcquireRequest:
    return AcquireRequest(KEY, 3, 60, permit, identity=f"id-{permit}", pod=f"pod-{permit}")._replace(**other)


async def create(subject: Subject, length: int = 3, key: SemaphoreKey = KEY) -> None:
    step = await subject.store.begin(key, REDLOCK)
    await subject.store.set_length(key, length, step.fence)
