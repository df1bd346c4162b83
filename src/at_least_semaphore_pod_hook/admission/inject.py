"""The sidecar in a pod: what it looks like, which permit it carries, and the patch that puts it there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from at_least_semaphore_pod_hook.admission.review import PodSpec, decode_container

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDECAR_NAME = "at-least-semaphore-pod-sidecar"
RUN_AS = 65532


class SidecarTemplate(NamedTuple):
    """What all sidecars of a webhook have in common.

    Attributes:
        name: The container's name.
        image: Its image.
        image_pull_policy: Always, IfNotPresent or Never.
        memory_limit: A Kubernetes quantity.
        flags: What follows `sidecar` in the arguments.
        native: Whether it is an init container with `restartPolicy: Always`, which the kubelet stops last.
    """

    name: str
    image: str
    image_pull_policy: str
    memory_limit: str
    flags: tuple[str, ...]
    native: bool


class Carried(NamedTuple):
    """A container of our name that the pod brought along."""

    section: str
    position: int
    raw: msgspec.Raw
    key: str
    permit: str


def container(template: SidecarTemplate, key: str, permit: str) -> dict[str, Any]:
    """Return the sidecar that renews `permit` of semaphore `key` (`<namespace>/<key>`).

    Its security context passes the Pod Security Standard "restricted".
    """
    security: dict[str, Any] = {
        "runAsNonRoot": True,
        "runAsUser": RUN_AS,
        "runAsGroup": RUN_AS,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    sidecar: dict[str, Any] = {
        "name": template.name,
        "image": template.image,
        "imagePullPolicy": template.image_pull_policy,
        "args": ["sidecar", *template.flags, key, permit],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": template.memory_limit}},
        "securityContext": security,
    }
    if template.native:
        sidecar["restartPolicy"] = "Always"
    return sidecar


class SidecarJson:
    """The same as JSON, encoded once: only semaphore and permit differ from pod to pod."""

    def __init__(self, template: SidecarTemplate) -> None:
        marks = ("SEMAPHORE", "PERMIT")
        before, _, rest = msgspec.json.encode(container(template, *marks)).partition(b'"SEMAPHORE"')
        between, _, after = rest.partition(b'"PERMIT"')
        self._parts = (before, between, after)

    def __call__(self, key: str, permit: str) -> msgspec.Raw:
        """Return the container's JSON. Neither `key` nor `permit` needs escaping: both are checked before."""
        before, between, after = self._parts
        return msgspec.Raw(b'%b"%b"%b"%b"%b' % (before, key.encode(), between, permit.encode(), after))


def find_carried(spec: PodSpec, name: str) -> list[Carried]:
    """Return the containers of our name, in the pod's order. Raises InvalidInputError where one is no container."""
    return list(_carried(spec, name))


def _carried(spec: PodSpec, name: str) -> Iterator[Carried]:
    needle = name.encode()
    for section, containers in (("initContainers", spec.init_containers), ("containers", spec.containers)):
        for index, raw in enumerate(containers or ()):
            # Most containers are not ours, and their bytes say so without decoding them.
            if needle in bytes(raw) and (found := decode_container(raw)).name == name:
                key, permit = (found.args or [])[-2:] if len(found.args or []) > 1 else ("", "")
                yield Carried(section, index, raw, key, permit)


def patch(spec: PodSpec, carried: list[Carried], sidecar: msgspec.Raw, *, native: bool) -> list[dict[str, Any]]:
    """Return the smallest JSON patch after which `sidecar` is in the pod exactly once, and where it belongs.

    A native one comes before the other init containers, so that the permit is renewed while they run; an ordinary one
    comes last, so that `kubectl logs` and `exec` still pick the pod's own container.
    """
    section = "initContainers" if native else "containers"
    kept = next((found for found in carried if found.section == section), None)
    operations: list[dict[str, Any]] = [
        {"op": "remove", "path": f"/spec/{found.section}/{found.position}"}
        for found in reversed(carried)
        if found is not kept
    ]
    if kept is not None:
        if not _covers(msgspec.json.decode(kept.raw), msgspec.json.decode(sidecar)):
            # Before the removals, whose indexes are counted from the end and so stay right.
            operations.insert(0, {"op": "replace", "path": f"/spec/{section}/{kept.position}", "value": sidecar})
    elif section == "containers":
        operations.append({"op": "add", "path": "/spec/containers/-", "value": sidecar})
    elif spec.init_containers:
        operations.append({"op": "add", "path": "/spec/initContainers/0", "value": sidecar})
    else:
        operations.append({"op": "add", "path": "/spec/initContainers", "value": [sidecar]})
    return operations


def label(labels: dict[str, str] | None, name: str, value: str) -> list[dict[str, Any]]:
    """Return the JSON patch after which a pod has a label; by it the controller finds the pods that opted in."""
    if labels is None:
        return [{"op": "add", "path": "/metadata/labels", "value": {name: value}}]
    if labels.get(name) == value:
        return []
    escaped = name.replace("~", "~0").replace("/", "~1")
    return [{"op": "add", "path": f"/metadata/labels/{escaped}", "value": value}]


def _covers(actual: Any, wanted: Any) -> bool:
    """Whether `actual` is `wanted`, save for the defaults that an API server fills in."""
    if isinstance(wanted, dict):
        return isinstance(actual, dict) and all(
            name in actual and _covers(actual[name], wanted[name]) for name in wanted
        )
    if isinstance(wanted, list):
        return isinstance(actual, list) and len(actual) == len(wanted) and all(map(_covers, actual, wanted))
    return bool(actual == wanted)
