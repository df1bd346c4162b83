"""One acquire, from the first look to the grant."""

from __future__ import annotations

import itertools
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final, Self

from at_least_semaphore_pod_hook.etcd import Delete, Operation, Put, Range, prefix_end, unchanged
from at_least_semaphore_pod_hook.etcd_permits import new_lease
from at_least_semaphore_pod_hook.semaphore.model import FRESH_SECONDS, Acquired, AcquireRequest, Outcome
from at_least_semaphore_pod_hook.stores.etcd import decisions
from at_least_semaphore_pod_hook.stores.etcd.access import Access, pause
from at_least_semaphore_pod_hook.stores.etcd.reading import Reading, encode
from at_least_semaphore_pod_hook.tasks import Lines

if TYPE_CHECKING:
    from types import TracebackType

    from at_least_semaphore_pod_hook.stores.etcd.counts import Counts
    from at_least_semaphore_pod_hook.stores.etcd.decisions import Seen
    from at_least_semaphore_pod_hook.stores.etcd.leases import Leases

DENIED_SECONDS: Final = 604_800
MAX_DENIED: Final = 1000


class Acquiring:
    """What the acquires of one process share.

    Those of one key are granted one after the other: they would only overtake each other. And of a large semaphore they
    share the counts.
    """

    def __init__(self, access: Access, leases: Leases, counts: Counts) -> None:
        self.access = access
        self.leases = leases
        self.counts = counts
        self.grants = Lines()
        self.recounts = Lines()

    async def acquire(self, request: AcquireRequest) -> Acquired:
        """See `Store.acquire`."""
        async with _Attempt(self, request) as attempt:
            return await attempt.carry_out()


class _Attempt:
    """One acquire. At its end the lease that it has got, and not used, is revoked.

    That also undoes a grant that was sent and not answered: it is not applied any more without its lease.
    """

    def __init__(self, shared: Acquiring, request: AcquireRequest) -> None:
        self._shared = shared
        self._access = shared.access
        self._request = request
        self._reading = Reading.of_request(request)
        self._lease = 0
        self._waited = False
        self._turn = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._turn.aclose()
        if self._lease:
            self._access.revoke(self._lease)

    async def carry_out(self) -> Acquired:
        request = self._request
        seen = await self._look()
        for conflicts in itertools.count():
            fresh = await self._is_fresh(seen)
            decision = decisions.decide(seen, request, self._access.now_us(), fresh=fresh, lease=self._lease)
            if isinstance(decision, Acquired):
                return await self._answer(seen, decision)
            if isinstance(decision, decisions.Recount):
                seen = await self._recount()
                continue
            if request.dry_run:
                return decision.answer
            if not self._lease:
                await self._get_lease()
                if await self._turn.enter_async_context(self._shared.grants.turn(request.key)):
                    # Time has passed, and who was in line before has changed what there is.
                    if not await self._access.client.keep_alive(self._lease):
                        await self._get_lease()
                    seen = await self._look()
                    continue
            again = await self._grant(seen, decision)
            if again is None:
                return decision.answer
            seen = again
            await pause(conflicts)
        raise AssertionError

    async def _look(self, *, counted: bool = False) -> Seen:
        """Look what there is; `counted` where no count but one's own will do."""
        counts, key = self._shared.counts, self._request.key
        counted, began = counted or counts.is_counted(key), counts.now()
        return counts.complete(key, await self._access.look(self._reading, self._request, counted=counted), began)

    async def _recount(self) -> Seen:
        """Have the holders counted, by one at a time: those in line behind it can rely on what it finds.

        They do so once. Where that is out of date already, they count by themselves.
        """
        if not self._waited:
            async with self._shared.recounts.turn(self._request.key) as self._waited:
                if not self._waited:
                    return await self._look(counted=True)
            return await self._look()
        return await self._look(counted=True)

    async def _get_lease(self) -> None:
        self._lease = new_lease()
        await self._access.client.grant(self._request.expiration_seconds, self._lease)

    async def _is_fresh(self, seen: Seen) -> bool:
        if seen.carried is None or not decisions.may_resume(seen.carried, self._request):
            return False
        # A reservation was never renewed, so that its lease tells its age.
        left = await self._shared.leases.left(seen.carried.lease)
        return left.granted > 0 and left.elapsed < FRESH_SECONDS

    async def _answer(self, seen: Seen, answer: Acquired) -> Acquired:
        request = self._request
        if answer.outcome is Outcome.GRANTED:
            self._lease = 0  # a grant whose own answer was lost
        if answer.outcome is Outcome.FULL and request.owner and not request.dry_run and not seen.note:
            await self._note_denied()
        return answer

    async def _grant(self, seen: Seen, decision: decisions.Grant) -> Seen | None:
        """Write a grant. Returns None where that was done, else what there is now."""
        names, request = self._reading.names, self._request
        own = names.holder(request.permit)
        steps = [
            Operation(request_put=Put(own, encode(decision.record), self._lease)),
            Operation(request_put=Put(names.head, encode(decision.head))),
            Operation(request_delete_range=Delete(names.freed)),
            Operation(request_delete_range=Delete(names.ended(request.permit))),
        ]
        if seen.note:
            steps.append(Operation(request_delete_range=Delete(names.denied(request.owner))))
        conditions = [
            unchanged(names.head, seen.head_revision),
            unchanged(names.epoch, seen.epoch_revision),
            unchanged(own, 0),
        ]
        counts = self._shared.counts
        counted, began = counts.is_counted(request.key), counts.now()
        answer = await self._access.txn(conditions, steps, self._reading.operations(counted=counted))
        if not answer.succeeded:
            return counts.complete(request.key, self._reading.seen(answer, request, counted=counted), began)
        self._lease = 0
        if seen.note:
            self._access.revoke(seen.note)
        return None

    async def _note_denied(self) -> None:
        names, client = self._reading.names, self._access.client
        everyone, key = names.denied(""), names.denied(self._request.owner)
        if (await client.range(Range(everyone, prefix_end(everyone), count_only=True))).count >= MAX_DENIED:
            return
        lease = new_lease()
        try:
            await client.grant(DENIED_SECONDS, lease)
            put, read = Operation(request_put=Put(key, b"{}", lease)), Operation(request_range=Range(key))
            answer = await self._access.txn([unchanged(key, 0)], [put], [read])
            if answer.succeeded or any(kv.lease == lease for kv in answer.responses[0].kvs):
                lease = 0
        finally:
            if lease:
                self._access.revoke(lease)
