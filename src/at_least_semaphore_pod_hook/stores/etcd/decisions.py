"""What an acquire and a guarded step come to, as pure functions of what was read in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from at_least_semaphore_pod_hook.errors import StaleFenceError
from at_least_semaphore_pod_hook.semaphore.model import Acquired, AcquireRequest, Fence, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from at_least_semaphore_pod_hook.semaphore.model import Adoptee, SemaphoreKey


class Head(msgspec.Struct, frozen=True):
    """A semaphore without its holders; what its fields mean stands in `etcd_permits`."""

    length: int = 0
    token: int = 0
    fences: dict[str, int] = {}
    epoch: str = ""
    held: int = 0


class Record(msgspec.Struct, frozen=True):
    """A holder; what its fields mean stands in `etcd_permits`."""

    identity: str
    pod: str
    token: int
    lease_ms: int
    uid: str = ""
    confirmed: bool = False
    silent: int = 0
    granted_us: int = 0


class Own(NamedTuple):
    """A holder that was found, and the etcd lease that it is under."""

    record: Record
    lease: int


class Seen(NamedTuple):
    """A semaphore as one transaction read it.

    Attributes:
        head: Its head; an empty one where it does not exist.
        head_revision: When the head was last written; 0 where it does not exist.
        epoch: The epoch of the store; empty where it has none yet.
        epoch_revision: When the epoch's key was last written.
        freed_revision: When the mark was last written that permits were freed; 0 where there is none.
        held: How many permits are held, or an upper bound of it.
        counted: Whether `held` is exact.
        pods: Up to three pods that hold a permit.
        own: Who holds a permit under the name that a new one would get.
        carried: Who holds the permit that the pod brings along.
        note: The etcd lease of the note that pods of the owner were denied; 0 where there is none.
    """

    head: Head
    head_revision: int
    epoch: str
    epoch_revision: int
    freed_revision: int
    held: int
    counted: bool
    pods: tuple[str, ...] = ()
    own: Own | None = None
    carried: Own | None = None
    note: int = 0

    @property
    def complete(self) -> bool:
        """Whether the store surely has all holders."""
        return bool(self.epoch) and self.head.epoch == self.epoch


class Grant(NamedTuple):
    """A permit can be granted: what is to be written, and the answer once it is."""

    head: Head
    record: Record
    answer: Acquired


class Recount:
    """Only an exact count can tell."""


def next_token(last: int, now_us: int) -> int:
    """Return the fencing token after `last`: the time in µs since 1970, so that it rises over a loss of data too."""
    return max(last + 1, now_us)


def may_resume(carried: Own | None, request: AcquireRequest) -> bool:
    """Say whether a carried permit is a reservation of the same request, provided that it is fresh."""
    if carried is None:
        return False
    record = carried.record
    return not record.confirmed and not record.uid and record.identity == request.identity


def decide(
    seen: Seen, request: AcquireRequest, now_us: int, *, fresh: bool, lease: int = 0
) -> Acquired | Grant | Recount:
    """Decide an acquire, as `Store.acquire` says.

    Args:
        seen: What there is.
        request: What is asked for.
        now_us: Microseconds since 1970, for the fencing token.
        fresh: Whether the carried permit is a reservation of the same request that is still fresh.
        lease: The etcd lease that a grant of this very call may have been made under already; 0 for none.
    """
    length = (request.assumed_length if request.dry_run else 0) or seen.head.length
    if fresh and seen.carried:
        return Acquired(Outcome.RESUMED, length, seen.held, request.carried, seen.carried.record.token)
    own = seen.own
    if own and own.record.identity == request.identity:
        outcome = Outcome.GRANTED if lease and own.lease == lease else Outcome.RESUMED
        return Acquired(outcome, length, seen.held, request.permit, own.record.token)
    if length == 0 or request.length not in {0, length}:
        return Acquired(Outcome.OTHER_LENGTH, length, seen.held)
    if not seen.complete and not request.dry_run:
        return Acquired(Outcome.INCOMPLETE, length, seen.held)
    if own or seen.held >= length:
        return Acquired(Outcome.FULL, length, seen.held, holders=seen.pods) if seen.counted else Recount()
    token = next_token(seen.head.token, now_us)
    held = seen.held + 1
    return Grant(
        msgspec.structs.replace(seen.head, token=token, held=held),
        Record(request.identity, request.pod, token, request.expiration_seconds * 1000, request.uid, granted_us=now_us),
        Acquired(Outcome.GRANTED, length, held, request.permit, token),
    )


def kept(record: Record, pod: str, uid: str, elapsed: int) -> Record:
    """Return a holder as a renewal on behalf of its pod leaves it, `elapsed` seconds after the last renewal."""
    return msgspec.structs.replace(record, uid=uid, pod=pod or record.pod, silent=record.silent + elapsed)


def begun(head: Head, key: SemaphoreKey, fence: Fence, now_us: int) -> tuple[Head, Fence]:
    """Let a guarded step in: returns the head with its fence, and the fence with a token.

    Raises:
        StaleFenceError: A newer step of the same domain was here.
    """
    newest = head.fences.get(fence.domain, 0)
    token = fence.token or next_token(newest, now_us)
    if token < newest:
        raise stale(key, Fence(fence.domain, token))
    return msgspec.structs.replace(head, fences={**head.fences, fence.domain: token}), Fence(fence.domain, token)


def check_fence(head: Head, key: SemaphoreKey, fence: Fence) -> None:
    """Raise StaleFenceError where another step of the same domain has begun since this fence's `begin`."""
    if head.fences.get(fence.domain, 0) != fence.token:
        raise stale(key, fence)


def stale(key: SemaphoreKey, fence: Fence) -> StaleFenceError:
    """Say that a step was overtaken."""
    return StaleFenceError(f"semaphore {key}: fencing token {fence.token} of {fence.domain} is out of date")


def adopted(head: Head, held: int, lost: Sequence[Adoptee], now_us: int) -> tuple[Head, dict[str, Record]]:
    """Return the head and the holders, by permit, once those that were lost are put back beside `held` others.

    The tokens that are new are above all that are known, and so will be all later ones.
    """
    last = max([head.token, *(adoptee.token for adoptee in lost)])
    records = {}
    for permit, pod, uid, token, expiration_seconds in lost:
        if not token:
            last = next_token(last, now_us)
        records[permit] = Record(uid, pod, token or last, expiration_seconds * 1000, uid, granted_us=now_us)
    return msgspec.structs.replace(head, token=last, held=held + len(lost)), records
