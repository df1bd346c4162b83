"""All kinds of faults, and which go together."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any, NamedTuple

from tests.chaos.fault import TOPOLOGIES, Fault, OfGroup, Verdict
from tests.chaos.group_faults import ETCD_KINDS, StoreFlushed, StoreOlderCopy
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
from tests.chaos.redis_faults import REDIS_KINDS, MasterReplica, PrimaryPeers


def _named(base: type[Fault], name: str, of: type[Fault] | None = None, **attributes: Any) -> type[Fault]:
    bases = (of, base) if of else (base,)
    return type(base.__name__, bases, {"name": name, "__doc__": base.__doc__, "__module__": __name__, **attributes})


_TROUBLES = {
    "held": LinkHeld,
    "half-open": LinkHalfOpen,
    "slow": LinkSlow,
    "reset": LinkReset,
    "refused": LinkRefused,
    "replies lost": RepliesLost,
}
_SILENCED = {
    "store": ("controller",),
    "api": ("controller",),
    "sidecars": ("sidecar",),
    "locks": (),
    # What was asked of it has to end first, and is asked of the others only then.
    "member": ("controller",),
    # Nobody else is asked in place of a primary or a master.
    "server": ("sidecar", "controller"),
}
_SORTS = {
    "store": TOPOLOGIES,
    "api": TOPOLOGIES,
    "sidecars": TOPOLOGIES,
    "locks": ("single", "sentinel", "cluster"),
    "member": ("etcd",),
    "server": ("sentinel", "cluster"),
}
"""Of which stores there are links of a sort."""

KINDS: list[type[Fault]] = [
    *ETCD_KINDS,
    *REDIS_KINDS,
    *(_named(base, f"link primary's peers: {trouble}", PrimaryPeers) for trouble, base in _TROUBLES.items()),
    *(_named(base, f"link master's replica: {trouble}", MasterReplica) for trouble, base in _TROUBLES.items()),
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
        _named(base, f"link {sort}: {trouble}", sort=sort, silences=silences, topologies=_SORTS[sort])
        for sort, silences in _SILENCED.items()
        for trouble, base in _TROUBLES.items()
    ),
    StoreFlushed,
    StoreOlderCopy,
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
_CYCLE = ("single", "single", "etcd", "sentinel", "single", "single", "etcd", "cluster")
REAL_EVERY = 10
"""Of so many seeds one has a real API server."""


class Ground(NamedTuple):
    """What a run happens on.

    Attributes:
        real: Whether its API server is a real one.
        topology: What its store is.
        number: How many runs on such a store have lower seeds, of those with a real API server, or of the others.
    """

    real: bool
    topology: str
    number: int


def ground(seed: int) -> Ground:
    """Say what the run of a seed happens on."""
    real = seed % REAL_EVERY == REAL_EVERY - 1
    turns, turn = divmod(seed // REAL_EVERY if real else seed - seed // REAL_EVERY, len(_CYCLE))
    topology = _CYCLE[turn]
    return Ground(real, topology, turns * _CYCLE.count(topology) + _CYCLE[:turn].count(topology))


def kinds_of(topology: str, *, real: bool) -> list[type[Fault]]:
    """Return the kinds that a run can have.

    A real API server does not misbehave as it is told, so what is told to the stand-in is left out there.
    """
    return [kind for kind in KINDS if topology in kind.topologies and not (real and issubclass(kind, OfApi))]


def first_kinds(topology: str, *, real: bool) -> list[type[Fault]]:
    """Return the kinds that runs have in turn: where the store is not a single server, those that are its own."""
    kinds = kinds_of(topology, real=real)
    return kinds if topology == "single" else [kind for kind in kinds if "single" not in kind.topologies]


def _compatible(faults: Collection[Fault]) -> bool:
    """Whether a scene can have them all.

    It has one appendfsync, one trouble of a group, and nothing that is killed while another freezes it.
    """
    syncs = {fault.sync for fault in faults if isinstance(fault, StoreKilled)}
    of_store = [fault for fault in faults if isinstance(fault, StoreKilled | StoreStopped | StoreClock)]
    of_group = [fault for fault in faults if isinstance(fault, OfGroup) or _at_server(fault)]
    of_api = [fault for fault in faults if isinstance(fault, OfApi)]
    crashes = [fault for fault in faults if isinstance(fault, WebhookCrashed)]
    of_replica = [fault for fault in faults if isinstance(fault, OfReplica | WebhookCrashed)]
    of_locks = [fault for fault in faults if isinstance(fault, LockMinorityLost)]
    return len(syncs) <= 1 and all(
        len(group) <= 1 for group in (of_store, of_group, of_api, crashes, of_replica, of_locks)
    )


def _at_server(fault: Fault) -> bool:
    return isinstance(fault, OfLink) and fault.sort in {"member", "server"}


def _touched(fault: OfLink) -> set[str]:
    return {"store", "sidecars"} if _at_server(fault) else {fault.sort}


def plan(rng: random.Random, on: Ground) -> list[Fault]:
    """Draw one to three faults that go together, of which the first is the one whose turn it is."""
    kinds, firsts = kinds_of(on.topology, real=on.real), first_kinds(on.topology, real=on.real)
    faults = [firsts[on.number % len(firsts)](rng)]
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        more = rng.choice(kinds)(rng)
        links = {link for fault in faults if isinstance(fault, OfLink) for link in _touched(fault)}
        if _compatible([*faults, more]) and not (isinstance(more, OfLink) and links & _touched(more)):
            faults.append(more)
    return faults
