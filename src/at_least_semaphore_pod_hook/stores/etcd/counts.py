"""What a process remembers of large semaphores, so that their holders are not counted with each acquire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from at_least_semaphore_pod_hook.etcd_permits import EXACT

if TYPE_CHECKING:
    from collections.abc import Callable

    from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey
    from at_least_semaphore_pod_hook.stores.etcd.decisions import Seen

COUNT_SECONDS: Final = 0.5
"""How long a count is relied on: etcd itself looks this often which leases have ended."""
MAX_COUNTS: Final = 1000


class Count(NamedTuple):
    """What holders were counted, who some of them are, at which revisions of head and mark, and when that began."""

    held: int
    pods: tuple[str, ...]
    head_revision: int
    freed_revision: int
    began: float

    def holds(self, seen: Seen, now: float) -> bool:
        """Say whether it is exact for what is seen now, save for leases that have ended in the last half second.

        Whatever makes holders more has written the head, and a release has written the head or the mark.
        """
        unchanged = (seen.head_revision, seen.freed_revision) == (self.head_revision, self.freed_revision)
        return unchanged and now - self.began < COUNT_SECONDS


class Counts:
    """Which semaphores are large by the bound in their heads, and what was counted last of up to `MAX_COUNTS` of them.

    Args:
        now: Returns seconds of a monotonic clock.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._large: set[SemaphoreKey] = set()
        self._counts: dict[SemaphoreKey, Count] = {}

    def is_counted(self, key: SemaphoreKey) -> bool:
        """Whether a semaphore's holders are counted with each look."""
        return key not in self._large

    def note(self, key: SemaphoreKey, seen: Seen) -> None:
        """Remember whether a semaphore is large."""
        if seen.head.held > EXACT:
            self._large.add(key)
        else:
            self._large.discard(key)
            self._counts.pop(key, None)

    def complete(self, key: SemaphoreKey, seen: Seen, began: float) -> Seen:
        """Remember what was seen, and add to it the last count where that still holds.

        Args:
            key: The semaphore.
            seen: What there is.
            began: The clock before that was asked for.
        """
        self.note(key, seen)
        if self.is_counted(key):
            return seen
        if seen.counted:
            self._counts.pop(key, None)
            if len(self._counts) >= MAX_COUNTS:
                del self._counts[next(iter(self._counts))]
            self._counts[key] = Count(seen.held, seen.pods, seen.head_revision, seen.freed_revision, began)
            return seen
        count = self._counts.get(key)
        if count is None or not count.holds(seen, self.now()):
            return seen
        return seen._replace(held=count.held, counted=True, pods=count.pods)
