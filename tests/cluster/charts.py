"""The Helm chart as a user renders, installs and removes it, for tests."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import yaml

from devcluster.binaries import find_or_build
from tests.cluster.manifests import NAMESPACE, PROJECT, Object

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from devcluster.controlplane import ControlPlane

CHART = PROJECT / "deploy/helm/at-least-semaphore-pod-hook"
RELEASE = NAMESPACE
KUBERNETES = "1.34.0"
"""What is rendered for where no API server says its version."""

EXTERNAL = (
    "store.mode=external",
    "store.external.queueUrl=redis://redis.store.svc:6379",
    "store.external.redisAddresses={redis.store.svc:6379}",
)
"""Values of a store of one's own."""
HOOK = "helm.sh/hook"
FLEETING = {"events", "events.events.k8s.io", "componentstatuses", "endpointslices.discovery.k8s.io"}


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm; nothing is checked."""
    argv = [str(find_or_build(["helm"])["helm"]), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=400)


def settings(values: Iterable[str]) -> list[str]:
    """Return the flags that set values, each `path=value`."""
    return [part for value in values for part in ("--set", value)]


def template(*values: str, namespace: str = NAMESPACE, flags: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Render the chart without a cluster."""
    given = [f"--kube-version={KUBERNETES}", f"--namespace={namespace}", *settings(values), *flags]
    return helm("template", RELEASE, str(CHART), *given)


def rendered(*values: str) -> list[Object]:
    """Return all objects of the chart, hooks included."""
    done = template(*values)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def is_hook(found: Object) -> bool:
    return HOOK in found["metadata"].get("annotations", {})


def one(found: Iterable[Object], kind: str, name: str = RELEASE) -> Object:
    """Return the object of a kind and name."""
    (wanted,) = (each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return wanted


def webhook_of(found: Iterable[Object]) -> Object:
    """Return the webhook's container."""
    (container,) = one(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    wanted: Object = container
    return wanted


def everything(plane: ControlPlane) -> set[str]:
    """Name every object of the cluster, save for what comes and goes by itself."""
    kinds = plane.kubectl("api-resources", "--verbs=list,delete", "-o", "name").stdout.split()
    columns = "-o=custom-columns=K:.kind,NS:.metadata.namespace,N:.metadata.name"
    listed = plane.kubectl("get", ",".join(sorted(set(kinds) - FLEETING)), "-A", "--no-headers", columns)
    return {" ".join(line.split()) for line in listed.stdout.splitlines()}
