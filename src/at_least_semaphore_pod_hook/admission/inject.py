"""The sidecar in a pod: what it looks like, which permit it carries, and the patch that puts it there."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from at_least_semaphore_pod_hook.addresses import MAX_PORT
from at_least_semaphore_pod_hook.admission.annotations import ReleaseOn
from at_least_semaphore_pod_hook.admission.review import PodSpec, decode_container
from at_least_semaphore_pod_hook.settings import (
    PROBE_PERIOD_SECONDS,
    PROBE_TIMEOUT_SECONDS,
    STOP_GRACE_SECONDS,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from at_least_semaphore_pod_hook.admission.review import SchedulingGate

Operations = list[dict[str, Any]]
"""A JSON patch (RFC 6902)."""

SIDECAR_NAME = "at-least-semaphore-pod-sidecar"
UID_PERMIT = "$(POD_UID)"
"""What stands for the permit of a pod that waits: its UID, which the kubelet puts in when it starts the sidecar."""
RUN_AS = 65532
CONFIRM_PORT = "--confirm-port="
DYNAMIC_PORTS = range(61000, 65536)
"""The dynamic ports (RFC 6335) that Linux does not give to outgoing connections unless it is told to."""
AS_LONG_AS_IT_TAKES = 2**31 - 1
"""The most failures of a probe that the API server takes: one a second, it is 68 years."""
SECRET_PATH = "/var/run/at-least-semaphore-pod-hook"  # noqa: S105 - where it is, not what it is
TOKEN_SECONDS = 600
"""How long a sidecar's token holds, the least that the API server accepts. The kubelet renews it in time."""
AUTHORITIES = "AT_LEAST_SEMAPHORE_PERMIT_AUTHORITIES"


class SidecarTemplate(NamedTuple):
    """What all sidecars of a webhook have in common.

    Attributes:
        name: The container's name.
        image: Its image.
        image_pull_policy: Always, IfNotPresent or Never.
        memory_limit: A Kubernetes quantity.
        flags: What follows `sidecar` in the arguments.
        native: Whether it is an init container with `restartPolicy: Always`, which the kubelet stops last.
        confirm_port: The port that it opens once its permit is confirmed; 0 where nobody waits for that.
        fence: Whether it closes the port in time for the pod's work to be stopped before its lease ends.
        secret: A Secret of the pod's namespace that is mounted into it at `SECRET_PATH`, or an empty string.
        audience: Whom a token of the pod is for that is mounted there in place of it, or an empty string.
        authorities: Whom it trusts (PEM) where it shows that token, or an empty string.
    """

    name: str
    image: str
    image_pull_policy: str
    memory_limit: str
    flags: tuple[str, ...]
    native: bool
    confirm_port: int = 0
    fence: bool = False
    secret: str = ""
    audience: str = ""
    authorities: str = ""

    @property
    def volume(self) -> dict[str, Any] | None:
        """What is mounted into it at `SECRET_PATH`."""
        if self.audience:
            token = {"audience": self.audience, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
            return {"name": self.name, "projected": {"sources": [{"serviceAccountToken": token}]}}
        return {"name": self.name, "secret": {"secretName": self.secret}} if self.secret else None


class Carried(NamedTuple):
    """A container of our name that the pod brought along; `port` is what it confirms by, 0 for none."""

    section: str
    position: int
    raw: msgspec.Raw
    key: str
    permit: str
    port: int


def own_port(seed: str) -> int:
    """Return a port for a pod that shares its node's ports, the same for a seed."""
    digest = hashlib.blake2b(seed.encode(errors="surrogatepass"), digest_size=4).digest()
    return DYNAMIC_PORTS.start + int.from_bytes(digest) % len(DYNAMIC_PORTS)


def ending_flags(template: SidecarTemplate, spec: PodSpec, release_on: ReleaseOn | None) -> tuple[str, ...]:
    """Return what a sidecar needs to be told of the pod's end; a native one is stopped by the kubelet when it is time.

    An ordinary one would keep a pod that can complete from doing so.
    """
    if template.native:
        return ()
    flags = ("--release-on=exit",) if release_on is ReleaseOn.EXIT else ()
    return flags if spec.restart_policy in {None, "Always"} else (*flags, "--end-with-pod=true")


def container(
    template: SidecarTemplate, key: str, permit: str, flags: tuple[str, ...] = (), port: int = 0
) -> dict[str, Any]:
    """Return the sidecar that renews `permit` of semaphore `key` (`<namespace>/<key>`).

    Its security context passes the Pod Security Standard "restricted". Where it has a port, what comes after it starts
    when that is open.
    """
    if port:
        flags = (*flags, f"{CONFIRM_PORT}{port}", *(("--fence=true",) if template.fence else ()))
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
        "args": ["sidecar", *template.flags, *flags, key, permit],
        "env": [_from_field("POD_NAME", "metadata.name"), _from_field("POD_UID", "metadata.uid")],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": template.memory_limit}},
        "securityContext": security,
    }
    if template.authorities:
        sidecar["env"].append({"name": AUTHORITIES, "value": template.authorities})
    if template.volume:
        sidecar["volumeMounts"] = [{"name": template.name, "mountPath": SECRET_PATH, "readOnly": True}]
    if template.native:
        sidecar["restartPolicy"] = "Always"
    if port:
        sidecar["startupProbe"] = _probe(port) | {"failureThreshold": AS_LONG_AS_IT_TAKES}
    return sidecar


