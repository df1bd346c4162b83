"""What the webhook does with a store and a lock: acquire within a deadline, undo what came too late, sweep, rebuild."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import TYPE_CHECKING, NamedTuple

from at_least_semaphore_pod_hook.errors import StaleFenceError, StoreUnavailableError, UnavailableError
from at_least_semaphore_pod_hook.semaphore.lines import decided
from at_least_semaphore_pod_hook.semaphore.model import Acquired, AcquireRequest, Outcome, SemaphoreKey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from at_least_semaphore_pod_hook.semaphore.contracts import Lock, Store
    from at_least_semaphore_pod_hook.semaphore.model import Adoptee, Step

logger = logging.getLogger(__name__)

STEP_SECONDS = 10.0
CLOSE_SECONDS = 5.0
_NEED_A_STEP = frozenset({Outcome.OTHER_LENGTH, Outcome.INCOMPLETE})
UNDO_PAUSES_SECONDS = (0.1, 0.3, 1.0, 2.0, 5.0)


def _random_names() -> Iterator[str]:
    """Yield 64 random bits each, hexadecimal, asking the operating system for many at a time."""
    digits = 16
    while True:
        block = secrets.token_hex(digits * 32)
        yield from (block[start : start + digits] for start in range(0, len(block), digits))


_names = _random_names()


def new_permit() -> str:
    """Name a permit: random, so that nobody guesses another's."""
    return next(_names)


class Admitted(NamedTuple):
    """An acquire's result, and where the pod's length became the semaphore's: the length before."""

    acquired: Acquired
    replaced_length: int = 0


async def _nobody(_key: SemaphoreKey) -> Sequence[Adoptee]:
    return ()


