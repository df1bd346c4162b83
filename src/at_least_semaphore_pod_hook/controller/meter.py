"""What the controller tells of itself, for whoever counts it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey


class Figures(NamedTuple):
    """A semaphore at one moment, in numbers.

    Attributes:
        length, held: As the store has it.
        waiting: How many pods wait in line.
        oldest_wait_since: When the first of them came, in seconds since the epoch; None where nobody waits.
        suspects: How many permits are kept for pods whose sidecar is silent.
        late: How many pods were let in and have no permit.
    """

    length: int
    held: int
    waiting: int
    oldest_wait_since: float | None
    suspects: int
    late: int


class Meter(Protocol):
    """Told of what happens, as it happens; never waits and never raises."""

    def show(self, semaphore: SemaphoreKey, figures: Figures | None) -> None:
        """Take a semaphore's figures; None to forget it."""

    def clear(self) -> None:
        """Forget all figures: another replica has them from now on."""

    def granted(self, semaphore: SemaphoreKey) -> None:
        """Count a grant."""

    def denied(self, semaphore: SemaphoreKey) -> None:
        """Count a denial."""

    def reclaimed(self, semaphore: SemaphoreKey, reason: str) -> None:
        """Count a permit that was taken back."""

    def handed_over(self, semaphore: SemaphoreKey, seconds: float) -> None:
        """Take the seconds from a permit's being known to be free to the gate's removal from the pod that waited."""

    def gate_removed(self, semaphore: SemaphoreKey, seconds: float) -> None:
        """Take the seconds from a grant to the gate's removal."""

    def event_dropped(self) -> None:
        """Count an Event that was not written."""
