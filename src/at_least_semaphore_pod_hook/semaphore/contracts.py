"""What a store and a lock must do. These docstrings are the specification that the contract suite checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from at_least_semaphore_pod_hook.semaphore.model import (
        Acquired,
        AcquireRequest,
        Adoptee,
        Fence,
        SemaphoreKey,
        SemaphoreState,
        Step,
    )


class Store(Protocol):
    """Where semaphores live.

    Rules for every implementation:

    - Each method is atomic, and each may be repeated: a repeated call has the effect of one.
    - Time is the store's own. A permit whose lease ended at t is free at every moment >= t; but of a large semaphore
      that is full it may be noticed half a second later while nobody listens to `changes`.
    - free + held = length, or, while a shrunk semaphore drains, nothing is free.
    - Fencing tokens rise with every grant of a key, over a loss of data too.
    - The store has an epoch: it is another one after every event by which data may have been lost (a failover, a
      restart, a restored copy). A semaphore carries the epoch in which its holders were last known to be complete. In
      a later one it is incomplete until a guarded step has put back what was lost: no new permit is granted before.
      What holds a permit goes on: renewals, releases and resumptions do not mind the epoch.
    - Every method raises StoreUnavailableError where the store does not answer in time.
    """

    async def acquire(self, request: AcquireRequest, timeout: float | None = None) -> Acquired:
        """Grant a permit, or say why not, within `timeout` seconds where one is given.

        A permit that is held under the name `request.permit` is resumed where the identity is the same, and where it
        is not, the answer is FULL: nobody's permit is granted again. A reservation under `request.carried` is resumed
        with the same identity as long as it is fresh; once its pod was seen, or a sidecar has renewed it, it is held
        by a stored pod and never resumed. Where it is full, the owner is noted. A dry run does not mind the epoch.
        """
        ...

    async def renew(self, key: SemaphoreKey, permit: str, pod: str = "", uid: str = "") -> int:
        """Extend a permit's lease by its expiration and note its pod's name.

        Returns the lease in milliseconds; 0 where the permit is not held, or was confirmed by a pod of another name; -1
        where it is not held and `release` has noted within the last hour that its pod has ended, so that its sidecar
        has nothing left to do. An expired permit that nobody reclaimed yet is revived as long as the semaphore is not
        full without it.

        With a UID, `pod` has shown that both are its own, and the UID is noted with the permit. Raises NotHolderError
        where the permit is another's: a pod's of another UID, or, as long as no UID is noted, one that a pod of another
        name has confirmed, or that was reserved for a name that this one does not fit (`holding.is_anothers`).
        """
        ...

    async def keep(self, key: SemaphoreKey, permit: str, pod: str, uid: str) -> int:
        """Renew on behalf of a pod that was seen in the API, and note its name and UID.

        As `renew`, but it says nothing of the pod's sidecar, and never returns -1.
        """
        ...

    async def release(
        self, key: SemaphoreKey, permit: str, pod: str = "", *, uid: str = "", ended: bool = False
    ) -> bool:
        """Give a permit back; with a pod's name, only where no other pod has confirmed it.

        With `ended` it also notes, for an hour, that the other containers of the permit's pod are over, where the
        permit is free already as well. A grant under the same name clears the note.

        Returns False where it is free already, and changes nothing else then, except that what is left of an expired
        permit goes, so that no renewal revives it; False, without any change, where it is another's. With a UID, that
        raises NotHolderError, as `renew` does.
        """
        ...

    async def reclaim(self, key: SemaphoreKey) -> int:
        """Take back every expired permit of a semaphore. Returns how many."""
        ...

    async def begin(self, key: SemaphoreKey, fence: Fence) -> Step:
        """Let a guarded step in, and shut out all older ones.

        A fence without a token (0) gets the next one of its domain. Raises StaleFenceError where a newer one of the
        same domain was here.
        """
        ...

    async def set_length(self, key: SemaphoreKey, length: int, fence: Fence) -> None:
        """Create the semaphore, or resize it, and note that it is complete; shrinking takes no permit from a holder.

        Raises StaleFenceError where another step of the same domain began since this fence's `begin`.
        """
        ...

    async def adopt(self, key: SemaphoreKey, adoptees: Sequence[Adoptee], fence: Fence) -> int:
        """Put holders back that the store has lost, each with a whole lease, whatever the length. Returns how many.

        Those that it knows stay as they are. No later grant gets a token that is not above all of theirs. A permit that
        has expired counts as lost. Raises StaleFenceError as `set_length` does, and changes nothing then.
        """
        ...

    async def state(self, key: SemaphoreKey) -> SemaphoreState:
        """Read a semaphore.

        Who holds permits is read at one moment. Of a holder that is renewed at that moment, each detail may be from
        before the renewal or from after it, and its age may be counted from it.
        """
        ...

    async def forget_denied(self, key: SemaphoreKey, owner: str) -> None:
        """Forget that pods of an owner were denied."""
        ...

    def changes(self) -> AsyncIterator[SemaphoreKey]:
        """Name each semaphore that a permit was given back to, as it happens; some may be missed.

        Ends with StoreUnavailableError where the store cannot be listened to any more.
        """
        ...

    def semaphores(self) -> AsyncIterator[SemaphoreKey]:
        """Name every semaphore that has held permits; one may come twice."""
        ...

    async def version(self) -> int:
        """Return the version that the data is marked with; 0 where there is no mark.

        There is none before the first use, and after a loss of all data. Raises DataVersionError where the mark is no
        version.
        """
        ...

    async def mark(self, version: int) -> int:
        """Mark the data with a version, unless it is marked with a later one. Returns what the mark is then.

        It is written in either case, so that whoever may not write finds out. Raises DataVersionError where the mark is
        no version, and leaves it as it is.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Lock(Protocol):
    """Mutual exclusion among processes, by name."""

    def hold(self, name: str, timeout: float) -> AbstractAsyncContextManager[Fence]:
        """Hold the lock `name` for the length of an `async with`.

        Waits at most `timeout` seconds and raises LockUnavailableError after that. The fence that it yields orders
        holders: a lock that can be lost while its holder is paused is safe only together with it.
        """
        ...

    async def ping(self) -> None:
        """Return where the lock could be had; raises LockUnavailableError."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