def _probe(port: int) -> dict[str, Any]:
    return {
        "tcpSocket": {"port": port},
        "periodSeconds": PROBE_PERIOD_SECONDS,
        "timeoutSeconds": PROBE_TIMEOUT_SECONDS,
    }


def _fence_probe(port: int) -> dict[str, Any]:
    return _probe(port) | {"failureThreshold": 1, "terminationGracePeriodSeconds": STOP_GRACE_SECONDS}


def _from_field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


class SidecarJson:
    """The same as JSON, encoded once for each set of flags: else only semaphore and permit differ from pod to pod."""

    def __init__(self, template: SidecarTemplate) -> None:
        self._template = template
        self._parts: dict[tuple[str, ...], tuple[bytes, bytes, bytes]] = {}

    def trust(self, authorities: str) -> None:
        """Have the sidecars that are made from now on trust these (PEM)."""
        if authorities != self._template.authorities:
            self._template = self._template._replace(authorities=authorities)
            self._parts.clear()

    def __call__(self, key: str, permit: str, flags: tuple[str, ...] = (), port: int = 0) -> msgspec.Raw:
        """Return the container's JSON. Neither `key` nor `permit` needs escaping: both are checked before."""
        if port != self._template.confirm_port:
            # A port of the pod's own: nobody asks for the same again.
            return msgspec.Raw(msgspec.json.encode(container(self._template, key, permit, flags, port)))
        if flags not in self._parts:
            encoded = msgspec.json.encode(container(self._template, "SEMAPHORE", "PERMIT", flags, port))
            before, _, rest = encoded.partition(b'"SEMAPHORE"')
            between, _, after = rest.partition(b'"PERMIT"')
            self._parts[flags] = (before, between, after)
        before, between, after = self._parts[flags]
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
                yield Carried(section, index, raw, key, permit, _port_of(found.args or []))


def _port_of(args: list[str]) -> int:
    given = next((arg.removeprefix(CONFIRM_PORT) for arg in args if arg.startswith(CONFIRM_PORT)), "")
    return int(given) if given.isascii() and given.isdecimal() and len(given) <= len(str(MAX_PORT)) else 0


def fence(spec: PodSpec, carried: list[Carried], name: str, port: int) -> tuple[Operations, list[str]]:
    """Have the kubelet stop each main container when a port is closed.

    Args:
        spec: The pod.
        carried: Its containers of our name: a copied pod's containers have probes of the port that those name.
        name: Our container's name.
        port: What to probe; 0 for nothing.

    Returns:
        The JSON patch, and the names of the containers that have a livenessProbe of their own, and keep it.
    """
    operations: Operations = []
    unfenced: list[str] = []
    wanted = _fence_probe(port) if port else None
    before = [_fence_probe(found.port) for found in carried if found.port]
    for index, raw in enumerate((spec.containers or ()) if wanted or before else ()):
        found = decode_container(raw)
        path, actual = f"/spec/containers/{index}/livenessProbe", found.liveness_probe
        if found.name == name or (wanted and _covers(actual, wanted)):
            continue
        ours = any(_covers(actual, probe) for probe in before)
        if wanted and (ours or actual is None):
            operations.append({"op": "add", "path": path, "value": wanted})
        elif ours:
            operations.append({"op": "remove", "path": path})
        elif wanted:
            unfenced.append(found.name)
    return operations, unfenced


