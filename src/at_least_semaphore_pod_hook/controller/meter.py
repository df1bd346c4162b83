"""What the controller measures, and for whom it does is another's business: a protocol, so that nothing is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey


class Figures(NamedTuple):
    """A semaphore at one moment.

    Attributes:
        length: How many permits there are.
        held: How many are held; more than `length` while a shrunk semaphore drains.
        waiting: How many pods wait, behind a scheduling gate or for their sidecar to confirm a permit.
        oldest_wait_since: When the one that has waited longest arrived, in seconds since the epoch; None where none
            waits.
        suspects: Permits that are kept for pods whose sidecar is silent.
        late: Pods that exist without a permit.
    """

    length: int
    held: int
    waiting: int
    oldest_wait_since: float | None
    suspects: int = 0
    late: int = 0


class Meter(Protocol):
    """Is told what happens. Every method is quick, and none raises."""

    def show(self, semaphore: SemaphoreKey, figures: Figures | None) -> None:
        """Take in how a semaphore is now; None where there is nothing to tell of it any more."""
        ...

    def clear(self) -> None:
        """Forget what was shown: another replica leads, and shows it."""
        ...

    def granted(self, semaphore: SemaphoreKey) -> None:
        """Count a permit that a pod has got, at its admission or later."""
        ...

    def denied(self, semaphore: SemaphoreKey) -> None:
        """Count a pod that was denied because all permits were held."""
        ...

    def reclaimed(self, semaphore: SemaphoreKey, reason: str) -> None:
        """Count a permit that was taken back, by a word for the reason."""
        ...

    def handed_over(self, semaphore: SemaphoreKey, seconds: float) -> None:
        """Measure how long a permit that somebody waited for was known to be free, until the waiter's gate was gone."""
        ...

    def gate_removed(self, seconds: float) -> None:
        """Measure how long it took from the grant in the store until the pod's gate was gone."""
        ...

    def event_dropped(self) -> None:
        """Count a Kubernetes Event that was not written."""
        ...
