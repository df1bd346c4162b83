"""What a fault is: how it is brought about and ended, and what it may cost."""

from __future__ import annotations

import random
from collections.abc import Collection
from enum import IntEnum
from typing import ClassVar

from tests.chaos.scene import Needs, Scene

TOPOLOGIES = ("single", "etcd", "sentinel", "cluster")


class Verdict(IntEnum):
    """What a fault may cost at most; of several faults the worst counts, and sometimes their sum."""

    NONE = 0
    """No live pod loses its permit."""
    LEASES = 1
    """Leases may run out, as nobody is there to renew: what a lease guarantees holds, what comes after it does not."""
    GRANTS = 2
    """The store may lose what it has answered, but no grant: renewals and releases wait for no replica."""
    WRITES = 3
    """The store may lose what it has answered: holders may be forgotten while it lasts."""
    CLOCK = 4
    """The store's clock is not to be trusted: leases may last as long as they like, while it lasts and after it."""


class Fault:
    """A fault; made anew for each time.

    Attributes:
        name: What it is called in tables.
        verdict: What it costs alone.
        silences: Who does not renew while it lasts: "sidecar", "controller". Where both are silent, leases run out.
        topologies: In which stores there is such a thing.
        rebuilt: Whether what a verdict of WRITES lets be lost is put back, but for what was in flight at the time.
        lost: From when to when it took writes away, in seconds of the monotonic clock, once it has.
        seconds: From and to how long it lasts.
    """

    name: str = ""
    verdict: Verdict = Verdict.NONE
    silences: Collection[str] = ()
    topologies: Collection[str] = TOPOLOGIES
    rebuilt: bool = False
    lost: tuple[float, float] | None = None
    seconds: ClassVar[tuple[float, float]] = (0.5, 1.5)

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.lasts = rng.uniform(*self.seconds)

    def needs(self, needs: Needs) -> Needs:
        """Add what it asks of the scene."""
        return needs

    def inject(self, scene: Scene) -> None:
        """Bring it about."""
        raise NotImplementedError

    def heal(self, scene: Scene) -> None:
        """End it; whatever it ended runs again after this."""


class OfGroup(Fault):
    """A fault of a store of several servers."""


def verdict_of(faults: Collection[Fault]) -> Verdict:
    """Return what faults may cost together."""
    alone = max((fault.verdict for fault in faults), default=Verdict.NONE)
    silent = {who for fault in faults for who in fault.silences}
    return max(alone, Verdict.LEASES) if silent >= {"sidecar", "controller"} else alone
