"""The document that status, in all its forms, shows: a pure function of what store and API server have."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from at_least_semaphore_pod_hook.controller.decide import LOST_MS, Observed, is_suspect, line, unpermitted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from at_least_semaphore_pod_hook.controller.pods import PodView
    from at_least_semaphore_pod_hook.semaphore.model import Holder, SemaphoreKey, SemaphoreState


CONDITIONS = ("draining", "rebuild-due", "unpermitted-pods", "silent-sidecar")
"""More is held than the length; the store may have lost holders; pods run without a permit; permits are kept for pods
whose sidecars do not renew them."""


class HolderView(msgspec.Struct, frozen=True):
    """Who holds a permit.

    Attributes:
        permit: The permit's name.
        pod: The pod's name, or its prefix with an asterisk while it has none.
        node: Where the pod runs; empty where it is not scheduled, or not known.
        phase: The pod's, as the API server has it; empty where it does not show the pod.
        since: When the permit was granted.
        lease_ends: When the permit is free again, unless it is renewed until then.
        token: The grant's fencing token.
        confirmed: Whether the pod's sidecar has renewed the permit.
        silent: Whether it has once, and not for longer than a lease.
    """

    permit: str
    pod: str
    node: str
    phase: str
    since: datetime
    lease_ends: datetime
    token: int
    confirmed: bool
    silent: bool


class WaiterView(msgspec.Struct, frozen=True):
    """Who waits for a permit.

    Attributes:
        position: The place in the line, from 1 on.
        pod: The pod's name.
        since: When it came.
        gated: Whether it waits behind our scheduling gate; else its containers wait for its sidecar.
    """

    position: int
    pod: str
    since: datetime
    gated: bool


class SemaphoreView(msgspec.Struct, frozen=True):
    """A semaphore at one moment.

    What comes from the API server is None where nobody could be asked.

    Attributes:
        length: How many permits there are.
        free: How many nobody holds; 0 while a shrunk semaphore drains.
        held: How many are held.
        waiting: How many pods wait.
        oldest_wait_since: Since when the one waits that has waited longest; None where none does.
        unpermitted: How many pods run without a permit.
        complete: Whether the store surely has all holders; else it is rebuilt before it grants again.
        conditions: What is out of the ordinary, of `CONDITIONS`.
        denied: The owners of denied pods that are to be woken, the first one first.
        holders: Who holds permits, longest first; only the first ones of many.
        waiters: Who waits, in line; only the first ones of many.
    """

    namespace: str
    key: str
    length: int
    free: int
    held: int
    waiting: int | None
    oldest_wait_since: datetime | None
    unpermitted: int | None
    complete: bool
    conditions: tuple[str, ...]
    denied: tuple[str, ...]
    holders: tuple[HolderView, ...]
    waiters: tuple[WaiterView, ...]

    @property
    def name(self) -> str:
        """Its name with its namespace."""
        return f"{self.namespace}/{self.key}"


class Overview(msgspec.Struct, frozen=True):
    """Semaphores at one moment.

    Attributes:
        at: When that was.
        api_server: Why pods are not known, or an empty string.
        semaphores: By namespace and key.
    """

    at: datetime
    api_server: str
    semaphores: tuple[SemaphoreView, ...]


def moment(seconds: float) -> datetime:
    """Return a moment given in seconds since the epoch, in whole ones: clocks do not agree any better."""
    return datetime.fromtimestamp(round(seconds), UTC)


def by_semaphore(pods: Iterable[PodView]) -> dict[SemaphoreKey, list[PodView]]:
    """Sort pods by the semaphores that they belong to."""
    found: dict[SemaphoreKey, list[PodView]] = {}
    for pod in pods:
        if semaphore := pod.semaphore:
            found.setdefault(semaphore, []).append(pod)
    return found


def view(
    key: SemaphoreKey, state: SemaphoreState, pods: Sequence[PodView] | None, now: float, *, named: int
) -> SemaphoreView:
    """Describe a semaphore.

    Args:
        key: Which.
        state: What the store has.
        pods: The pods of the key; None where the API server could not be asked.
        now: When both were read, in seconds since the epoch.
        named: How many holders and waiters to name at most.
    """
    waiters, without = _waiters(state, pods or ())
    by_permit = {pod.permit: pod for pod in pods or ()}
    # Those of whom a copied pod says the same are told apart by their UID.
    by_holder = {(pod.permit, pod.uid): pod for pod in pods or ()}
    eldest = sorted(state.holders, key=lambda holder: (-holder.age_ms, holder.permit))[:named]
    holders = tuple(
        _holder(holder, by_holder.get((holder.permit, holder.uid)) or by_permit.get(holder.permit), now)
        for holder in eldest
    )
    known = pods is not None
    return SemaphoreView(
        namespace=key.namespace,
        key=key.key,
        length=state.length,
        free=state.free,
        held=state.held,
        waiting=len(waiters) if known else None,
        oldest_wait_since=moment(min(pod.came for pod in waiters)) if waiters else None,
        unpermitted=len(without) if known else None,
        complete=state.complete,
        conditions=_conditions(state, len(without)),
        denied=state.denied,
        holders=holders,
        waiters=tuple(
            WaiterView(position, pod.name, moment(pod.came), pod.gated)
            for position, pod in enumerate(waiters[:named], start=1)
        ),
    )


def _conditions(state: SemaphoreState, unpermitted_pods: int) -> tuple[str, ...]:
    holds = (
        state.held > state.length,
        not state.complete,
        unpermitted_pods > 0,
        any(is_suspect(holder) for holder in state.holders),
    )
    return tuple(name for name, is_so in zip(CONDITIONS, holds, strict=True) if is_so)


def _waiters(state: SemaphoreState, pods: Sequence[PodView]) -> tuple[list[PodView], list[PodView]]:
    """Return who waits, in the order in which they are served, and who runs without a permit."""
    held = state.permits
    # Nobody watches for how long a permit has been missing: whoever has none at this moment counts.
    seen = Observed(state, pods, {}, 0, {pod.permit: LOST_MS for pod in pods})
    late = unpermitted(seen, held)
    held_back = [pod for pod in late if pod.held_back]
    gated = [pod for pod in line(pods) if pod.permit not in held]
    return [*held_back, *gated], [pod for pod in late if not pod.held_back]


def _holder(holder: Holder, pod: PodView | None, now: float) -> HolderView:
    return HolderView(
        permit=holder.permit,
        pod=pod.name if pod else holder.pod,
        node=pod.node if pod else "",
        phase=pod.phase if pod else "",
        since=moment(now - holder.age_ms / 1000),
        lease_ends=moment(now + holder.lease_ms / 1000),
        token=holder.token,
        confirmed=holder.confirmed,
        silent=is_suspect(holder),
    )
