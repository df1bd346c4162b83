"""What is to be done for one semaphore, given what store and API show: a pure function of both."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from at_least_semaphore_pod_hook.controller.pods import PodView
    from at_least_semaphore_pod_hook.semaphore.model import Holder, SemaphoreState

LOST_MS = 2_000
"""How long the store may not know a running pod's permit: a sidecar gives it back before the API shows why."""
ENDING_MS = 10_000
"""How long a pod that is being deleted and has given its permit back still counts, unless the API shows its end.

The kubelet takes a second or two for that. A node that is lost never does.
"""


class Reason(StrEnum):
    """Why a permit is taken back."""

    FINISHED = "finished"
    ENDED = "ended"
    DELETED = "deleted"
    GONE = "gone"
    NEVER_STORED = "never_stored"


class Release(NamedTuple):
    """Take a permit back. Where `unproven`, only after the API server has said that there is no such pod."""

    holder: Holder
    reason: Reason
    pod: PodView | None = None
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


class Dismiss(NamedTuple):
    """Tell the sidecar of a pod that holds nothing that the pod's other containers have ended."""

    pod: PodView


class Resize(NamedTuple):
    """Create the semaphore, give it another length, or have it rebuilt where it is incomplete; then look again."""

    length: int


class Grant(NamedTuple):
    """Take a permit for a pod that exists, and let it in."""

    pod: PodView


class Ungate(NamedTuple):
    """Let a pod in that holds its permit already: whoever granted it came no further."""

    pod: PodView
    token: int


class Wake(NamedTuple):
    """Touch the owner of denied pods, as there is a permit for one of them."""

    owner: str


Action = Release | Keep | Dismiss | Resize | Grant | Ungate | Wake


class Observed(NamedTuple):
    """One semaphore at one moment.

    Attributes:
        state: What the store has.
        pods: What the API shows: all pods of the key, the finished ones too.
        gone: Pods whose deletion the watch has seen, by their permits.
        reservation_ms: How long a reservation may go without its pod being seen.
        missing_ms: For how long the store has not known the permits of these pods, as far as they have been let in.
    """

    state: SemaphoreState
    pods: Collection[PodView]
    gone: Mapping[str, PodView]
    reservation_ms: int
    missing_ms: Mapping[str, int]


def decide(seen: Observed) -> list[Action]:
    """Return what to do, in order.

    What is taken back comes first, then renewals, then permits: for pods that exist without one, then for waiters,
    each the oldest first, and what is left for the owners of denied pods, the one that was first denied first.
    """
    by_permit = {pod.permit: pod for pod in seen.pods}
    # A copied pod names its original's permit: it is the one's for whom it was granted.
    by_holder = {(pod.permit, pod.uid): pod for pod in seen.pods}
    actions: list[Action] = []
    kept: list[Action] = []
    held: dict[str, int] = {}
    for holder in seen.state.holders:
        pod = by_holder.get((holder.permit, holder.uid)) or by_permit.get(holder.permit)
        action = _of_holder(holder, pod, seen)
        if isinstance(action, Release):
            actions.append(action)
            # What is not proven yet may turn out to be held.
            if action.unproven:
                held[holder.permit] = holder.token
            continue
        held[holder.permit] = holder.token
        if action is not None:
            kept.append(action)
    actions += kept
    known = seen.state.permits
    actions += [Dismiss(pod) for pod in seen.pods if pod.permit not in known and _is_outlived(pod)]
    gated = line(seen.pods)
    late, waiters = unpermitted(seen, held), [pod for pod in gated if pod.permit not in held]
    if length := _other_length(seen, late, waiters):
        return [*actions, Resize(length)]
    actions += [Ungate(pod, held[pod.permit]) for pod in gated if pod.permit in held]
    free = max(0, seen.state.length - len(held) - sum(_is_ending(pod, held, seen) for pod in seen.pods))
    actions += [Grant(pod) for pod in [*late, *waiters][:free]]
    actions += [Wake(owner) for owner in seen.state.denied[: max(0, free - len(late) - len(waiters))]]
    return actions


def line(pods: Collection[PodView]) -> list[PodView]:
    """Return the pods in line, the first one first. A pod that another gate holds back has no place in it."""
    return sorted(
        (pod for pod in pods if pod.gated and len(pod.gates) == 1 and not _over(pod)), key=lambda pod: pod.place
    )


