"""The lock over etcd: a queue of keys in the order of their creation, each bound to a lease.

Each acquisition gets a lease, puts a key of its own under `lock/<name>/` and waits for the key created right before
its own to go. Whose key was created first holds the lock: served in order, and a release wakes one waiter, not all. It
is the approach of etcd's own recipes (https://etcd.io/docs, "etcd concurrency API"). The revision that created the key
is the fence: it rises with every acquisition.

A lease belongs to one acquisition, and not to the process. A shared one would save two of its writes, but then a key
whose write arrives late, after its waiter has given up, would stay in the queue as long as the process lives. Revoking
the lease shuts that out, in one step, whatever is known of the key; and tasks of one process need no other exclusion.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from at_least_semaphore_pod_hook.errors import InvalidInputError, LockUnavailableError, UnavailableError
from at_least_semaphore_pod_hook.etcd import Client, Compare, Operation, Put, Range, Watch, prefix_end
from at_least_semaphore_pod_hook.locks.lifetime import Cleanups, stopped_at
from at_least_semaphore_pod_hook.semaphore.model import Fence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from at_least_semaphore_pod_hook.addresses import Address

_LOG: Final = logging.getLogger(__name__)
_GRACE_SECONDS: Final = 0.25
_REWATCH_SECONDS: Final = 0.05


def queue_prefix(name: str) -> str:
    """Return what the keys of a lock's queue begin with: `lock/<namespace>/<key>/` for the name `<namespace>/<key>`.

    No queue's prefix begins with another's, whatever the names are: further slashes are written as %2F, and a name
    without any has an empty namespace.
    """
    namespace, slash, key = name.replace("%", "%25").partition("/")
    if not slash:
        namespace, key = "", namespace
    return f"lock/{namespace}/{key.replace('/', '%2F')}/"


class EtcdLock:
    """A lock (`semaphore.contracts.Lock`) over an etcd cluster.

    Args:
        addresses: The cluster's endpoints; one is enough, more are for when that one is down.
        lease_seconds: Whole seconds until the lock of a holder that crashed is free. etcd makes it longer where it is
            below one and a half times its election timeout: 2 s by default.
        timeout: Seconds that one endpoint has for an answer.

    Raises:
        InvalidInputError: The addresses or times are not what is accepted.
    """

    def __init__(self, addresses: Sequence[Address], *, lease_seconds: int = 10, timeout: float = 2.0) -> None:
        if lease_seconds < 1:
            raise InvalidInputError(f"an etcd lock's lease is at least 1 s, not {lease_seconds}")
        self._client = Client(addresses, timeout=timeout)
        self._lease_seconds = lease_seconds
        self._cleanups = Cleanups(_GRACE_SECONDS)
        self._close_seconds = timeout

    @asynccontextmanager
    async def hold(self, name: str, timeout: float) -> AsyncIterator[Fence]:
        """Hold the lock `name`, as `Lock.hold` says; `timeout` is in seconds.

        Raises:
            LockUnavailableError: It is taken until the timeout; or etcd does not answer; or the lease was lost while
                the lock was held, and the body was stopped.
        """
        place = _Place(self._client, name, self._lease_seconds)
        try:
            try:
                async with asyncio.timeout(timeout):
                    fence = await place.reach_front()
            except TimeoutError:
                raise LockUnavailableError(f"lock {name!r}: {place.state} after {timeout:g} s") from None
            except UnavailableError as error:
                raise LockUnavailableError(f"lock {name!r}: {error}") from error
            async with stopped_at(place.valid_until, name) as end:
                place.hold_until(end)
                yield fence
        finally:
            await self._cleanups.run(place.leave())

    async def ping(self) -> None:
        """Return where etcd has a leader and answers; raises LockUnavailableError."""
        try:
            await self._client.range(Range(b"lock/", limit=1, keys_only=True))
        except UnavailableError as error:
            raise LockUnavailableError(str(error)) from error

    async def close(self) -> None:
        """Finish giving back locks, within bounds, and let go of connections."""
        await self._cleanups.close(self._close_seconds)
        await self._client.close()


class _Place:
    """One acquisition's place in the queue."""

    def __init__(self, client: Client, name: str, lease_seconds: int) -> None:
        self.state = "etcd has not answered"
        self.valid_until = 0.0
        self._client = client
        self._name = name
        self._prefix = queue_prefix(name).encode()
        self._key = b""
        self._revision = 0
        self._lease = 0
        self._seconds = lease_seconds
        self._keeper: asyncio.Task[None] | None = None
        self._end: asyncio.Timeout | None = None

    async def reach_front(self) -> Fence:
        """Queue and wait until everybody before is gone. Returns the fence of the place."""
        began = asyncio.get_running_loop().time()
        lease = await self._client.grant(self._seconds)
        self._lease, self._seconds = lease.id, lease.ttl
        self.valid_until = began + lease.ttl
        self._keeper = asyncio.create_task(self._keep_lease())
        self._key = self._prefix + f"{lease.id:016x}".encode()
        predecessor, revision = await self._queue()
        self.state = "still taken"
        while predecessor:
            await self._gone(predecessor, revision + 1)
            predecessor, revision = await self._look()
        return Fence(f"etcd/{lease.header.cluster_id:x}", self._revision)

    def hold_until(self, end: asyncio.Timeout) -> None:
        """Move `end` along with the lease from now on."""
        self._end = end
        self._valid(self.valid_until)

    async def leave(self) -> None:
        """Give the place up, or whatever of it there is: the key goes with its lease, and cannot be put after it."""
        if self._keeper:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._lease:
            try:
                await self._client.revoke(self._lease)
            except UnavailableError as error:
                _LOG.warning("lock %r was not given back and ends by itself: %s", self._name, error)

    async def _queue(self) -> tuple[bytes, int]:
        """Put the key. Returns the key before it, if any, and the revision at which that was seen."""
        # The newest two keys after the put are one's own and the one before. A second try, after a lost answer, finds
        # the key there already, and others may have come after it.
        newest = Range(
            self._prefix, prefix_end(self._prefix), limit=2, sort_order="DESCEND", sort_target="CREATE", keys_only=True
        )
        answer = await self._client.txn(
            [Compare(self._key, 0)],
            [Operation(request_put=Put(self._key, lease=self._lease)), Operation(request_range=newest)],
            [Operation(request_range=Range(self._key, keys_only=True))],
            repeatable=True,
        )
        keys = answer.responses[-1].kvs
        self._revision = keys[0].create_revision
        if answer.succeeded:
            return keys[1].key if len(keys) > 1 else b"", answer.header.revision
        return await self._look()

    async def _look(self) -> tuple[bytes, int]:
        """Return as `_queue` does, and raise where one's own key is gone: its lease has ended."""
        before = Range(
            self._prefix,
            prefix_end(self._prefix),
            limit=1,
            sort_order="DESCEND",
            sort_target="CREATE",
            keys_only=True,
            max_create_revision=self._revision - 1,
        )
        answer = await self._client.txn(
            [Compare(self._key, self._revision)], [Operation(request_range=before)], [], repeatable=True
        )
        if not answer.succeeded:
            raise LockUnavailableError("the lease ended in the queue")
        keys = answer.responses[0].kvs
        return keys[0].key if keys else b"", answer.header.revision

    async def _gone(self, key: bytes, revision: int) -> None:
        """Return once the key is deleted; or earlier: a watch may end, or hang at an endpoint that froze."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds / 3):
                watch = self._client.watch(Watch(key, start_revision=revision, filters=["NOPUT"]))
                async with contextlib.aclosing(watch):
                    async for news in watch:
                        if news.events:
                            return
                await asyncio.sleep(_REWATCH_SECONDS)

    async def _keep_lease(self) -> None:
        loop = asyncio.get_running_loop()
        pause = self._seconds / 3
        while True:
            await asyncio.sleep(pause)
            asked = loop.time()
            try:
                seconds = await self._client.keep_alive(self._lease)
            except UnavailableError as error:
                _LOG.warning("lock %r: its lease was not renewed: %s", self._name, error)
                pause = self._seconds / 10
                continue
            if not seconds:
                self._valid(asked)
                return
            self._valid(asked + seconds)
            pause = self._seconds / 3

    def _valid(self, until: float) -> None:
        self.valid_until = until
        if self._end and not self._end.expired():
            self._end.reschedule(until)
