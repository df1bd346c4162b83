"""The steps that a lock guards: letting one in, setting the length, putting lost holders back."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Final

import msgspec

from at_least_semaphore_pod_hook.etcd import Operation, Put, unchanged
from at_least_semaphore_pod_hook.etcd_permits import EXACT, new_lease
from at_least_semaphore_pod_hook.semaphore.model import Step
from at_least_semaphore_pod_hook.stores.etcd import decisions
from at_least_semaphore_pod_hook.stores.etcd.access import Access, pause
from at_least_semaphore_pod_hook.stores.etcd.reading import Names, Reading, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from at_least_semaphore_pod_hook.semaphore.model import Adoptee, Fence, SemaphoreKey

ADOPT_BATCH: Final = 50
"""etcd takes 128 steps in a transaction (--max-txn-ops)."""


async def begin(access: Access, key: SemaphoreKey, fence: Fence) -> Step:
    """See `Store.begin`."""
    reading = Reading(Names(key))
    seen = await access.look(reading, counted=False)
    if seen.held <= EXACT:
        seen = await access.look(reading, counted=True)
    for conflicts in itertools.count():
        head, begun = decisions.begun(seen.head, key, fence, access.now_us())
        again = await access.write_head(reading, seen, head)
        if again is None:
            break
        seen = again
        await pause(conflicts)
    return Step(begun, head.length, seen.held, seen.complete)


async def set_length(access: Access, key: SemaphoreKey, length: int, fence: Fence) -> None:
    """See `Store.set_length`."""
    reading = Reading(Names(key))
    seen = await access.look(reading, counted=False)
    for conflicts in itertools.count():
        decisions.check_fence(seen.head, key, fence)
        if not seen.epoch:
            await access.begin_epoch(absent=True)
            seen = await access.look(reading, counted=False)
            continue
        head = msgspec.structs.replace(seen.head, length=length, epoch=seen.epoch, held=seen.held)
        again = await access.write_head(reading, seen, head)
        if again is None:
            return
        seen = again
        await pause(conflicts)


async def adopt(access: Access, key: SemaphoreKey, batch: Sequence[Adoptee], fence: Fence) -> int:
    """See `Store.adopt`; a batch of at most `ADOPT_BATCH`."""
    reading = Reading(Names(key), permits=tuple(one.permit for one in batch))
    leases: dict[str, int] = {}
    used: set[int] = set()
    try:
        for conflicts in itertools.count():
            answer = await access.txn([], reading.operations(counted=False))
            seen, held = reading.seen(answer, counted=False), reading.leases(answer)
            decisions.check_fence(seen.head, key, fence)
            # A transaction whose answer was lost is found done here.
            used = {lease for permit, lease in leases.items() if held.get(permit) == lease}
            lost = [one for one in batch if one.permit not in held]
            if not lost:
                break
            new = {one.permit: new_lease() for one in lost if one.permit not in leases}
            leases |= new
            wanted = (access.client.grant(one.expiration_seconds, new[one.permit]) for one in lost if one.permit in new)
            await asyncio.gather(*wanted)
            if await _put_back(access, reading.names, seen, lost, leases):
                used |= {leases[one.permit] for one in lost}
                break
            await pause(conflicts)
    finally:
        for lease in leases.values():
            if lease not in used:
                access.revoke(lease)
    return len(used)


async def _put_back(
    access: Access, names: Names, seen: decisions.Seen, lost: Sequence[Adoptee], leases: dict[str, int]
) -> bool:
    head, records = decisions.adopted(seen.head, seen.held, lost, access.now_us())
    conditions = [unchanged(names.head, seen.head_revision)]
    conditions += [unchanged(names.holder(permit), 0) for permit in records]
    steps = [Operation(request_put=Put(names.head, encode(head)))]
    for permit, record in records.items():
        steps.append(Operation(request_put=Put(names.holder(permit), encode(record), leases[permit])))
    return (await access.txn(conditions, steps)).succeeded
