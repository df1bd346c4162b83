"""Pods out of the API server's JSON."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from at_least_semaphore_pod_hook.admission import annotations as pod_annotations
from at_least_semaphore_pod_hook.admission.inject import UID_PERMIT
from at_least_semaphore_pod_hook.controller.pods import ContainerView, Owner, PodView, SidecarView
from at_least_semaphore_pod_hook.errors import ApiUnavailableError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_STAMP_DIGITS = 18


class _OwnerReference(msgspec.Struct, rename="camel"):
    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class _Metadata(msgspec.Struct, rename="camel"):
    namespace: str = ""
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    owner_references: list[_OwnerReference] | None = None


class _Named(msgspec.Struct):
    name: str = ""


class _Empty(msgspec.Struct):
    pass


class _Container(msgspec.Struct, rename="camel"):
    name: str = ""
    args: list[str] | None = None
    restart_policy: str | None = None
    startup_probe: _Empty | None = None


class _Spec(msgspec.Struct, rename="camel"):
    node_name: str | None = None
    restart_policy: str | None = None
    scheduling_gates: list[_Named] | None = None
    init_containers: list[_Container] | None = None
    containers: list[_Container] | None = None


class _Terminated(msgspec.Struct, rename="camel"):
    exit_code: int = 0


class _State(msgspec.Struct):
    running: _Empty | None = None
    terminated: _Terminated | None = None


class _ContainerStatus(msgspec.Struct, rename="camel"):
    name: str = ""
    started: bool | None = None
    state: _State = msgspec.field(default_factory=_State)


class _Status(msgspec.Struct, rename="camel"):
    phase: str | None = None
    reason: str | None = None
    init_container_statuses: list[_ContainerStatus] | None = None
    container_statuses: list[_ContainerStatus] | None = None


class _Pod(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


class _ListMetadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str | None = msgspec.field(default=None, name="continue")


class _PodList(msgspec.Struct):
    metadata: _ListMetadata
    items: list[_Pod] | None = None


class PodPage(NamedTuple):
    """A page of a list; `more` is what to ask for the next with, empty on the last."""

    pods: list[PodView]
    resource_version: str
    more: str


_pod = msgspec.json.Decoder(_Pod)
_list = msgspec.json.Decoder(_PodList)


class PodDecoder:
    """Turns the API server's JSON into views.

    Args:
        prefix: What our annotations and labels begin with.
        sidecar_name: The name of our container.
    """

    def __init__(self, prefix: str, sidecar_name: str) -> None:
        self._prefix = prefix
        self._sidecar_name = sidecar_name
        self._gate = prefix + pod_annotations.GATE
        self._arrived = prefix + pod_annotations.ARRIVED

    def pod(self, body: bytes | msgspec.Raw) -> PodView:
        """Read one pod. Raises ApiUnavailableError where it is none."""
        try:
            return self._view(_pod.decode(body))
        except ValueError as error:
            raise ApiUnavailableError(f"the API server's answer is no pod: {error}") from error

    def page(self, body: bytes) -> PodPage:
        """Read a page of a list. Raises ApiUnavailableError where it is none."""
        try:
            page = _list.decode(body)
            pods = [self._view(pod) for pod in page.items or ()]
        except ValueError as error:
            raise ApiUnavailableError(f"the API server's answer is no list of pods: {error}") from error
        return PodPage(pods, page.metadata.resource_version, page.metadata.continue_ or "")

    def _view(self, pod: _Pod) -> PodView:
        metadata, spec, status = pod.metadata, pod.spec, pod.status
        annotations = self._ours(metadata.annotations)
        gates = tuple(sys.intern(gate.name) for gate in spec.scheduling_gates or ())
        demand = self._demand(annotations)
        containers = (
            *_containers(spec.init_containers, status.init_container_statuses, init=True),
            *_containers(spec.containers, status.container_statuses, init=False),
        )
        sidecar = self._sidecar(spec, containers, metadata.uid)
        return PodView(
            namespace=sys.intern(metadata.namespace),
            name=metadata.name,
            uid=metadata.uid,
            resource_version=metadata.resource_version,
            created=_seconds(metadata.creation_timestamp),
            deleting=metadata.deletion_timestamp is not None,
            grace_seconds=metadata.deletion_grace_period_seconds,
            phase=sys.intern(status.phase or ""),
            reason=sys.intern(status.reason or ""),
            node=sys.intern(spec.node_name or ""),
            annotations=annotations,
            labels=self._ours(metadata.labels),
            gates=gates,
            gated=self._gate in gates,
            arrived=_microseconds(annotations.get(self._arrived, "")),
            length=demand.length if demand else 0,
            expiration=demand.expiration if demand else 0,
            releases_on_exit=_releases_on_exit(demand, sidecar),
            restart_policy=sys.intern(spec.restart_policy or "Always"),
            owner=_controller(metadata.owner_references),
            containers=containers,
            sidecar=sidecar,
        )

    def _demand(self, annotations: dict[str, str]) -> pod_annotations.Demand | None:
        try:
            return pod_annotations.parse(annotations, self._prefix)
        except InvalidInputError:
            return None

    def _ours(self, items: dict[str, str] | None) -> dict[str, str]:
        # The names are the same in every pod, and longer than most values: keep each once.
        return {sys.intern(name): value for name, value in (items or {}).items() if name.startswith(self._prefix)}

    def _sidecar(self, spec: _Spec, containers: tuple[ContainerView, ...], uid: str) -> SidecarView | None:
        declared = (*(spec.init_containers or ()), *(spec.containers or ()))
        for container, view in zip(declared, containers, strict=True):
            if container.name == self._sidecar_name:
                semaphore, permit = (container.args or [])[-2:] if len(container.args or ()) > 1 else ("", "")
                own = uid if permit == UID_PERMIT else permit
                holds_back = view.native and container.startup_probe is not None
                return SidecarView(sys.intern(semaphore), own, view, holds_back)
        return None


def _containers(
    declared: list[_Container] | None, reported: list[_ContainerStatus] | None, *, init: bool
) -> Iterator[ContainerView]:
    statuses = {status.name: status for status in reported or ()}
    for container in declared or ():
        status = statuses.get(container.name)
        native = init and container.restart_policy == "Always"
        if status is None:
            yield ContainerView(sys.intern(container.name), init, native, "", None, started=False)
            continue
        ended = status.state.terminated
        running = status.state.running is not None
        yield ContainerView(
            sys.intern(container.name),
            init,
            native,
            "terminated" if ended else "running" if running else "waiting",
            ended.exit_code if ended else None,
            started=running and status.started is True,
        )


def _releases_on_exit(demand: pod_annotations.Demand | None, sidecar: SidecarView | None) -> bool:
    if demand and demand.release_on:
        return demand.release_on is pod_annotations.ReleaseOn.EXIT
    return sidecar is not None and sidecar.container.native


def _microseconds(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_STAMP_DIGITS else 0


def _controller(references: list[_OwnerReference] | None) -> Owner | None:
    for owner in references or ():
        if owner.controller:
            return Owner(
                sys.intern(owner.api_version), sys.intern(owner.kind), sys.intern(owner.name), sys.intern(owner.uid)
            )
    return None


def _seconds(timestamp: str | None) -> float:
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0
