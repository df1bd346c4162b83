"""What the unit tests put in the place of the outside world."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from at_least_semaphore_pod_hook.errors import LockUnavailableError, StoreUnavailableError
from at_least_semaphore_pod_hook.semaphore.model import Fence
from at_least_semaphore_pod_hook.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PREFIX = "at-least-semaphore-pod-hook.kaidotio.github.io/"


class LocalLock:
    """The Lock contract within one event loop."""

    def __init__(self) -> None:
        self.acquisitions = 0
        self.reachable = True
        self._locks: dict[str, asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def hold(self, name: str, timeout: float) -> AsyncIterator[Fence]:
        lock = self._locks.setdefault(name, asyncio.Lock())
        try:
            async with asyncio.timeout(timeout):
                await lock.acquire()
        except TimeoutError as error:
            raise LockUnavailableError(f"lock {name} was taken for {timeout} s") from error
        try:
            self.acquisitions += 1
            await asyncio.sleep(0)
            yield Fence("local", self.acquisitions)
        finally:
            lock.release()

    async def ping(self) -> None:
        if not self.reachable:
            raise LockUnavailableError("nobody answers")

    async def close(self) -> None:
        pass


class FaultyStore(MemoryStore):
    """A memory store that does as it is told: `fail` before or after the operation, or hang."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.faults: dict[str, list[str]] = {}
        self.calls: list[str] = []

    async def _fault(self, name: str, moment: str, timeout: float | None) -> None:
        planned = self.faults.get(name, [])
        if planned and planned[0].endswith(moment):
            fault = planned.pop(0)
            if fault.startswith("hang"):
                await asyncio.sleep(3600 if timeout is None else timeout)
            raise StoreUnavailableError(f"the store did not {name}")

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in {"acquire", "release", "begin", "set_length", "reclaim"}:
            return found

        async def wrapped(*args: Any, **named: Any) -> Any:
            self.calls.append(name)
            timeout = args[1] if name == "acquire" and len(args) > 1 else None
            await self._fault(name, "before", timeout)
            result = await found(*args, **named)
            await self._fault(name, "after", timeout)
            return result

        return wrapped


def notes(**changes: str | None) -> dict[str, str]:
    """An opted-in pod's annotations, changed or (None) left out."""
    values: dict[str, str | None] = {
        "at-least-semaphore-pod": "true",
        "key": "resource-name",
        "length": "3",
        "expiration": "60",
        **changes,
    }
    return {PREFIX + name: value for name, value in values.items() if value is not None}


def pod(name: str | None = "web-0", **changes: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"annotations": notes()}
    metadata |= {"name": name} if name else {"generateName": "web-"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata | changes.pop("metadata", {}),
        "spec": {"containers": [{"name": "main", "image": "busybox"}]} | changes.pop("spec", {}),
    }


def review(object_: Any, **changes: Any) -> dict[str, Any]:
    request: dict[str, Any] = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "operation": "CREATE",
        "namespace": "default",
        "userInfo": {"username": "admin"},
        "object": object_,
        **changes,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
