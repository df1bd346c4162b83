"""What is to be done for one semaphore, given what store and API show: a pure function of both."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

    from at_least_semaphore_pod_hook.controller.pods import PodView
    from at_least_semaphore_pod_hook.semaphore.model import Holder, SemaphoreState


class Reason(StrEnum):
    """Why a permit is taken back."""

    FINISHED = "finished"
    ENDED = "ended"
    GONE = "gone"
    NEVER_STORED = "never_stored"


class Release(NamedTuple):
    """Take a permit back. Where `unproven`, only after the API server has said that there is no such pod."""

    holder: Holder
    reason: Reason
    unproven: bool = False


class Keep(NamedTuple):
    """Renew a permit on behalf of a pod that exists.

    Attributes:
        holder: Who holds it.
        pod: The pod.
        lapsing: Whether the lease is running out; then the pod's node must be ready.
        suspect: Whether the pod's sidecar once renewed, and has not for longer than a lease.
    """

    holder: Holder
    pod: PodView
    lapsing: bool
    suspect: bool


class Grant(NamedTuple):
    """Take a permit for a pod that was stored although its reservation had been taken back, or that lost its permit."""

    pod: PodView


class Wake(NamedTuple):
    """Touch the owner of denied pods, as there is a permit for one of them."""

    owner: str


Action = Release | Keep | Grant | Wake


class Observed(NamedTuple):
    """One semaphore at one moment.

    Attributes:
        state: What the store has.
        pods: What the API shows: all pods of the key, the finished ones too.
        gone: The permits of pods whose deletion the watch has seen.
        reservation_ms: How long a reservation may go without its pod being seen.
        lost: Permits of running pods that the store has not known for a while; a moment of that is nothing, since a
            sidecar that ends gives its permit back before the API shows it.
    """

    state: SemaphoreState
    pods: Collection[PodView]
    gone: Collection[str]
    reservation_ms: int
    lost: Collection[str]


def permit_of(pod: PodView) -> str:
    """Return the name of a pod's permit; empty where it has no sidecar of ours."""
    return pod.sidecar.permit if pod.sidecar else ""


def decide(seen: Observed) -> list[Action]:
    """Return what to do, in order.

    What is taken back comes first, then renewals, then permits: for pods that exist without one, the oldest first, and
    what is left for the owners of denied pods, the one that was first denied first.
    """
    by_permit = {permit_of(pod): pod for pod in seen.pods}
    actions: list[Action] = []
    kept: list[Action] = []
    held: set[str] = set()
    for holder in seen.state.holders:
        action = _of_holder(holder, by_permit.get(holder.permit), seen)
        if isinstance(action, Release):
            actions.append(action)
            # What is not proven yet may turn out to be held.
            if action.unproven:
                held.add(holder.permit)
            continue
        held.add(holder.permit)
        if action is not None:
            kept.append(action)
    actions += kept
    free = max(0, seen.state.length - len(held))
    late = [pod for pod in seen.pods if permit_of(pod) not in held and not _over(pod) and _is_late(pod, seen)]
    late.sort(key=lambda pod: (pod.created, pod.uid))
    actions += [Grant(pod) for pod in late[:free]]
    actions += [Wake(owner) for owner in seen.state.denied[: max(0, free - len(late))]]
    return actions


def _of_holder(holder: Holder, pod: PodView | None, seen: Observed) -> Action | None:
    if pod is None:
        return _of_unseen(holder, seen)
    if pod.finished:
        return Release(holder, Reason.FINISHED)
    if pod.others_ended and pod.sidecar_started:
        return Release(holder, Reason.ENDED)
    # The sidecar renews every third of the lease; half of it gone means that it does not.
    lapsing = holder.lease_ms * 2 < holder.expiration_ms
    if lapsing or holder.uid != pod.uid:
        return Keep(holder, pod, lapsing, suspect=holder.confirmed and holder.silent_ms >= holder.expiration_ms)
    return None


def _of_unseen(holder: Holder, seen: Observed) -> Action | None:
    if holder.permit in seen.gone:
        return Release(holder, Reason.GONE)
    if holder.uid or holder.confirmed:
        # It existed. The watch may only be behind: nothing is taken from a pod that the API server still has.
        return Release(holder, Reason.GONE, unproven=True)
    if holder.age_ms >= seen.reservation_ms:
        return Release(holder, Reason.NEVER_STORED, unproven=True)
    return None


def _is_late(pod: PodView, seen: Observed) -> bool:
    return not pod.sidecar_started or permit_of(pod) in seen.lost


def _over(pod: PodView) -> bool:
    """Whether a pod needs no permit any more."""
    return pod.finished or pod.deleting or pod.others_ended
