"""The `Store` contract over etcd.

Each method reads what it needs in one transaction, decides, and writes in another one whose conditions are the
revisions that were read; where they don't hold, the same answer brings what there is now, and it decides again.

Whatever makes the number of holders larger writes the head as well. Releases and ends of leases only make it smaller:
they need not, and what was read stays an upper bound while the head is unchanged.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import TYPE_CHECKING, Any, Final

from at_least_semaphore_pod_hook import etcd_permits
from at_least_semaphore_pod_hook.errors import NotHolderError, UnavailableError
from at_least_semaphore_pod_hook.etcd import (
    Client,
    Delete,
    EtcdRefusedError,
    Operation,
    Put,
    Range,
    prefix_end,
    unchanged,
)
from at_least_semaphore_pod_hook.semaphore.model import (
    Acquired,
    AcquireRequest,
    Adoptee,
    Fence,
    Holder,
    SemaphoreKey,
    SemaphoreState,
    Step,
)
from at_least_semaphore_pod_hook.semaphore.versions import read_mark
from at_least_semaphore_pod_hook.stores.etcd import decisions, guarded
from at_least_semaphore_pod_hook.stores.etcd.access import Access, pause, translated
from at_least_semaphore_pod_hook.stores.etcd.acquiring import Acquiring
from at_least_semaphore_pod_hook.stores.etcd.counts import Counts
from at_least_semaphore_pod_hook.stores.etcd.leases import Leases, Left
from at_least_semaphore_pod_hook.stores.etcd.listening import deletions, named
from at_least_semaphore_pod_hook.stores.etcd.reading import HolderFound, Names, Reading, encode, read_holders

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from at_least_semaphore_pod_hook.addresses import Address
    from at_least_semaphore_pod_hook.etcd.wire import TxnResponse
    from at_least_semaphore_pod_hook.etcd_permits import Flow

TIMEOUT_SECONDS: Final = 5.0
ENDPOINT_SECONDS: Final = 1.0
MAX_DENIED_NAMED: Final = 100
STATE_PIECE: Final = 1000
MARK_KEY: Final = b"queue/version"
STATE_READS: Final = 3
"""How often a semaphore is read anew whose holders change while they are asked about."""


def open_etcd_store(addresses: Sequence[Address]) -> EtcdStore:
    """Open the store in the etcd cluster whose members are at `addresses`."""
    return EtcdStore(Client(addresses, timeout=ENDPOINT_SECONDS, patience=TIMEOUT_SECONDS))


class EtcdStore:
    """Semaphores in an etcd cluster.

    Args:
        client: The cluster; the store closes it.
        timeout: Seconds after which a call is given up where its caller does not say.
        clock: Returns seconds of a monotonic clock.
        now_us: Returns microseconds since 1970.
    """

    def __init__(
        self,
        client: Client,
        *,
        timeout: float = TIMEOUT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._client = client
        self._access = Access(client, timeout, now_us)
        self._leases = Leases(client, clock)
        self._counts = Counts(clock)
        self._acquiring = Acquiring(self._access, self._leases, self._counts)

    async def acquire(self, request: AcquireRequest, timeout: float | None = None) -> Acquired:
        """See `Store.acquire`."""
        async with self._access.answering(timeout):
            return await self._acquiring.acquire(request)

    async def renew(self, key: SemaphoreKey, permit: str, pod: str = "", uid: str = "") -> int:
        """See `Store.renew`. etcd deletes what has expired, so that nothing is revived."""
        async with self._access.answering():
            renewed = await self._drive(etcd_permits.renew(str(key), permit, pod, uid=uid))
            _check(renewed, permit, pod)
            self._leases.forget(renewed.lease)
            return int(renewed.lease_ms)

    async def keep(self, key: SemaphoreKey, permit: str, pod: str, uid: str) -> int:
        """See `Store.keep`. The time since the last renewal, which the lease tells, is noted before that is lost."""
        name = Names(key).holder(permit)
        read = Operation(request_range=Range(name))
        async with self._access.answering():
            answer = await self._access.txn([], [read])
            for conflicts in itertools.count():
                found = read_holders(answer.responses[0])
                if not found or (found[0].record.confirmed and pod not in {"", found[0].record.pod}):
                    break
                holder = found[0]
                left = await self._leases.left(holder.lease)
                self._leases.forget(holder.lease)
                if not await self._client.keep_alive(holder.lease):
                    break
                record = decisions.kept(holder.record, pod, uid, int(left.elapsed))
                put = Operation(request_put=Put(name, encode(record), holder.lease))
                try:
                    answer = await self._access.txn([unchanged(name, holder.revision)], [put], [read])
                except EtcdRefusedError as refusal:
                    if refusal.code != EtcdRefusedError.NOT_FOUND:
                        raise
                    break
                if answer.succeeded:
                    return record.lease_ms
                await pause(conflicts)
        return 0

    async def release(
        self, key: SemaphoreKey, permit: str, pod: str = "", *, uid: str = "", ended: bool = False
    ) -> bool:
        """See `Store.release`."""
        async with self._access.answering():
            released = await self._drive(etcd_permits.release(str(key), permit, pod, uid=uid, ended=ended))
            if released.lease:
                self._leases.forget(released.lease)
                self._access.revoke(released.lease)
            _check(released, permit, pod)
            return bool(released.released)

    async def reclaim(self, key: SemaphoreKey) -> int:  # noqa: ARG002 - there is nothing to do for any
        """See `Store.reclaim`: etcd has done it already."""
        return 0

    async def begin(self, key: SemaphoreKey, fence: Fence) -> Step:
        """See `Store.begin`."""
        async with self._access.answering():
            return await guarded.begin(self._access, key, fence)

    async def set_length(self, key: SemaphoreKey, length: int, fence: Fence) -> None:
        """See `Store.set_length`."""
        async with self._access.answering():
            await guarded.set_length(self._access, key, length, fence)

    async def adopt(self, key: SemaphoreKey, adoptees: Sequence[Adoptee], fence: Fence) -> int:
        """See `Store.adopt`. Large numbers are put back in batches: it may be repeated."""
        total = 0
        # Once where there are none, too: an outdated fence is said all the same.
        for start in range(0, len(adoptees) or 1, guarded.ADOPT_BATCH):
            async with self._access.answering():
                batch = adoptees[start : start + guarded.ADOPT_BATCH]
                total += await guarded.adopt(self._access, key, batch, fence)
        return total

    async def state(self, key: SemaphoreKey) -> SemaphoreState:
        """See `Store.state`.

        What is told of leases has whole seconds. Of a permit that its sidecar has renewed, etcd only knows the time
        since then: its age is by the clock of who granted it, and at least that. A large one is read a piece at a time,
        as it was at one revision.
        """
        names = Names(key)
        reading, denied = Reading(names), names.denied("")
        ranges = [
            Range(names.holders, prefix_end(names.holders), limit=STATE_PIECE),
            Range(
                denied,
                prefix_end(denied),
                limit=MAX_DENIED_NAMED,
                sort_order="ASCEND",
                sort_target="CREATE",
                keys_only=True,
            ),
        ]
        steps = [*reading.operations(counted=False), *(Operation(request_range=one) for one in ranges)]
        for _ in range(STATE_READS):
            async with self._access.answering():
                answer = await self._access.txn([], steps)
            found = await self._all_holders(names, answer)
            async with self._access.answering():
                # Of those whose sidecar does not renew yet it matters most.
                by_urgency = sorted(found, key=lambda one: one.record.confirmed)
                left = await self._leases.of_all({one.lease: one.record.lease_ms / 1000 for one in by_urgency})
            # Who has no lease any more was released, or expired, since the holders were read.
            if all(left[one.lease].granted for one in found):
                break
        found = [one for one in found if left[one.lease].granted]
        seen = reading.seen(answer, counted=False)
        self._counts.note(key, seen)
        holders = [_holder(one, left[one.lease], names, self._access.now_us()) for one in found]
        holders.sort(key=lambda holder: (holder.lease_ms, holder.permit))
        owners = tuple(kv.key.removeprefix(denied).decode() for kv in answer.responses[-1].kvs)
        return SemaphoreState(seen.head.length, tuple(holders), owners, complete=seen.complete)

    async def _all_holders(self, names: Names, answer: TxnResponse) -> list[HolderFound]:
        """Return the holders that an answer begins with, and the rest of them."""
        piece = found = read_holders(answer.responses[-2])
        while len(piece) == STATE_PIECE:
            rest = Range(
                piece[-1].key + b"\0", prefix_end(names.holders), limit=STATE_PIECE, revision=answer.header.revision
            )
            async with self._access.answering():
                piece = read_holders((await self._access.txn([], [Operation(request_range=rest)])).responses[0])
            found = [*found, *piece]
        return found

    async def forget_denied(self, key: SemaphoreKey, owner: str) -> None:
        """See `Store.forget_denied`."""
        note = Names(key).denied(owner)
        steps = [Operation(request_range=Range(note)), Operation(request_delete_range=Delete(note))]
        async with self._access.answering():
            answer = await self._access.txn([], steps)
        for kv in answer.responses[0].kvs:
            self._access.revoke(kv.lease)

    async def changes(self) -> AsyncIterator[SemaphoreKey]:
        """See `Store.changes`: a watch on what is deleted, by a release or by the end of a lease.

        Before it tells, it sees to it that no process takes a count from before that for the last word.
        """
        with translated():
            async for key, revision in deletions(self._client):
                if not self._counts.is_counted(key):
                    # A lease that has ended left no mark. Where this fails, counts are taken anew soon enough.
                    with contextlib.suppress(UnavailableError):
                        await self._access.mark_freed(Names(key), revision)
                yield key

    async def semaphores(self) -> AsyncIterator[SemaphoreKey]:
        """See `Store.semaphores`."""
        with translated():
            async for key in named(self._client):
                yield key

    async def version(self) -> int:
        """See `Store.version`."""
        async with self._access.answering():
            answer = await self._access.txn([], [Operation(request_range=Range(MARK_KEY))])
        return _marked(answer)[0]

    async def mark(self, version: int) -> int:
        """See `Store.mark`."""
        read = Operation(request_range=Range(MARK_KEY))
        async with self._access.answering():
            answer = await self._access.txn([], [read])
            for conflicts in itertools.count():
                found, revision = _marked(answer)
                put = Operation(request_put=Put(MARK_KEY, str(max(found, version)).encode()))
                answer = await self._access.txn([unchanged(MARK_KEY, revision)], [put], [read])
                if answer.succeeded:
                    break
                await pause(conflicts)
        return max(found, version)

    async def close(self) -> None:
        """See `Store.close`. What is under way in the background has a moment to end."""
        await self._access.background.close(ENDPOINT_SECONDS)
        await self._client.close()

    async def _drive(self, flow: Flow) -> Any:
        """Carry out the requests of `etcd_permits.renew` or `release`, and return what they come to."""
        try:
            request = next(flow)
            while True:
                request = flow.send(await self._client.exchange(*request))
        except StopIteration as end:
            return end.value


def _marked(answer: TxnResponse) -> tuple[int, int]:
    """Return the version that the data is marked with, and the revision that wrote the mark; 0 and 0 for none."""
    (response,) = answer.responses
    if not response.kvs:
        return 0, 0
    return read_mark(response.kvs[0].value.decode(errors="replace")), response.kvs[0].mod_revision


def _check(answer: etcd_permits.Renewed | etcd_permits.Released, permit: str, pod: str) -> None:
    if answer.anothers:
        raise NotHolderError(f"permit {permit} is not the one of pod {pod}")


def _holder(found: HolderFound, left: Left, names: Names, now_us: int) -> Holder:
    record = found.record
    silent_ms = record.silent * 1000 + int(left.elapsed * 1000)
    return Holder(
        found.key.removeprefix(names.holders).decode(),
        record.pod,
        record.token,
        record.confirmed,
        lease_ms=min(record.lease_ms, int(left.seconds * 1000)),  # etcd may make a lease longer than it was asked to
        uid=record.uid,
        expiration_ms=record.lease_ms,
        age_ms=max(silent_ms, (now_us - record.granted_us) // 1000) if record.confirmed else silent_ms,
        silent_ms=silent_ms,
    )
