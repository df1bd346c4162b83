"""Pods, cut down to what the controller needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping  # noqa: TC003 - msgspec reads the annotations when it runs
from typing import NamedTuple

import msgspec

from at_least_semaphore_pod_hook.semaphore.model import FRESH_SECONDS, SemaphoreKey


class Owner(NamedTuple):
    """The controller that a pod belongs to, e.g. a ReplicaSet."""

    api_version: str
    kind: str
    name: str
    uid: str


class ContainerView(NamedTuple):
    """A container of a pod.

    Attributes:
        name: Its name.
        init: Whether it is one of the pod's initContainers.
        native: Whether it is a native sidecar: an init container that the kubelet keeps running.
        state: "waiting", "running" or "terminated"; empty where the kubelet has not reported on it.
        exit_code: Of a terminated one; else None.
        started: Whether it runs and its startup probe, where it has one, has passed.
    """

    name: str
    init: bool
    native: bool
    state: str
    exit_code: int | None
    started: bool


class SidecarView(NamedTuple):
    """Our sidecar in a pod: semaphore and permit from its arguments, and how it is doing.

    `holds_back` says that the containers after it start only once it has confirmed the permit.
    """

    semaphore: str
    permit: str
    container: ContainerView
    holds_back: bool = False


class PodView(msgspec.Struct, frozen=True, gc=False):
    """A pod.

    Attributes:
        created: Seconds since the epoch; whole seconds are all that the API server keeps.
        deleting: Whether its deletion has been asked for.
        grace_seconds: How long the deletion waits for the containers; None where it is not being deleted.
        phase: Pending, Running, Succeeded, Failed or Unknown.
        reason: Why it is in that phase, e.g. Evicted; often empty.
        node: Where it runs; empty as long as it is not scheduled.
        annotations: Those that begin with our prefix.
        labels: The same.
        gates: The names of its scheduling gates.
        gated: Whether ours is one of them.
        arrived: When a waiter came, in microseconds since the epoch; 0 where that is not known.
        length, expiration: What its annotations say; 0 where somebody has made them what is not accepted.
        releases_on_exit: Whether its permit goes back once its other containers have ended, or at the first signal.
        restart_policy: Always, OnFailure or Never.
        owner: Its controlling owner.
        containers: The init containers, then the others, each in the pod's order. Ephemeral ones are left out: they
            are for debugging, and neither hold a pod up nor finish it.
        sidecar: Ours, where the pod has it.
    """

    namespace: str
    name: str
    uid: str
    resource_version: str
    created: float
    deleting: bool
    grace_seconds: int | None
    phase: str
    reason: str
    node: str
    annotations: Mapping[str, str]
    labels: Mapping[str, str]
    gates: tuple[str, ...]
    gated: bool
    arrived: int
    length: int
    expiration: int
    releases_on_exit: bool
    restart_policy: str
    owner: Owner | None
    containers: tuple[ContainerView, ...]
    sidecar: SidecarView | None

    @property
    def permit(self) -> str:
        """The name of its permit, held or not; empty where it has no sidecar of ours."""
        return self.sidecar.permit if self.sidecar else ""

    @property
    def semaphore(self) -> SemaphoreKey | None:
        """The semaphore that it belongs to; None where it has no sidecar of ours, or one that is not in order.

        A pod's arguments are its own to write: they reach no other namespace's semaphore.
        """
        namespace, _, key = self.sidecar.semaphore.partition("/") if self.sidecar else ("", "", "")
        return SemaphoreKey(namespace, key) if namespace == self.namespace and key and self.permit else None

    @property
    def came(self) -> float:
        """When it came, in seconds since the epoch: as finely as is known, and near what the API server says."""
        stamp = self.arrived / 1_000_000
        return stamp if abs(stamp - self.created) < FRESH_SECONDS else self.created

    @property
    def place(self) -> tuple[float, int, str]:
        """Where it stands among waiters, the least first.

        By the API server's clock, and within one of its whole seconds by when it came: that is in an annotation, which
        whoever may change pods can change, but for a second at most.
        """
        return self.created, self.arrived, self.uid

    def let_in(self) -> PodView:
        """Return the pod as it is without our gate."""
        return msgspec.structs.replace(self, gates=(), gated=False)

    @property
    def others_ended(self) -> bool:
        """Whether all containers but our sidecar have terminated for good, as the restart policy has it.

        Native sidecars of others do not count: the kubelet ends them once the pod's own containers have.
        """
        return all(
            container.state == "terminated"
            and (
                self.deleting
                or self.restart_policy == "Never"
                or (self.restart_policy == "OnFailure" and container.exit_code == 0)
            )
            for container in self._others()
        )

    @property
    def sidecar_started(self) -> bool:
        """Whether our sidecar runs, and so renews by itself."""
        return self.sidecar is not None and self.sidecar.container.started

    @property
    def held_back(self) -> bool:
        """Whether its work has not begun, and waits until our sidecar has confirmed a permit."""
        return (
            self.sidecar is not None
            and self.sidecar.holds_back
            and not self.sidecar_started
            and not any(container.state in {"running", "terminated"} for container in self._work())
        )

    @property
    def finished(self) -> bool:
        """Whether no container of it will ever run again."""
        return self.phase in {"Succeeded", "Failed"}

    def _others(self) -> Iterator[ContainerView]:
        ours = self.sidecar.container if self.sidecar else None
        return (container for container in self.containers if not container.init and container is not ours)

    def _work(self) -> Iterator[ContainerView]:
        ours = self.sidecar.container if self.sidecar else None
        return (container for container in self.containers if not container.native and container is not ours)
