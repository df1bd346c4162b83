"""Every Kubernetes Event that is written: its reason, and what it tells whom. One table for code and documents."""

from __future__ import annotations

from typing import NamedTuple


class Event(NamedTuple):
    """A kind of Kubernetes Event.

    Attributes:
        reason: Its name in CamelCase, as `kubectl describe` shows it.
        action: What was done, in CamelCase.
        on: What it is written on.
        meaning: What it says.
        advice: What to do about it.
        warning: Whether its type is Warning and not Normal.
    """

    reason: str
    action: str
    on: str
    meaning: str
    advice: str = "nothing"
    warning: bool = False


WAITING = Event(
    "WaitingForPermit",
    "Wait",
    "the pod",
    "the semaphore is full, and the pod's work has not begun: its place in the line, and up to three pods that hold "
    "permits. It waits behind the scheduling gate, or with --confirm for its sidecar",
    "nothing; it starts when its turn comes. Where it does not, look at the pods that are named",
)
GRANTED = Event("PermitGranted", "Grant", "the pod", "the pod has got its permit, after so long a wait")
RECLAIMED = Event(
    "PermitReclaimed",
    "Reclaim",
    "the pod",
    "the permit was taken back: the pod has finished, or is gone",
    "nothing. Where it says so of most pods, their sidecars do not reach the store to give permits back themselves",
)
RELEASED = Event(
    "PermitReleased",
    "Release",
    "the pod",
    "somebody has released the pod's permit by hand while it ran; for a pod that has finished its type is Normal",
    "nothing; where the pod runs on, another may run beside it",
    warning=True,
)
SILENT = Event(
    "SidecarSilent",
    "Keep",
    "the pod",
    "the pod runs on a ready node, but its sidecar does not renew. The permit is kept for it",
    "look at the sidecar's log and at network policies; where the pod is stuck, delete it",
    warning=True,
)
LATE = Event(
    "WithoutPermit",
    "Wait",
    "the pod",
    "the pod was stored without a permit, or lost its own, and all are held. It gets the next one",
    "delete it, where more pods than permits must not run; its replacement waits or is denied",
    warning=True,
)
WOKEN = Event(
    "Woken",
    "Wake",
    "the owner of denied pods",
    "a permit is free, and the owner's controller is made to try again. At most once in 5 minutes",
)
CERTIFICATE_REPLACED = Event(
    "CertificateReplaced",
    "Replace",
    "the certificate's Secret",
    "the Secret held no usable certificate, and was written anew: somebody has spoilt it, or the certificate has ended",
    "find out who writes to the Secret",
    warning=True,
)

EVENTS = (WAITING, GRANTED, RECLAIMED, RELEASED, SILENT, LATE, WOKEN, CERTIFICATE_REPLACED)
"""All of them."""
