"""What the parts of the store share: the cluster, its epoch, and a bound in time."""

from __future__ import annotations

import asyncio
import random
import secrets
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.etcd import (
    EtcdRefusedError,
    EtcdUnavailableError,
    Operation,
    Put,
    older,
    unchanged,
)
from at_least_semaphore_pod_hook.stores.etcd.background import Background
from at_least_semaphore_pod_hook.stores.etcd.reading import Names, Reading, encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from at_least_semaphore_pod_hook.etcd import Client
    from at_least_semaphore_pod_hook.etcd.wire import Compare, TxnResponse
    from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest
    from at_least_semaphore_pod_hook.stores.etcd.decisions import Head, Seen

MAX_CONFLICT_PAUSE: Final = 0.1


class Access:
    """Reads and writes of the cluster `client`, given up after `timeout` seconds where the caller does not say.

    `now_us` returns microseconds since 1970.
    """

    def __init__(self, client: Client, timeout: float, now_us: Callable[[], int]) -> None:
        self.client = client
        self.now_us = now_us
        self.background = Background()
        self._timeout = timeout

    @asynccontextmanager
    async def answering(self, timeout: float | None = None) -> AsyncIterator[None]:
        """Bound what is done in time, and translate what etcd's client raises."""
        seconds = self._timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(seconds):
                with translated():
                    yield
        except TimeoutError as error:
            trouble = self.client.trouble
            raise StoreUnavailableError(trouble or f"etcd: not done within {seconds:.1f} s") from error

    async def txn(
        self, conditions: list[Compare], steps: list[Operation], otherwise: list[Operation] | None = None
    ) -> TxnResponse:
        """Do a transaction whose conditions let it be repeated.

        Where its answer shows that an older copy of the data was put in place, another epoch begins before anything is
        made of that answer.
        """
        answer = await self.client.txn(conditions, steps, otherwise or [], repeatable=True)
        if self.client.restored:
            await self.begin_epoch()
        return answer

    async def look(self, reading: Reading, request: AcquireRequest | None = None, *, counted: bool) -> Seen:
        """Read what a decision needs."""
        answer = await self.txn([], reading.operations(counted=counted))
        return reading.seen(answer, request, counted=counted)

    async def write_head(self, reading: Reading, seen: Seen, head: Head) -> Seen | None:
        """Write the head where it and the epoch are as they were.

        Returns:
            None where that was done, else what there is now.
        """
        names = reading.names
        conditions = [unchanged(names.head, seen.head_revision), unchanged(names.epoch, seen.epoch_revision)]
        put = Operation(request_put=Put(names.head, encode(head)))
        answer = await self.txn(conditions, [put], reading.operations(counted=True))
        return None if answer.succeeded else reading.seen(answer, counted=True)

    async def mark_freed(self, names: Names, revision: int) -> None:
        """Mark that permits were freed at `revision`, where neither head nor mark has been written then or since."""
        conditions = [older(names.head, revision), older(names.freed, revision)]
        await self.txn(conditions, [Operation(request_put=Put(names.freed))])

    async def begin_epoch(self, *, absent: bool = False) -> None:
        """Replace the epoch by a new one; where `absent`, only where there is none."""
        put = Operation(request_put=Put(Names.epoch, secrets.token_hex(8).encode()))
        conditions = [unchanged(Names.epoch, 0)] if absent else []
        await self.client.txn(conditions, [put], [], repeatable=True)
        if not absent:
            self.client.restored = False

    def revoke(self, lease: int) -> None:
        """End a lease in the background."""
        self.background.start(lambda: self.client.revoke(lease))


@contextmanager
def translated() -> Iterator[None]:
    """Translate what etcd's client raises."""
    try:
        yield
    except (EtcdUnavailableError, EtcdRefusedError) as error:
        raise StoreUnavailableError(str(error)) from error


async def pause(conflicts: int) -> None:
    """Wait a little after being overtaken, the longer the more often it has happened."""
    longest = min(MAX_CONFLICT_PAUSE, 0.002 * 2 ** min(conflicts, 10))
    await asyncio.sleep(longest * random.random())  # noqa: S311 - to spread those that compete
