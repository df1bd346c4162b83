"""Semaphores in a dict: for trying out, and the executable specification that the other stores are compared with."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.errors import NotHolderError, StaleFenceError
from at_least_semaphore_pod_hook.holding import is_anothers
from at_least_semaphore_pod_hook.semaphore.model import (
    ENDED_SECONDS,
    FRESH_SECONDS,
    Acquired,
    AcquireRequest,
    Adoptee,
    Fence,
    Holder,
    Outcome,
    SemaphoreKey,
    SemaphoreState,
    Step,
)
from at_least_semaphore_pod_hook.semaphore.versions import read_mark

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

MAX_HOLDERS_NAMED = 3
MAX_DENIED_NAMED = 100


@dataclass(slots=True)
class _Held:
    identity: str
    pod: str
    token: int
    lease_ms: int
    granted_ms: int
    lease_end_ms: int
    confirmed: bool = False
    renewed_ms: int = 0
    uid: str = ""

    def is_of_another(self, pod: str) -> bool:
        return self.confirmed and pod not in {"", self.pod}

    def check(self, permit: str, pod: str, uid: str) -> None:
        """Raise NotHolderError where a pod that has shown who it is does not hold this."""
        if is_anothers(self.pod, self.uid, confirmed=self.confirmed, pod=pod, uid=uid):
            raise NotHolderError(f"permit {permit} is not the one of pod {pod}")


@dataclass(slots=True)
class _Semaphore:
    length: int = 0
    token: int = 0
    epoch: int = -1
    fences: dict[str, int] = field(default_factory=dict)
    permits: dict[str, _Held] = field(default_factory=dict)
    denied: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)

    def live(self, now_ms: int) -> list[tuple[str, _Held]]:
        return [(permit, held) for permit, held in self.permits.items() if held.lease_end_ms > now_ms]


class MemoryStore:
    """The `Store` contract within one process.

    Args:
        clock: Returns seconds since 1970.

    Attributes:
        epoch: To be set to another number by whoever takes data away from it.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.epoch = 0
        self._clock = clock
        self._semaphores: dict[SemaphoreKey, _Semaphore] = {}
        self._mark = ""
        self._listeners: list[asyncio.Queue[SemaphoreKey]] = []

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _next_token(self, last: int) -> int:
        return max(last + 1, int(self._clock() * 1_000_000))

    def _get(self, key: SemaphoreKey) -> _Semaphore:
        return self._semaphores.get(key) or _Semaphore()

    @staticmethod
    def _held(semaphore: _Semaphore, permit: str, now_ms: int) -> _Held | None:
        held = semaphore.permits.get(permit)
        return held if held and held.lease_end_ms > now_ms else None

    async def acquire(self, request: AcquireRequest, timeout: float | None = None) -> Acquired:  # noqa: ARG002 - at once
        """See `Store.acquire`."""
        now = self._now_ms()
        semaphore = self._get(request.key)
        live = semaphore.live(now)
        length = (request.assumed_length if request.dry_run else 0) or semaphore.length
        carried, own = self._held(semaphore, request.carried, now), self._held(semaphore, request.permit, now)
        if (
            carried
            and not carried.confirmed
            and not carried.uid
            and carried.identity == request.identity
            and now - carried.granted_ms < FRESH_SECONDS * 1000
        ):
            return Acquired(Outcome.RESUMED, length, len(live), request.carried, carried.token)
        if own and own.identity == request.identity:
            return Acquired(Outcome.RESUMED, length, len(live), request.permit, own.token)
        if length == 0 or request.length not in {0, length}:
            return Acquired(Outcome.OTHER_LENGTH, length, len(live))
        if semaphore.epoch != self.epoch and not request.dry_run:
            return Acquired(Outcome.INCOMPLETE, length, len(live))
        if len(live) >= length or own:
            if request.owner and not request.dry_run:
                semaphore.denied.setdefault(request.owner, now)
            latest = sorted(live, key=lambda item: (item[1].lease_end_ms, item[0]), reverse=True)
            pods = tuple(held.pod for _, held in latest[:MAX_HOLDERS_NAMED])
            return Acquired(Outcome.FULL, length, len(live), holders=pods)
        token = self._next_token(semaphore.token)
        if not request.dry_run:
            lease_ms = request.expiration_seconds * 1000
            semaphore.denied.pop(request.owner, None)
            semaphore.ended.pop(request.permit, None)
            semaphore.token = token
            semaphore.permits = dict(live)
            semaphore.permits[request.permit] = _Held(
                request.identity, request.pod, token, lease_ms, now, lease_end_ms=now + lease_ms, uid=request.uid
            )
        return Acquired(Outcome.GRANTED, length, len(live) + 1, request.permit, token)

    async def renew(self, key: SemaphoreKey, permit: str, pod: str = "", uid: str = "") -> int:
        """See `Store.renew`."""
        held = self._extend(key, permit, pod, uid)
        if held is None:
            semaphore = self._get(key)
            noted = permit not in semaphore.permits and permit in semaphore.ended
            return -1 if noted and semaphore.ended[permit] > self._now_ms() - ENDED_SECONDS * 1000 else 0
        held.confirmed = True
        held.uid = uid or held.uid
        held.renewed_ms = self._now_ms()
        return held.lease_ms

    async def keep(self, key: SemaphoreKey, permit: str, pod: str, uid: str) -> int:
        """See `Store.keep`."""
        held = self._extend(key, permit, pod)
        if held is None:
            return 0
        held.uid = uid
        return held.lease_ms

    def _extend(self, key: SemaphoreKey, permit: str, pod: str, uid: str = "") -> _Held | None:
        now = self._now_ms()
        semaphore = self._get(key)
        held = semaphore.permits.get(permit)
        if held is None:
            return None
        if uid:
            held.check(permit, pod, uid)
        elif held.is_of_another(pod):
            return None
        if held.lease_end_ms <= now and len(semaphore.live(now)) >= semaphore.length:
            return None
        held.pod = pod or held.pod
        held.lease_end_ms = now + held.lease_ms
        return held

    async def release(
        self, key: SemaphoreKey, permit: str, pod: str = "", *, uid: str = "", ended: bool = False
    ) -> bool:
        """See `Store.release`."""
        now = self._now_ms()
        permits = self._get(key).permits
        held = permits.get(permit)
        if held and uid:
            held.check(permit, pod, uid)
        elif held and held.is_of_another(pod):
            return False
        if ended:
            semaphore = self._semaphores.setdefault(key, _Semaphore())
            noted = {other: at for other, at in semaphore.ended.items() if at > now - ENDED_SECONDS * 1000}
            semaphore.ended = noted | {permit: now}
        if held is None:
            return False
        del permits[permit]
        for listener in self._listeners:
            listener.put_nowait(key)
        return held.lease_end_ms > now

    async def reclaim(self, key: SemaphoreKey) -> int:
        """See `Store.reclaim`."""
        semaphore = self._get(key)
        live = dict(semaphore.live(self._now_ms()))
        expired = len(semaphore.permits) - len(live)
        semaphore.permits = live
        return expired

    async def begin(self, key: SemaphoreKey, fence: Fence) -> Step:
        """See `Store.begin`."""
        semaphore = self._semaphores.setdefault(key, _Semaphore())
        newest = semaphore.fences.get(fence.domain, 0)
        token = fence.token or self._next_token(newest)
        if token < newest:
            raise StaleFenceError(f"semaphore {key}: fencing token {token} of {fence.domain} is out of date")
        semaphore.fences[fence.domain] = token
        held = len(semaphore.live(self._now_ms()))
        return Step(Fence(fence.domain, token), semaphore.length, held, semaphore.epoch == self.epoch)

    async def set_length(self, key: SemaphoreKey, length: int, fence: Fence) -> None:
        """See `Store.set_length`."""
        semaphore = self._fenced(key, fence)
        semaphore.length = length
        semaphore.epoch = self.epoch

    async def adopt(self, key: SemaphoreKey, adoptees: Sequence[Adoptee], fence: Fence) -> int:
        """See `Store.adopt`."""
        semaphore = self._fenced(key, fence)
        now = self._now_ms()
        lost = [adoptee for adoptee in adoptees if not self._held(semaphore, adoptee.permit, now)]
        semaphore.token = max([semaphore.token, *(adoptee.token for adoptee in lost)])
        for permit, pod, uid, token, expiration_seconds in lost:
            if not token:
                semaphore.token = self._next_token(semaphore.token)
            lease_ms = expiration_seconds * 1000
            semaphore.permits[permit] = _Held(
                uid, pod, token or semaphore.token, lease_ms, now, lease_end_ms=now + lease_ms, uid=uid
            )
        return len(lost)

    def _fenced(self, key: SemaphoreKey, fence: Fence) -> _Semaphore:
        semaphore = self._get(key)
        if semaphore.fences.get(fence.domain, 0) != fence.token:
            raise StaleFenceError(f"semaphore {key}: fencing token {fence.token} of {fence.domain} is out of date")
        return semaphore

    async def state(self, key: SemaphoreKey) -> SemaphoreState:
        """See `Store.state`."""
        now = self._now_ms()
        semaphore = self._get(key)
        live = sorted(semaphore.live(now), key=lambda item: (item[1].lease_end_ms, item[0]))
        return SemaphoreState(
            semaphore.length,
            tuple(
                Holder(
                    permit,
                    held.pod,
                    held.token,
                    held.confirmed,
                    held.lease_end_ms - now,
                    held.uid,
                    held.lease_ms,
                    now - held.granted_ms,
                    now - max(held.granted_ms, held.renewed_ms),
                )
                for permit, held in live
            ),
            tuple(sorted(semaphore.denied, key=lambda owner: (semaphore.denied[owner], owner))[:MAX_DENIED_NAMED]),
            complete=semaphore.epoch == self.epoch,
        )

    async def forget_denied(self, key: SemaphoreKey, owner: str) -> None:
        """See `Store.forget_denied`."""
        self._get(key).denied.pop(owner, None)

    async def changes(self) -> AsyncIterator[SemaphoreKey]:
        """See `Store.changes`."""
        listener: asyncio.Queue[SemaphoreKey] = asyncio.Queue()
        self._listeners.append(listener)
        try:
            while True:
                yield await listener.get()
        finally:
            self._listeners.remove(listener)

    async def semaphores(self) -> AsyncIterator[SemaphoreKey]:
        """See `Store.semaphores`."""
        for key in [key for key, semaphore in self._semaphores.items() if semaphore.permits]:
            yield key

    async def version(self) -> int:
        """See `Store.version`."""
        return read_mark(self._mark)

    async def mark(self, version: int) -> int:
        """See `Store.mark`."""
        self._mark = str(max(version, read_mark(self._mark)))
        return int(self._mark)

    async def close(self) -> None:
        """See `Store.close`."""
