"""How many permits were held, and how many pods waited, over the last hour: in memory, and bounded."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from at_least_semaphore_pod_hook.overview.document import SemaphoreView

HOUR_SECONDS = 3600
SLOT_SECONDS = 15
SLOTS = HOUR_SECONDS // SLOT_SECONDS
SEMAPHORES = 1000
"""Of how many semaphores there is a history: 6 MB at most."""

Point = tuple[int, int, int]
"""A slot's beginning in seconds since the epoch, and the most permits held and pods waiting within it."""


class History:
    """What was seen, in slots of `SLOT_SECONDS`."""

    def __init__(self) -> None:
        self._rows: dict[str, array[int]] = {}
        self._forgotten_at = 0

    def add(self, at: float, semaphores: Iterable[SemaphoreView]) -> None:
        """Take a reading in."""
        slot = int(at) // SLOT_SECONDS * SLOT_SECONDS
        for one in semaphores:
            row = self._rows.get(one.name)
            if row is None:
                if len(self._rows) >= SEMAPHORES:
                    continue
                row = self._rows[one.name] = array("q")
            held, waiting = one.held, one.waiting or 0
            if row and row[-3] == slot:
                row[-2], row[-1] = max(row[-2], held), max(row[-1], waiting)
            else:
                row.extend((slot, held, waiting))
                del row[: -3 * SLOTS]
        if slot != self._forgotten_at:
            self._forgotten_at = slot
            self._forget(slot - HOUR_SECONDS)

    def of(self, name: str) -> list[Point]:
        """Return what was seen of a semaphore, the oldest first."""
        row = self._rows.get(name, array("q"))
        return list(zip(row[::3], row[1::3], row[2::3], strict=True))

    def _forget(self, until: int) -> None:
        for name, row in list(self._rows.items()):
            while row and row[0] <= until:
                del row[:3]
            if not row:
                del self._rows[name]
