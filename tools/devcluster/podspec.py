"""What the stand-in kubelet reads out of a pod: environment, command, and how its containers are to behave."""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from devcluster.errors import DevClusterError

Object = dict[str, Any]
# Returns the data of a ConfigMap or Secret: (kind's plural, name) -> key -> text (base64 for a Secret).
Lookup = Callable[[str, str], Awaitable[Mapping[str, str]]]

RUN_SECONDS = "devcluster/run-seconds"
EXIT_CODE = "devcluster/exit-code"
STOP_SECONDS = "devcluster/stop-seconds"

_REFERENCE = re.compile(r"\$(\$|\([-._a-zA-Z][-._a-zA-Z0-9]*\))")
_SUBSCRIPT = re.compile(r"^metadata\.(annotations|labels)\['(.+)'\]$")


def is_native_sidecar(container: Object) -> bool:
    """Say whether an init container is one that runs beside the main containers."""
    return bool(container.get("restartPolicy") == "Always")


def is_gated(pod: Object) -> bool:
    """Say whether a scheduling gate holds the pod back."""
    return bool(pod["spec"].get("schedulingGates"))


def is_finished(pod: Object) -> bool:
    """Say whether the pod's phase is final."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def grace_seconds(pod: Object) -> float:
    """Return the seconds between SIGTERM and SIGKILL: the deletion's where there are any, else the pod's own.

    As with a kubelet it is never less than 1, and a deletion by force (grace 0) gives the pod its own grace: only its
    object is removed at once.
    """
    own = pod["spec"].get("terminationGracePeriodSeconds")
    return max(1.0, float(pod["metadata"].get("deletionGracePeriodSeconds") or (30 if own is None else own)))


def annotation_number(pod: Object, name: str) -> float | None:
    """Return the number in an annotation; None where it is not there, DevClusterError where it is no number."""
    text = (pod["metadata"].get("annotations") or {}).get(name)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise DevClusterError(f"annotation {name} of pod {pod['metadata']['name']}: {text!r} is no number") from error


def field_value(pod: Object, path: str, pod_ip: str) -> str:
    """Return what the downward API gives for a field path; DevClusterError for one that it doesn't know."""
    metadata, spec = pod["metadata"], pod["spec"]
    match = _SUBSCRIPT.match(path)
    if match:
        return str((metadata.get(match[1]) or {}).get(match[2], ""))
    known = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
        "status.hostIP": "127.0.0.1",
        "status.hostIPs": "127.0.0.1",
    }
    if path not in known:
        raise DevClusterError(f"the downward API has no field {path}")
    return str(known[path])


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace $(NAME) by its value as Kubernetes does: an unknown name stays as it is, $$ stands for one $."""

    def replaced(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return values.get(match[1][1:-1], match[0])

    return _REFERENCE.sub(replaced, text)


async def environment(pod: Object, container: Object, pod_ip: str, lookup: Lookup) -> dict[str, str]:
    """Return the container's environment, HOSTNAME included; DevClusterError for what can't be resolved."""
    values = {"HOSTNAME": str(pod["spec"].get("hostname") or pod["metadata"]["name"])}
    for source in container.get("envFrom") or []:
        prefix = source.get("prefix", "")
        for kind, reference in (("configmaps", source.get("configMapRef")), ("secrets", source.get("secretRef"))):
            if reference:
                data = await _data(kind, reference, lookup)
                values |= {prefix + key: _plain(kind, text) for key, text in data.items()}
    for variable in container.get("env") or []:
        origin = variable.get("valueFrom")
        if origin is None:
            values[variable["name"]] = expand(str(variable.get("value", "")), values)
            continue
        value = await _value_from(pod, origin, pod_ip, lookup)
        if value is not None:
            values[variable["name"]] = value
    return values


def command_line(container: Object, entrypoint: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return what to execute: the container's command, or the entrypoint that its image would have, and its args."""
    command = [expand(part, values) for part in container.get("command") or []]
    return (command or list(entrypoint)) + [expand(part, values) for part in container.get("args") or []]


async def _value_from(pod: Object, origin: Object, pod_ip: str, lookup: Lookup) -> str | None:
    if "fieldRef" in origin:
        return field_value(pod, origin["fieldRef"]["fieldPath"], pod_ip)
    for name, kind in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
        if name in origin:
            reference = origin[name]
            data = await _data(kind, reference, lookup)
            if reference["key"] in data:
                return _plain(kind, data[reference["key"]])
            if reference.get("optional"):
                return None
            raise DevClusterError(f"{kind}/{reference['name']} has no key {reference['key']}")
    raise DevClusterError(f"environment from {', '.join(origin)} is not simulated")


async def _data(kind: str, reference: Object, lookup: Lookup) -> Mapping[str, str]:
    try:
        return await lookup(kind, reference["name"])
    except DevClusterError:
        if reference.get("optional"):
            return {}
        raise


def _plain(kind: str, text: str) -> str:
    return base64.b64decode(text).decode() if kind == "secrets" else text