class SemaphoreService:
    """The domain's one way in.

    Args:
        store: Where semaphores live.
        lock: Guards the steps that take several operations: first use of a key, resize and rebuild.
        survey: Names the pods that live and were let in under a key. Raises UnavailableError where that cannot be told.
        on_reclaim: Called with how many expired permits a sweep took back from a semaphore.
    """

    def __init__(
        self,
        store: Store,
        lock: Lock,
        *,
        survey: Callable[[SemaphoreKey], Awaitable[Sequence[Adoptee]]] = _nobody,
        on_reclaim: Callable[[SemaphoreKey, int], None] = lambda _key, _count: None,
    ) -> None:
        self._store = store
        self._lock = lock
        self._survey = survey
        self._on_reclaim = on_reclaim
        self._steps: dict[tuple[SemaphoreKey, int], asyncio.Task[None]] = {}
        self._undoing: set[asyncio.Task[None]] = set()

    async def acquire(self, request: AcquireRequest, timeout: float) -> Admitted:
        """Take a permit; on the way create, resize or rebuild the semaphore where that is needed.

        Args:
            request: What the pod asks for.
            timeout: Seconds until an answer is needed.

        Raises:
            UnavailableError: Store or lock did not answer in time. A permit that may have been taken all the same is
                given back in the background.
        """
        deadline = time.monotonic() + timeout
        try:
            acquired = await self._store.acquire(request, min(timeout, request.answer_seconds))
            if acquired.outcome not in _NEED_A_STEP:
                return Admitted(acquired)
            # A length counts as replaced where pods that run under the old one still disagree.
            replaced = acquired.length if acquired.held and acquired.length != request.length else 0
            async with asyncio.timeout(deadline - time.monotonic()):
                return Admitted(await self._acquire_at_length(request), replaced)
        except BaseException as error:
            if not request.dry_run:
                self.give_back(request.key, request.permit)
            if isinstance(error, TimeoutError):
                raise StoreUnavailableError(f"semaphore {request.key}: no answer within {timeout:.1f} s") from error
            raise

    async def resize(self, key: SemaphoreKey, length: int, timeout: float) -> None:
        """Give a semaphore a length, creating it where it does not exist and rebuilding it where it is incomplete.

        Raises:
            UnavailableError: Store or lock did not answer within `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._ensure_length(key, length)
        except TimeoutError as error:
            raise StoreUnavailableError(f"semaphore {key}: not resized within {timeout:.1f} s") from error

    async def _acquire_at_length(self, request: AcquireRequest) -> Acquired:
        """Acquire after the semaphore has got the request's length, or, in a dry run, as if it had."""
        if request.dry_run:
            # The real one would need the lock, and taking it would be a write.
            await self._lock.ping()
            return await self._store.acquire(request._replace(assumed_length=request.length))
        await self._ensure_length(request.key, request.length)
        # Our length had its turn. Whatever it is by now is taken as it is: two sizes that take turns would never end.
        acquired = await self._store.acquire(request._replace(length=0), request.answer_seconds)
        if acquired.outcome in _NEED_A_STEP:
            raise StoreUnavailableError(f"semaphore {request.key}: the store lost it while it was created")
        return acquired

    async def _ensure_length(self, key: SemaphoreKey, length: int) -> None:
        """Callers of one key and length in this process share one step; one that gives up leaves it to the others."""
        step = self._steps.get((key, length))
        if step is None:
            step = asyncio.create_task(self._guarded_set_length(key, length))
            self._steps[key, length] = step
            step.add_done_callback(lambda done: self._step_done(key, length, done))
        await asyncio.shield(step)

    def _step_done(self, key: SemaphoreKey, length: int, step: asyncio.Task[None]) -> None:
        del self._steps[key, length]
        if not step.cancelled() and (error := step.exception()):
            logger.warning("length not set", extra={"semaphore": str(key), "length": length, "reason": str(error)})

    async def _guarded_set_length(self, key: SemaphoreKey, length: int) -> None:
        async with self._lock.hold(str(key), STEP_SECONDS) as fence:
            try:
                step = await self._store.begin(key, fence)
                if not step.complete:
                    await self._rebuild(key, step)
                if not step.complete or step.length != length:
                    await self._store.set_length(key, length, step.fence)
                if step.length != length:
                    logger.info(
                        "semaphore resized" if step.length else "semaphore created",
                        extra={"semaphore": str(key), "length": length, "before": step.length, "held": step.held},
                    )
            except StaleFenceError as error:
                raise StoreUnavailableError(str(error)) from error

    async def _rebuild(self, key: SemaphoreKey, step: Step) -> None:
        """Put back the holders that the store may have lost, before anybody is granted a permit."""
        adoptees = await self._survey(key)
        began = time.monotonic()
        known = {holder.permit for holder in (await self._store.state(key)).holders} if adoptees else set()
        adopted = await self._store.adopt(key, adoptees, step.fence) if adoptees else 0
        took = time.monotonic() - began
        for one in adoptees:
            if one.permit not in known:
                logger.info("permit adopted", extra=decided(key, one.permit, one.pod, "adopted", took))
        if step.length or adopted:
            about = {"semaphore": str(key), "held": step.held, "adopted": adopted}
            logger.warning("semaphore rebuilt: the store may have lost data", extra=about)

    def give_back(self, key: SemaphoreKey, permit: str) -> None:
        """Release a permit in the background whose acquire may or may not have been applied."""
        task = asyncio.get_running_loop().create_task(self._undo(key, permit))
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)

    async def _undo(self, key: SemaphoreKey, permit: str) -> None:
        """Release twice, the second time after the first one's answer, whatever that is.

        An acquire whose connection broke may still lie in the store's receive buffer and be applied after the first
        release, be it for a second time; it is not applied after the second, which is sent when the store has read its
        buffers. Whatever this misses ends with its lease.
        """
        answers = 0
        began = time.monotonic()
        for pause in (0.0, *UNDO_PAUSES_SECONDS):
            await asyncio.sleep(pause)
            try:
                if await self._store.release(key, permit):
                    about = decided(key, permit, "", "undone", time.monotonic() - began)
                    logger.info("permit of a failed admission given back", extra=about)
                answers += 1
            except UnavailableError:
                continue
            if answers > 1:
                return

    async def sweep(self) -> int:
        """Take back the expired permits of every semaphore. Returns how many.

        Raises:
            UnavailableError: The store did not answer.
        """
        total = 0
        async for key in self._store.semaphores():
            if count := await self._store.reclaim(key):
                total += count
                self._on_reclaim(key, count)
                logger.info("expired permits reclaimed", extra={"semaphore": str(key), "count": count})
        return total

    async def close(self) -> None:
        """Finish what is under way, within `CLOSE_SECONDS`, then close store and lock."""
        under_way = [*self._steps.values(), *self._undoing]
        if under_way:
            _, late = await asyncio.wait(under_way, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()
        await self._store.close()
        await self._lock.close()
