"""What the pictures show: two teams whose pods share seats, on a real API server with webhook and store."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from at_least_semaphore_pod_hook.admission.annotations import annotation_prefix
from devcluster.local import LocalCluster, Object
from devcluster.podspec import RUN_SECONDS

_SEED = 7
_LEASE_SECONDS = 60


@dataclass(frozen=True)
class Work:
    """A Job that comes again and again: `pods` at once, each with `seconds` of work, one every `every` seconds."""

    namespace: str
    key: str
    length: int
    name: str
    pods: int
    seconds: tuple[int, int]
    every: float
    when_full: str = "gate"


WORK = (
    Work("team-a", "database", 3, "import", 2, (9, 13), 26),
    Work("team-a", "licence", 5, "render", 4, (9, 16), 17),
    Work("team-b", "gpu", 2, "train", 5, (7, 11), 29),
    Work("team-b", "mailbox", 1, "digest", 2, (4, 6), 19, "deny"),
)
SERVICES = (("team-a", "database", 3, "api", 2), ("team-a", "licence", 5, "viewer", 1))
LAST = (
    Work("team-a", "licence", 5, "render", 3, (90, 90), 0),
    Work("team-b", "mailbox", 1, "digest", 1, (90, 90), 0, "deny"),
    Work("team-b", "gpu", 2, "train", 5, (90, 90), 0),
)
"""So that some hold and some wait while the pictures are taken."""


class Scene:
    """A cluster on this machine in which pods come, wait and go."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self._numbers = itertools.count(1)
        # What is drawn of a seed, so that the pictures look alike each time.
        self._random = random.Random(_SEED)  # noqa: S311

    def play(self, seconds: float) -> None:
        """Let pods come for as long as that."""
        started = time.monotonic()
        due = dict.fromkeys(WORK, started)
        while time.monotonic() < started + seconds:
            work = min(due, key=lambda one: due[one])
            time.sleep(max(0.0, due[work] - time.monotonic()))
            due[work] += work.every
            self.create(work)

    def create(self, work: Work) -> str:
        """Create one Job, and return its name."""
        run = self._random.randint(*work.seconds)
        template = _template(work.key, work.length, work.when_full, {RUN_SECONDS: str(run)})
        template["spec"]["restartPolicy"] = "OnFailure"
        spec = {"parallelism": work.pods, "completions": work.pods, "template": template, "ttlSecondsAfterFinished": 3}
        name = f"{work.name}-{next(self._numbers)}"
        self._apply({"apiVersion": "batch/v1", "kind": "Job"}, name, work.namespace, spec)
        return name

    def running(self, work: Work, job: str) -> int:
        """Return how many pods of a Job run."""
        path = f"/api/v1/namespaces/{work.namespace}/pods?labelSelector=batch.kubernetes.io%2Fjob-name%3D{job}"
        pods = self.cluster.control_plane.request("GET", path)["items"]
        return sum(each["status"]["phase"] == "Running" for each in pods)

    def serve(self) -> None:
        """Create what runs all the time."""
        for namespace in {one[0] for one in SERVICES} | {one.namespace for one in WORK}:
            self.cluster.control_plane.create_namespace(namespace)
        for namespace, key, length, name, replicas in SERVICES:
            template = _template(key, length, "gate", {})
            template["metadata"]["labels"] = {"app": name}
            spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
            self._apply({"apiVersion": "apps/v1", "kind": "Deployment"}, name, namespace, spec)

    def _apply(self, kind: Object, name: str, namespace: str, spec: Object) -> None:
        document = kind | {"metadata": {"name": name, "namespace": namespace}, "spec": spec}
        self.cluster.control_plane.kubectl("create", "-f", "-", input=yaml.safe_dump(document))


def _template(key: str, length: int, when_full: str, more: Mapping[str, str]) -> Object:
    values = {"at-least-semaphore-pod": "true", "key": key, "length": str(length), "expiration": str(_LEASE_SECONDS)}
    prefix = annotation_prefix()
    annotations = {prefix + name: value for name, value in (values | {"when-full": when_full}).items()} | dict(more)
    containers = [{"name": "main", "image": "busybox:1.37", "command": ["sleep", "infinity"]}]
    return {"metadata": {"annotations": annotations}, "spec": {"containers": containers}}


@contextmanager
def scene(directory: Path) -> Iterator[Scene]:
    """Start all of it, and end it with the context."""
    cluster = LocalCluster(directory, flags=["--status-page"])
    with ExitStack() as parts:
        parts.enter_context(cluster.store)
        parts.enter_context(cluster.control_plane)
        parts.enter_context(cluster.webhook)
        cluster.register()
        parts.enter_context(cluster.runner)
        made = Scene(cluster)
        made.serve()
        yield made
