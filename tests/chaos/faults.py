"""All kinds of faults, and which go together."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

from tests.chaos.fault import Fault, Verdict
from tests.chaos.network_faults import (
    ApiDeaf,
    ApiFailing,
    ApiForgetting,
    ApiGone,
    ApiRepeating,
    ApiSlow,
    LinkHalfOpen,
    LinkHeld,
    LinkRefused,
    LinkReset,
    LinkSlow,
    OfApi,
    OfLink,
    RepliesLost,
)
from tests.chaos.process_faults import (
    LeaderKilled,
    LeaderStopped,
    LockMinorityEmptied,
    LockMinorityLost,
    OfReplica,
    SidecarCrashed,
    SidecarsKilled,
    SidecarsStopped,
    StoreClock,
    StoreClockSkewed,
    StoreKilled,
    StorePowerCut,
    StoreStopped,
    WebhookClock,
    WebhookCrashed,
    WebhookKilled,
    WebhookStopped,
)


def _named(base: type[Fault], name: str, **attributes: Any) -> type[Fault]:
    return type(base.__name__, (base,), {"name": name, "__doc__": base.__doc__, "__module__": __name__, **attributes})


_TROUBLES = {
    "held": LinkHeld,
    "half-open": LinkHalfOpen,
    "slow": LinkSlow,
    "reset": LinkReset,
    "refused": LinkRefused,
    "replies lost": RepliesLost,
}
_SILENCED = {"store": ("controller",), "api": ("controller",), "sidecars": ("sidecar",), "locks": ()}

KINDS: list[type[Fault]] = [
    SidecarsKilled,
    SidecarsStopped,
    WebhookKilled,
    LeaderKilled,
    WebhookStopped,
    LeaderStopped,
    StoreStopped,
    *(_named(StoreKilled, f"store: SIGKILL, {sync}", sync=sync) for sync in ("always", "everysec", "no")),
    _named(StorePowerCut, "store: power cut, always", sync="always"),
    *(
        _named(StorePowerCut, f"store: power cut, {sync}", sync=sync, verdict=Verdict.WRITES)
        for sync in ("everysec", "no")
    ),
    *(
        _named(base, f"link {sort}: {trouble}", sort=sort, silences=silences)
        for sort, silences in _SILENCED.items()
        for trouble, base in _TROUBLES.items()
    ),
    LockMinorityLost,
    LockMinorityEmptied,
    WebhookCrashed,
    SidecarCrashed,
    ApiForgetting,
    ApiDeaf,
    ApiGone,
    ApiRepeating,
    ApiFailing,
    ApiSlow,
    WebhookClock,
    StoreClock,
    StoreClockSkewed,
]


def verdict(faults: Collection[Fault]) -> Verdict:
    """Return what faults may cost together."""
    alone = max((fault.verdict for fault in faults), default=Verdict.NONE)
    silent = {who for fault in faults for who in fault.silences}
    return max(alone, Verdict.LEASES) if silent >= {"sidecar", "controller"} else alone


def _compatible(faults: Collection[Fault]) -> bool:
    """Whether a scene can have them all: one appendfsync, and nothing that is killed while another freezes it."""
    syncs = {fault.sync for fault in faults if isinstance(fault, StoreKilled)}
    of_store = [fault for fault in faults if isinstance(fault, StoreKilled | StoreStopped | StoreClock)]
    of_api = [fault for fault in faults if isinstance(fault, OfApi)]
    crashes = [fault for fault in faults if isinstance(fault, WebhookCrashed)]
    of_replica = [fault for fault in faults if isinstance(fault, OfReplica | WebhookCrashed)]
    of_locks = [fault for fault in faults if isinstance(fault, LockMinorityLost)]
    return len(syncs) <= 1 and all(len(group) <= 1 for group in (of_store, of_api, crashes, of_replica, of_locks))


def plan(rng: random.Random, first: int, *, real: bool) -> list[Fault]:
    """Draw one to three faults that go together, the kind number `first` among them.

    A real API server does not misbehave as it is told, so what is told to the stand-in is left out there.
    """
    kinds = [kind for kind in KINDS if not (real and issubclass(kind, OfApi))]
    faults = [kinds[first % len(kinds)](rng)]
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        more = rng.choice(kinds)(rng)
        links = {fault.name.partition(":")[0] for fault in faults if isinstance(fault, OfLink)}
        if _compatible([*faults, more]) and more.name.partition(":")[0] not in links:
            faults.append(more)
    return faults
