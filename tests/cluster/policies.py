"""What NetworkPolicies let through between pods, as the Kubernetes API says it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from tests.cluster.manifests import pod_templates

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tests.cluster.manifests import Object


class Place(NamedTuple):
    """A pod, or what is none and has no labels, such as an API server.

    Attributes:
        name: What it is called in a test.
        namespace: Where it is; empty for what is no pod.
        labels: Its labels.
        ports: The ports that it serves, by name.
    """

    name: str
    namespace: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    ports: tuple[tuple[str, int], ...] = ()


def places(found: Iterable[Object], namespace: str) -> Iterator[Place]:
    """Yield the pods of workloads; a StatefulSet's each with the label that its controller gives it."""
    listed = list(found)
    replicas = {
        f"{each['kind']} {each['metadata']['name']}": each.get("spec", {}).get("replicas", 1) for each in listed
    }
    for workload, template in pod_templates(listed):
        kind, _, name = workload.partition(" ")
        labels = template["metadata"]["labels"]
        containers = template["spec"]["containers"]
        ports = tuple((port["name"], port["containerPort"]) for each in containers for port in each.get("ports", ()))
        if kind != "StatefulSet":
            yield Place(labels["app.kubernetes.io/component"], namespace, tuple(labels.items()), ports)
            continue
        for number in range(replicas[workload]):
            own = {"statefulset.kubernetes.io/pod-name": f"{name}-{number}"}
            component = labels["app.kubernetes.io/component"]
            yield Place(f"{component}-{number}", namespace, tuple((labels | own).items()), ports)


class Policies:
    """The NetworkPolicies of a cluster; one without a namespace is in the `home` namespace."""

    def __init__(self, found: Iterable[Object], home: str) -> None:
        self._policies = [
            (each["metadata"].get("namespace", home), each["spec"]) for each in found if each["kind"] == "NetworkPolicy"
        ]

    def flows(self, everybody: Iterable[Place]) -> set[tuple[str, str, int]]:
        """Return who reaches whom at which of the ports that are served there."""
        return {
            (source.name, target.name, port)
            for source, target in itertools.permutations(everybody, 2)
            for _, port in target.ports
            if self._lets("Ingress", target, source, target, port)
            and self._lets("Egress", source, target, target, port)
        }

    def _lets(self, direction: str, whom: Place, peer: Place, target: Place, port: int) -> bool:
        own = [
            spec
            for namespace, spec in self._policies
            if whom.namespace == namespace
            and direction in spec["policyTypes"]
            and _selects(spec["podSelector"], dict(whom.labels))
        ]
        if not own:
            return True
        return any(
            _has_port(rule, target, port) and _has_peer(rule.get(key), whom, peer)
            for spec in own
            for key in ("from" if direction == "Ingress" else "to",)
            for rule in spec.get(direction.lower()) or ()
        )


def _has_port(rule: Object, target: Place, port: int) -> bool:
    wanted = [dict(target.ports).get(each["port"], each["port"]) for each in rule.get("ports", ())]
    tcp = [each.get("protocol", "TCP") == "TCP" for each in rule.get("ports", ())]
    return not wanted or any(number == port and is_tcp for number, is_tcp in zip(wanted, tcp, strict=True))


def _has_peer(peers: list[Object] | None, whom: Place, peer: Place) -> bool:
    if not peers:
        return True
    return bool(peer.namespace) and any(
        (
            _selects(each["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace})
            if "namespaceSelector" in each
            else peer.namespace == whom.namespace
        )
        and _selects(each.get("podSelector", {}), dict(peer.labels))
        for each in peers
    )


def _selects(selector: Object, labels: Mapping[str, str]) -> bool:
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "Exists", expression
        if expression["key"] not in labels:
            return False
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()
