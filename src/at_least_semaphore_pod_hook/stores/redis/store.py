"""Semaphores in Redis or Valkey: each operation is one Lua script in `scripts/`."""

from __future__ import annotations

import re
from contextlib import aclosing
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from at_least_semaphore_pod_hook.errors import NotHolderError, StaleFenceError
from at_least_semaphore_pod_hook.semaphore.model import (
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
from at_least_semaphore_pod_hook.stores.redis.advice import Advisor
from at_least_semaphore_pod_hook.stores.redis.batcher import Script
from at_least_semaphore_pod_hook.stores.redis.server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from at_least_semaphore_pod_hook.addresses import Address
    from at_least_semaphore_pod_hook.stores.redis.server import Caller

TIMEOUT_SECONDS = 5.0
RECLAIM_BATCH = 1000
ADOPT_BATCH = 200
STATE_PIECE = 1000
ANOTHERS = -2
"""What `renew.lua` and `release.lua` return where the permit is another pod's than the one that has shown its UID."""


def _script(name: str, *, epoch: bool = False, grants: bool = False) -> Script:
    return Script.of(name, (files(__package__) / "scripts" / f"{name}.lua").read_text(), epoch=epoch, grants=grants)


ACQUIRE, RENEW, RELEASE = _script("acquire", epoch=True, grants=True), _script("renew"), _script("release")
RECLAIM, FORGET_DENIED = _script("reclaim"), _script("forget_denied")
BEGIN, SET_LENGTH = _script("begin", epoch=True), _script("set_length", epoch=True, grants=True)
ADOPT, STATE = _script("adopt", grants=True), _script("state", epoch=True)
MARK, MARK_KEY = _script("mark"), "queue/version"


class _Record(msgspec.Struct):
    """A holder as `acquire.lua` writes it."""

    pod: str = ""
    uid: str = ""
    token: str = "0"  # noqa: S105 - a fencing token is no secret
    confirmed: bool = False
    lease: int = 0
    granted: int = 0
    renewed: int = 0


_OUTCOMES = {outcome.value.encode(): outcome for outcome in Outcome}

_semaphore_pattern = re.compile(rb"inflight/\{([a-z0-9-]+)/([A-Za-z0-9._-]+)\}")

_queue_pattern = re.compile(rb"queue/\{([a-z0-9-]+)/([A-Za-z0-9._-]+)\}")

_record = msgspec.json.Decoder(_Record)


def _keys(key: SemaphoreKey) -> tuple[str, str, str, str, str]:
    """All keys of a semaphore share a hash tag, and so a slot of a Redis Cluster."""
    tag = f"{{{key.namespace}/{key.key}}}"
    return f"queue/{tag}", f"inflight/{tag}", f"inflight/{tag}/holders", f"queue/{tag}/denied", f"inflight/{tag}/ended"


def _of_holder(reply: int, permit: str, pod: str) -> int:
    if reply == ANOTHERS:
        raise NotHolderError(f"permit {permit} is not the one of pod {pod}")
    return reply


def _holder(permit: str, stored: bytes, lease_ms: int, now: int) -> Holder:
    record = _record.decode(stored)
    return Holder(
        permit,
        record.pod,
        int(record.token),
        record.confirmed,
        lease_ms,
        record.uid,
        record.lease,
        now - record.granted,
        now - max(record.granted, record.renewed),
    )


def open_redis_store(address: Address, *, timeout: float = TIMEOUT_SECONDS, wait_replicas: int = 0) -> RedisStore:
    """Open the store that is one server.

    Args:
        address: The server.
        timeout: Seconds after which a connection or an answer is given up.
        wait_replicas: How many replicas must have a grant before it counts.
    """
    advise = Advisor(str(address), wait_replicas=wait_replicas)
    return RedisStore(Server(address, timeout, wait_replicas=wait_replicas, learned=advise))


class RedisStore:
    """The `Store` contract over Redis or Valkey.

    Args:
        caller: What calls the scripts, where the semaphore is.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def acquire(self, request: AcquireRequest, timeout: float | None = None) -> Acquired:
        """See `Store.acquire`."""
        reply = await self._caller.call(
            ACQUIRE,
            _keys(request.key),
            (
                request.permit,
                request.carried,
                request.identity,
                request.pod,
                request.length,
                request.expiration_seconds * 1000,
                FRESH_SECONDS * 1000,
                int(request.dry_run),
                request.assumed_length,
                request.owner,
                request.uid,
            ),
            timeout,
        )
        outcome, length, held, *rest = reply
        if not rest:
            return Acquired(_OUTCOMES[outcome], length, held)
        permit, token, *holders = (part.decode() for part in rest)
        return Acquired(_OUTCOMES[outcome], length, held, permit, int(token), tuple(holders))

    async def renew(self, key: SemaphoreKey, permit: str, pod: str = "", uid: str = "") -> int:
        """See `Store.renew`."""
        shown = (uid, 1) if uid else ()
        return _of_holder(int(await self._caller.call(RENEW, _keys(key), (permit, pod, *shown))), permit, pod)

    async def keep(self, key: SemaphoreKey, permit: str, pod: str, uid: str) -> int:
        """See `Store.keep`."""
        return int(await self._caller.call(RENEW, _keys(key), (permit, pod, uid)))

    async def release(
        self, key: SemaphoreKey, permit: str, pod: str = "", *, uid: str = "", ended: bool = False
    ) -> bool:
        """See `Store.release`."""
        reply = await self._caller.call(RELEASE, _keys(key), (permit, pod, int(ended), uid))
        return bool(_of_holder(int(reply), permit, pod))

    async def reclaim(self, key: SemaphoreKey) -> int:
        """See `Store.reclaim`. Large numbers are taken back in batches, so that nobody waits long behind them."""
        total = 0
        while True:
            taken = int(await self._caller.call(RECLAIM, _keys(key), (RECLAIM_BATCH,)))
            total += taken
            if taken < RECLAIM_BATCH:
                return total

    async def begin(self, key: SemaphoreKey, fence: Fence) -> Step:
        """See `Store.begin`."""
        reply: list[Any] = await self._caller.call(BEGIN, _keys(key), (fence.domain, fence.token))
        if not reply[0]:
            raise StaleFenceError(f"semaphore {key}: fencing token {fence.token} of {fence.domain} is out of date")
        _, token, length, held, complete = reply
        return Step(Fence(fence.domain, int(token)), length, held, bool(complete))

    async def set_length(self, key: SemaphoreKey, length: int, fence: Fence) -> None:
        """See `Store.set_length`."""
        if not await self._caller.call(SET_LENGTH, _keys(key), (fence.domain, fence.token, length)):
            raise StaleFenceError(f"semaphore {key}: fencing token {fence.token} of {fence.domain} is out of date")

    async def adopt(self, key: SemaphoreKey, adoptees: Sequence[Adoptee], fence: Fence) -> int:
        """See `Store.adopt`. Large numbers are put back in batches: it may be repeated."""
        total = 0
        # Once where there are none, too: an outdated fence is said all the same.
        for start in range(0, len(adoptees) or 1, ADOPT_BATCH):
            batch = adoptees[start : start + ADOPT_BATCH]
            rows = [(one.permit, one.pod, one.uid, one.token, one.expiration_seconds * 1000) for one in batch]
            args = (fence.domain, fence.token, *(value for row in rows for value in row))
            adopted = int(await self._caller.call(ADOPT, _keys(key), args))
            if adopted < 0:
                raise StaleFenceError(f"semaphore {key}: fencing token {fence.token} of {fence.domain} is out of date")
            total += adopted
        return total

    async def state(self, key: SemaphoreKey) -> SemaphoreState:
        """See `Store.state`. A large one is read a piece at a time, so that nobody waits long behind it.

        Whoever holds a permit all the while is in one of the pieces: a renewal moves him behind what is read already.
        """
        holders: dict[str, Holder] = {}
        start, size = "", STATE_PIECE
        while True:
            (length, now, complete), rest, denied = await self._caller.call(STATE, _keys(key), (start, size))
            known = len(holders)
            for permit, stored, lease_ms in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
                holder = _holder(permit.decode(), stored, lease_ms, now)
                holders[holder.permit] = holder
                start = str(now + lease_ms)
            if len(rest) < 3 * size:
                break
            if len(holders) == known:
                # So many leases end in the same millisecond.
                size *= 2
        owners = tuple(owner.decode() for owner in denied)
        return SemaphoreState(length, tuple(holders.values()), owners, complete=bool(complete))

    async def forget_denied(self, key: SemaphoreKey, owner: str) -> None:
        """See `Store.forget_denied`."""
        await self._caller.call(FORGET_DENIED, _keys(key), (owner,))

    async def changes(self) -> AsyncIterator[SemaphoreKey]:
        """See `Store.changes`: a subscription to the channels that `release.lua` publishes to."""
        async with aclosing(self._caller.channels("queue/{*}")) as channels:
            async for channel in channels:
                if found := _queue_pattern.fullmatch(channel):
                    yield SemaphoreKey(found[1].decode(), found[2].decode())

    async def semaphores(self) -> AsyncIterator[SemaphoreKey]:
        """See `Store.semaphores`."""
        async with aclosing(self._caller.sorted_sets("inflight/{*}")) as names:
            async for name in names:
                # Whoever reaches the store may have left keys there that are none of ours.
                if found := _semaphore_pattern.fullmatch(name):
                    yield SemaphoreKey(found[1].decode(), found[2].decode())

    async def version(self) -> int:
        """See `Store.version`."""
        return await self.mark(0)

    async def mark(self, version: int) -> int:
        """See `Store.mark`."""
        return read_mark((await self._caller.call(MARK, (MARK_KEY,), (version,))).decode(errors="replace"))

    async def close(self) -> None:
        """See `Store.close`."""
        await self._caller.close()
