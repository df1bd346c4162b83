"""Names of semaphores: those with holders, and those that have just lost one."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.etcd import EtcdRefusedError, Range, Watch, prefix_end
from at_least_semaphore_pod_hook.etcd_permits import INFLIGHT
from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from at_least_semaphore_pod_hook.etcd import Client

PAGE = 500
MAX_FRUITLESS = 3
REWATCH_SECONDS = 0.1
_ALL = INFLIGHT.encode()
_PARTS = 4


def semaphore_of(key: bytes) -> SemaphoreKey | None:
    """Return the semaphore that a holder's key belongs to; None where the key is none of ours."""
    parts = key.split(b"/")
    return SemaphoreKey(parts[1].decode(), parts[2].decode()) if len(parts) == _PARTS and key.isascii() else None


async def named(client: Client) -> AsyncIterator[SemaphoreKey]:
    """Yield the semaphores that have holders, each once.

    Where one has more than fit on a page, the rest of them is skipped.
    """
    start, last = _ALL, None
    while True:
        answer = await client.range(Range(start, prefix_end(_ALL), limit=PAGE, keys_only=True))
        for kv in answer.kvs:
            key = semaphore_of(kv.key)
            if key is not None and key != last:
                yield key
            last = key or last
        if len(answer.kvs) < PAGE:
            return
        end = answer.kvs[-1].key
        start = prefix_end(end[: end.rindex(b"/") + 1]) if semaphore_of(end) else end + b"\0"


async def deletions(client: Client) -> AsyncIterator[tuple[SemaphoreKey, int]]:
    """Yield a semaphore, and at which revision at last, whenever holders of it are deleted.

    At whichever endpoint that is, and whatever becomes of it.

    Raises:
        StoreUnavailableError: Endpoints can be reached, but their watches end as soon as they begin.
        EtcdUnavailableError: No endpoint can be reached.
        EtcdRefusedError: etcd refused.
    """
    start = fruitless = 0
    while fruitless < MAX_FRUITLESS:
        fruitless += 1
        compacted = False
        request = Watch(_ALL, prefix_end(_ALL), start_revision=start, filters=["NOPUT"])
        with contextlib.suppress(EtcdRefusedError):
            async with contextlib.aclosing(client.watch(request)) as watch:
                async for news in watch:
                    if news.canceled:
                        compacted = news.compact_revision > 0
                        break
                    fruitless = 0
                    start = max(start, news.header.revision + 1)
                    for key, revision in {semaphore_of(one.kv.key): one.kv.mod_revision for one in news.events}.items():
                        if key is not None:
                            yield key, revision
        await asyncio.sleep(REWATCH_SECONDS)
        # Says why where etcd refuses, and logs in again where it does not know our token any more: a watch does not.
        now = (await client.range(Range(_ALL, limit=1, keys_only=True))).header.revision
        if compacted:
            # What happened meanwhile cannot be had any more. From now on, and whoever may have changed is named.
            start = now + 1
            async for key in named(client):
                yield key, now
    raise StoreUnavailableError("etcd: a watch ends as soon as it begins")
