"""A store whose every call is recorded, and may be late or lose its answer on the way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from at_least_semaphore_pod_hook.errors import StaleFenceError, StoreUnavailableError
from at_least_semaphore_pod_hook.semaphore.contracts import Store
from at_least_semaphore_pod_hook.semaphore.model import Acquired, AcquireRequest, Adoptee, Fence, SemaphoreKey, Step
from tests.chaos.history import Handle, Recorder
from tests.chaos.journal import Entry, Journal

T = TypeVar("T")


class Faults:
    """What happens to a client's calls on their way; the seed decides.

    Args:
        chance: Where the decisions come from.
        lose: Share of answers that are lost.
        delay_seconds: How long a call and its answer are held up at most, each.
    """

    def __init__(self, chance: random.Random, lose: float, delay_seconds: float) -> None:
        self._chance = chance
        self._lose = lose
        self._delay = delay_seconds

    async def pass_through(self, kind: str, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call, late and perhaps without an answer."""
        await self._wait()
        answer = await call()
        await self._wait()
        if kind in {"acquire", "renew", "release"} and self._chance.random() < self._lose:
            raise StoreUnavailableError("the answer was lost")
        return answer

    async def _wait(self) -> None:
        if self._delay:
            await asyncio.sleep(self._chance.uniform(0, self._delay))


class RecordedStore:
    """A store whose calls go through faults and are recorded as its caller sees them.

    Whatever is not recorded is the inner store's own.
    """

    def __init__(self, inner: Store, recorder: Recorder | Journal, process: str, faults: Faults) -> None:
        self._inner = inner
        self._recorder = recorder
        self._process = process
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def _call(
        self,
        kind: str,
        key: SemaphoreKey,
        permit: str,
        call: Callable[[], Awaitable[T]],
        result: Callable[[T], dict[str, Any]],
        **arguments: Any,
    ) -> T:
        handle: Handle | Entry = self._recorder.invoke(self._process, kind, str(key), permit, **arguments)
        try:
            answer = await self._faults.pass_through(kind, call)
        except StaleFenceError:
            handle.fail(stale=True)
            raise
        except BaseException:
            handle.unknown()
            raise
        handle.ok(**result(answer))
        return answer

    async def acquire(self, request: AcquireRequest, timeout: float | None = None) -> Acquired:
        return await self._call(
            "acquire",
            request.key,
            request.permit,
            lambda: self._inner.acquire(request, timeout),
            lambda acquired: _acquired(acquired, request),
            length=request.length,
            expiration_ms=request.expiration_seconds * 1000,
            identity=request.identity,
            carried=request.carried,
            pod=request.pod,
            dry_run=request.dry_run,
        )

    async def renew(self, key: SemaphoreKey, permit: str, pod: str = "", uid: str = "") -> int:
        call = self._inner.renew
        return await self._call("renew", key, permit, lambda: call(key, permit, pod, uid), _lease, pod=pod)

    async def keep(self, key: SemaphoreKey, permit: str, pod: str, uid: str) -> int:
        call = self._inner.keep
        return await self._call("keep", key, permit, lambda: call(key, permit, pod, uid), _lease, pod=pod, uid=uid)

    async def release(
        self, key: SemaphoreKey, permit: str, pod: str = "", *, uid: str = "", ended: bool = False
    ) -> bool:
        return await self._call(
            "release",
            key,
            permit,
            lambda: self._inner.release(key, permit, pod, uid=uid, ended=ended),
            lambda released: {"released": released},
            pod=pod,
            ended=ended,
        )

    async def reclaim(self, key: SemaphoreKey) -> int:
        return await self._call("reclaim", key, "", lambda: self._inner.reclaim(key), lambda count: {"count": count})

    async def adopt(self, key: SemaphoreKey, adoptees: Sequence[Adoptee], fence: Fence) -> int:
        return await self._call(
            "adopt",
            key,
            "",
            lambda: self._inner.adopt(key, adoptees, fence),
            lambda count: _adopted(adoptees, count),
            permits=_adopted(adoptees, -1)["permits"],
            domain=fence.domain,
            token=fence.token,
        )

    async def begin(self, key: SemaphoreKey, fence: Fence) -> Step:
        return await self._call(
            "begin",
            key,
            "",
            lambda: self._inner.begin(key, fence),
            lambda step: {"token": step.fence.token, "length": step.length},
            domain=fence.domain,
        )

    async def set_length(self, key: SemaphoreKey, length: int, fence: Fence) -> None:
        await self._call(
            "set_length",
            key,
            "",
            lambda: self._inner.set_length(key, length, fence),
            lambda _: {"length": length},
            length=length,
            domain=fence.domain,
            token=fence.token,
        )


def _acquired(acquired: Acquired, request: AcquireRequest) -> dict[str, Any]:
    result: dict[str, Any] = {"outcome": acquired.outcome.value, "length": acquired.length, "held": acquired.held}
    if acquired.permit:
        lease = {"lease_ms": request.expiration_seconds * 1000}
        result |= {"permit": acquired.permit, "token": acquired.token} | lease
    return result


def _adopted(adoptees: Sequence[Adoptee], count: int) -> dict[str, Any]:
    """Those that the store knew already keep their leases: only where it knew none is it certain that all are new."""
    permits = []
    for one in adoptees:
        lease = {"lease_ms": one.expiration_seconds * 1000 if count == len(adoptees) else 0}
        permits.append({"permit": one.permit} | lease | ({"token": one.token} if one.token else {}))
    return {"permits": permits, "count": count}


def _lease(lease_ms: int) -> dict[str, Any]:
    return {"lease_ms": lease_ms}