def patch(spec: PodSpec, carried: list[Carried], sidecar: msgspec.Raw, *, native: bool) -> Operations:
    """Return the smallest JSON patch after which `sidecar` is in the pod exactly once, and where it belongs.

    A native one comes before the other init containers, so that the permit is renewed while they run; an ordinary one
    comes last, so that `kubectl logs` and `exec` still pick the pod's own container.
    """
    section = "initContainers" if native else "containers"
    kept = next((found for found in carried if found.section == section), None)
    operations: Operations = [
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


def volume(volumes: list[msgspec.Raw] | None, template: SidecarTemplate) -> Operations:
    """Return the JSON patch after which a pod has the sidecar's volume once, or not at all."""
    wanted = template.volume
    needle = template.name.encode()
    found = [
        (place, decoded)
        for place, raw in enumerate(volumes or ())
        # Most volumes are not ours, and their bytes say so without decoding them.
        if needle in bytes(raw) and _covers(decoded := msgspec.json.decode(raw), {"name": template.name})
    ]
    kept, operations = found[:1] if wanted else [], Operations()
    operations += [{"op": "remove", "path": f"/spec/volumes/{place}"} for place, _ in reversed(found[len(kept) :])]
    for place, decoded in kept:
        if not _covers(decoded, wanted):
            operations.insert(0, {"op": "replace", "path": f"/spec/volumes/{place}", "value": wanted})
    if wanted and not kept and volumes is None:
        operations.append({"op": "add", "path": "/spec/volumes", "value": [wanted]})
    elif wanted and not kept:
        operations.append({"op": "add", "path": "/spec/volumes/-", "value": wanted})
    return operations


def label(labels: Mapping[str, str] | None, name: str, value: str) -> Operations:
    """Return the JSON patch after which a pod has a label; by it the controller finds the pods that opted in."""
    if labels is None:
        return [{"op": "add", "path": "/metadata/labels", "value": {name: value}}]
    if labels.get(name) == value:
        return []
    return [{"op": "add", "path": f"/metadata/labels/{pointer(name)}", "value": value}]


def annotate(annotations: Mapping[str, str], name: str, value: str) -> Operations:
    """Return the JSON patch after which a pod, which has annotations, has this one; an empty value removes it."""
    if annotations.get(name, "") == value and (value or name not in annotations):
        return []
    path = f"/metadata/annotations/{pointer(name)}"
    return [{"op": "add", "path": path, "value": value} if value else {"op": "remove", "path": path}]


def gate(gates: list[SchedulingGate] | None, name: str) -> Operations:
    """Return the JSON patch after which a pod waits behind a scheduling gate."""
    if any(one.name == name for one in gates or ()):
        return []
    if gates is None:
        return [{"op": "add", "path": "/spec/schedulingGates", "value": [{"name": name}]}]
    return [{"op": "add", "path": "/spec/schedulingGates/-", "value": {"name": name}}]


def ungate(gates: list[SchedulingGate] | None, name: str) -> Operations:
    """Return the JSON patch after which a pod does not wait behind a scheduling gate."""
    places = [place for place, one in enumerate(gates or ()) if one.name == name]
    return [{"op": "remove", "path": f"/spec/schedulingGates/{place}"} for place in reversed(places)]


def pointer(name: str) -> str:
    """Return a name as it stands in a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def _covers(actual: Any, wanted: Any) -> bool:
    """Whether `actual` is `wanted`, save for the defaults that an API server fills in."""
    if isinstance(wanted, dict):
        return isinstance(actual, dict) and all(
            name in actual and _covers(actual[name], wanted[name]) for name in wanted
        )
    if isinstance(wanted, list):
        return isinstance(actual, list) and len(actual) == len(wanted) and all(map(_covers, actual, wanted))
    return bool(actual == wanted)