def unpermitted(seen: Observed, held: Collection[str]) -> list[PodView]:
    """Return the pods that were let in and have no permit, the oldest first.

    They were stored after their reservation had been taken back, or lost their permit, or somebody removed the gate.
    """
    late = [pod for pod in seen.pods if pod.permit not in held and not pod.gated and _needs_permit(pod, seen)]
    return sorted(late, key=lambda pod: pod.place)


def surviving(pods: Collection[PodView]) -> list[PodView]:
    """Return the pods that were let in and have not come to their end: each holds a permit, or has lost it.

    A sidecar that has ended gave the permit back, unless the kubelet is about to start it again.
    """
    return [
        pod
        for pod in pods
        if pod.permit
        and not pod.gated
        and not pod.finished
        and not pod.others_ended
        and not (pod.deleting and pod.sidecar is not None and pod.sidecar.container.state == "terminated")
    ]


def _needs_permit(pod: PodView, seen: Observed) -> bool:
    sidecar = pod.sidecar.container.state if pod.sidecar else ""
    # A sidecar that has ended gave the permit back: the pod ends, or the kubelet starts it again.
    if _over(pod) or sidecar == "terminated":
        return False
    return sidecar != "running" or seen.missing_ms.get(pod.permit, 0) >= LOST_MS


def _of_holder(holder: Holder, pod: PodView | None, seen: Observed) -> Action | None:
    if pod is None:
        return _of_unseen(holder, seen)
    if pod.finished:
        return Release(holder, Reason.FINISHED, pod)
    if _is_outlived(pod):
        return Release(holder, Reason.ENDED, pod)
    native = pod.sidecar is not None and pod.sidecar.container.native
    if pod.deleting and native and not pod.releases_on_exit:
        # A native sidecar gets its signal last; the pod's first one came with the deletion.
        return Release(holder, Reason.DELETED, pod)
    # The sidecar renews every third of the lease; half of it gone means that it does not.
    lapsing = holder.lease_ms * 2 < holder.expiration_ms
    if lapsing or holder.uid != pod.uid:
        return Keep(holder, pod, lapsing, suspect=is_suspect(holder))
    return None


def _is_outlived(pod: PodView) -> bool:
    """Whether only our sidecar is left of a pod, an ordinary one: a native one is stopped by the kubelet."""
    return pod.others_ended and pod.sidecar_started and pod.sidecar is not None and not pod.sidecar.container.native


def is_suspect(holder: Holder) -> bool:
    """Say whether a holder's sidecar has once renewed, and not for longer than a lease."""
    return holder.confirmed and holder.silent_ms >= holder.expiration_ms


def _of_unseen(holder: Holder, seen: Observed) -> Action | None:
    if gone := seen.gone.get(holder.permit):
        return Release(holder, Reason.GONE, gone)
    if holder.uid or holder.confirmed:
        # It existed. The watch may only be behind: nothing is taken from a pod that the API server still has.
        return Release(holder, Reason.GONE, unproven=True)
    # Granted in the future: the store's clock was set back, and nobody can say how long ago it was.
    if not 0 <= holder.age_ms < seen.reservation_ms:
        return Release(holder, Reason.NEVER_STORED, unproven=True)
    return None


def _other_length(seen: Observed, late: list[PodView], waiters: list[PodView]) -> int:
    """Return the length that the semaphore shall be given before anything else is granted, or 0.

    The pod that came last decides. One that was let in has done so already; it is the waiters that have not.
    """
    if not seen.state.length:
        unserved = sorted([*late, *waiters] or surviving(seen.pods), key=lambda pod: pod.place)
        return unserved[-1].length if unserved else 0
    if not seen.state.complete:
        return seen.state.length
    if not waiters or waiters[-1].length == seen.state.length:
        return 0
    return waiters[-1].length if waiters[-1].place == max(pod.place for pod in seen.pods) else 0


def _is_ending(pod: PodView, held: Collection[str], seen: Observed) -> bool:
    """Whether a pod's successor waits until the API shows its end, so that nobody ever sees more than `length`."""
    return (
        pod.deleting
        and pod.releases_on_exit
        and not pod.finished
        and not pod.gated
        and not pod.held_back
        and pod.permit not in held
        and seen.missing_ms.get(pod.permit, 0) < ENDING_MS
    )


def _over(pod: PodView) -> bool:
    """Whether a pod needs no permit any more."""
    return pod.finished or pod.deleting or pod.others_ended
