"""The words of the domain as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

MAX_LENGTH = 1_000_000
MAX_EXPIRATION_SECONDS = 86_400
FRESH_SECONDS = 30
"""How long a reservation counts as one of the same request.

The API server gives a webhook at most 30 s (Kubernetes documentation, "Dynamic Admission Control", timeouts), so a
reinvocation that comes later than that belongs to another request.
"""
ENDED_SECONDS = 3600
"""How long it is remembered that a permit's pod has ended: long enough for a sidecar that was cut off from the store.

The scripts of the Redis store have the same number.
"""


class SemaphoreKey(NamedTuple):
    """A semaphore's name: a key, scoped to its namespace."""

    namespace: str
    key: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.key}"


class AcquireRequest(NamedTuple):
    """One pod's wish for a permit.

    Attributes:
        key: The semaphore.
        length: How many permits the pod says that the semaphore has; 0 where it takes what there is.
        expiration_seconds: How long the permit lives without a renewal.
        permit: The name that a newly granted permit gets: a random one, so that nobody can guess another's, or the UID
            of a pod that exists.
        identity: Whose request this is, e.g. a digest of namespace, user and pod name. A permit that the pod brings
            along counts only where it was reserved under the same identity.
        carried: The permit that the pod brings along, or an empty string.
        owner: The controlling owner that is to be woken where the pod is denied, or an empty string.
        assumed_length: In a dry run, answer as if the semaphore had been resized to this; 0 for as it is.
        pod: The pod's name where it has one already, else its generated name's prefix.
        dry_run: Answer as if it were real, and write nothing.
        uid: The UID of a pod that was seen in the API; empty for one that is being created.
    """

    key: SemaphoreKey
    length: int
    expiration_seconds: int
    permit: str
    identity: str
    carried: str = ""
    pod: str = ""
    dry_run: bool = False
    assumed_length: int = 0
    owner: str = ""
    uid: str = ""

    @property
    def answer_seconds(self) -> float:
        """How long an answer may take to be relied on: a lease counts from its grant, not from when that is known.

        Half of the lease is what is left then at least, for somebody to renew it.
        """
        return self.expiration_seconds / 2


class Outcome(StrEnum):
    """How an acquire ended."""

    GRANTED = "granted"
    RESUMED = "resumed"
    FULL = "full"
    OTHER_LENGTH = "other_length"
    INCOMPLETE = "incomplete"


class Acquired(NamedTuple):
    """A store's answer to an acquire.

    Attributes:
        outcome: GRANTED a new permit, RESUMED the reservation that the request already had, FULL, or, where nothing
            was done, OTHER_LENGTH: the semaphore does not exist (`length` is 0) or has another length, or INCOMPLETE:
            it has the length, but the store may have lost holders of it.
        length: The semaphore's length.
        held: How many permits are held, this one included.
        permit: The permit's name, where one was granted or resumed.
        token: The grant's fencing token, where there is one.
        holders: Up to three pods that hold a permit, where it is full.
    """

    outcome: Outcome
    length: int
    held: int
    permit: str = ""
    token: int = 0
    holders: tuple[str, ...] = ()


class Fence(NamedTuple):
    """A lock's fencing token.

    Attributes:
        domain: Within which tokens can be compared, e.g. one etcd cluster.
        token: Rises with every acquisition; 0 where the lock has none and the store counts instead.
    """

    domain: str
    token: int


class Step(NamedTuple):
    """A guarded step that the store has let in: its fence, and what it found.

    `complete` is whether the store surely has all holders; it is False for a semaphore that does not exist.
    """

    fence: Fence
    length: int
    held: int
    complete: bool


class Adoptee(NamedTuple):
    """A pod that lives and holds a permit which the store may have lost.

    Attributes:
        permit: The permit's name.
        pod: The pod's name.
        uid: Its UID.
        token: The fencing token that it was granted under, as far as is known; 0 gets a new one.
        expiration_seconds: How long the permit lives without a renewal.
    """

    permit: str
    pod: str
    uid: str
    token: int
    expiration_seconds: int


class Holder(NamedTuple):
    """Who holds a permit, as the store knows it.

    Attributes:
        permit: The permit's name.
        pod: The pod's name, or its prefix while it has none.
        token: The grant's fencing token.
        confirmed: Whether its sidecar has renewed it.
        lease_ms: What is left of the lease, in milliseconds.
        uid: The pod's UID, once it has been seen in the API.
        expiration_ms: How long a renewal lasts, in milliseconds.
        age_ms: How long ago it was granted, in milliseconds.
        silent_ms: How long ago its sidecar renewed it, or, before it has, how long ago it was granted.
    """

    permit: str
    pod: str
    token: int
    confirmed: bool
    lease_ms: int
    uid: str = ""
    expiration_ms: int = 0
    age_ms: int = 0
    silent_ms: int = 0


@dataclass(frozen=True, slots=True)
class SemaphoreState:
    """A semaphore at one moment. `length` is 0 where it does not exist; expired permits count as free.

    `denied` names up to 100 owners of pods that were denied, the one that was first denied first. `complete` is whether
    the store surely has all holders.
    """

    length: int
    holders: tuple[Holder, ...]
    denied: tuple[str, ...] = ()
    complete: bool = True

    @property
    def held(self) -> int:
        """How many permits are held."""
        return len(self.holders)

    @property
    def permits(self) -> set[str]:
        """The names of the permits that are held."""
        return {holder.permit for holder in self.holders}

    @property
    def free(self) -> int:
        """How many permits are free; 0 while a shrunk semaphore drains."""
        return max(0, self.length - self.held)
