"""The product on a cluster of real nodes, installed from what is shipped, and reconfigured as an operator would."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from devcluster.certificates import Authority
from devcluster.errors import DevClusterError
from devcluster.node.cluster import NodeCluster
from devcluster.polling import until

Object = dict[str, Any]

NAMESPACE = "at-least-semaphore-pod-hook"
DEPLOYMENT = "at-least-semaphore-pod-hook"
WEBHOOK = "app.kubernetes.io/component=webhook"

_OVERLAYS = Path(__file__).resolve().parents[3] / "deploy/kustomize/overlays"
_SECRET = "at-least-semaphore-pod-hook-tls"  # noqa: S105 - a name
_ROLLOUT_SECONDS = 90.0


def kustomized(kubectl: Path, overlay: str = "redis") -> list[Object]:
    """Return the objects of an overlay; what a Helm chart renders can be installed in their place."""
    done = subprocess.run([kubectl, "kustomize", str(_OVERLAYS / overlay)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DevClusterError(f"kustomize failed: {done.stderr.strip()}")
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def local_volume(name: str, directory: Path, node: str) -> Object:
    """Return a volume that is a directory of one node."""
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "local": {"path": str(directory)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}


def pods_of(cluster: NodeCluster, selector: str) -> list[Object]:
    """Return the product's own pods."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={selector}"
    found: list[Object] = cluster.plane.request("GET", path)["items"]
    return found


class Product:
    """The installed product. All of its own pods run on one node, so that others can be lost."""

    def __init__(self, cluster: NodeCluster, objects: Sequence[Object], node: str) -> None:
        self.cluster = cluster
        self._objects = objects
        self._node = node
        self._directory = cluster.directory / "product"
        self._args = list(self._container()["args"])

    def install(self) -> None:
        """Apply the objects, with a certificate in cert-manager's place; return once all replicas are available."""
        self._directory.mkdir()
        self._make_volumes()
        documents = [self._fitted(each) for each in self._objects if each["apiVersion"] != "cert-manager.io/v1"]
        # What goes into the namespace comes after it, and pods are admitted by the webhook only once it serves.
        first = [each for each in documents if each["kind"] == "Namespace"]
        last = [each for each in documents if each["kind"] == "MutatingWebhookConfiguration"]
        rest = [each for each in documents if each not in first and each not in last]
        authority = Authority(self._directory)
        certificate, key = authority.issue_server("tls", [f"{DEPLOYMENT}.{NAMESPACE}.svc"])
        data = {path.name: base64.b64encode(path.read_bytes()).decode() for path in (certificate, key)}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": _SECRET, "namespace": NAMESPACE}}
        self.cluster.apply([*first, secret | {"type": "kubernetes.io/tls", "data": data}, *rest])
        for each in rest:
            if each["kind"] in {"Deployment", "StatefulSet"}:
                self._rolled_out(f"{each['kind']}/{each['metadata']['name']}")
        for each in last:
            for webhook in each["webhooks"]:
                webhook["clientConfig"]["caBundle"] = base64.b64encode(authority.ca_file.read_bytes()).decode()
        self.cluster.apply(last)

    def configure(self, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Give the webhook other flags than those shipped; return once no replica with the former ones is left."""
        container = self._container()
        args = [arg for arg in container["args"] if arg not in remove] + list(add)
        if args == self._args:
            return
        self._args = args
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{DEPLOYMENT}"
        change = {"containers": [{"name": container["name"], "args": args}]}
        # All new replicas at once, as waiting for one after the other shows nothing.
        strategy = {"rollingUpdate": {"maxSurge": "100%"}}
        body = {"spec": {"strategy": strategy, "template": {"spec": change}}}
        self.cluster.plane.request("PATCH", path, body, "application/strategic-merge-patch+json")
        self._rolled_out(f"Deployment/{DEPLOYMENT}")
        wanted = self._deployment()["spec"]["replicas"]
        until(lambda: len(pods_of(self.cluster, WEBHOOK)) == wanted, "the former replicas have ended", _ROLLOUT_SECONDS)

    def store(self) -> Object:
        """Return the pod of the Redis that the semaphores are in."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/at-least-semaphore-pod-redis-0"
        return self.cluster.plane.request("GET", path)

    def _deployment(self) -> Object:
        (found,) = (each for each in self._objects if each["kind"] == "Deployment")
        return found

    def _container(self) -> Object:
        (found,) = self._deployment()["spec"]["template"]["spec"]["containers"]
        container: Object = found
        return container

    def _fitted(self, document: Object) -> Object:
        if document["kind"] in {"Deployment", "StatefulSet"}:
            document["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": self._node}
        return document

    def _make_volumes(self) -> None:
        """Make a local volume for each claim that a StatefulSet will make."""
        replicas = sum(each["spec"]["replicas"] for each in self._objects if each["kind"] == "StatefulSet")
        volumes = []
        for number in range(replicas):
            directory = self._directory / f"volume-{number}"
            directory.mkdir()
            volumes.append(local_volume(f"volume-{number}", directory, self._node))
        self.cluster.apply(volumes)

    def _rolled_out(self, name: str) -> None:
        timeout = f"--timeout={_ROLLOUT_SECONDS:.0f}s"
        self.cluster.plane.kubectl("rollout", "status", "-n", NAMESPACE, timeout, name)
