"""What the tests of the controller's access to the API server share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from at_least_semaphore_pod_hook.admission.annotations import annotation_prefix
from at_least_semaphore_pod_hook.admission.inject import SIDECAR_NAME
from at_least_semaphore_pod_hook.controller.connection import Connection
from at_least_semaphore_pod_hook.controller.kube import Kube
from at_least_semaphore_pod_hook.controller.pod_decoder import PodDecoder
from at_least_semaphore_pod_hook.controller.reflector import Change, Reflector
from devcluster.controlplane import ControlPlane
from devcluster.kubeapi import KubeApi

HERE = Path(__file__).parent
PREFIX = annotation_prefix()
NAMESPACE = "hook"
ACCOUNT = "webhook"
CLUSTER_RULES = next(
    document["rules"]
    for document in yaml.safe_load_all((HERE.parents[1] / "deploy/kustomize/base/rbac.yaml").read_text())
    if document["kind"] == "ClusterRole"
)
"""As they are shipped."""
OWN_RULES = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "get", "patch"]}]


def token(plane: ControlPlane) -> str:
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{ACCOUNT}/token"
    answer = plane.request("POST", path, {"spec": {"expirationSeconds": 3600}})
    return str(answer["status"]["token"])


def write_kubeconfig(path: Path, plane: ControlPlane, server: str, token_file: Path) -> Path:
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": str(plane.ca_file)}}],
        "users": [{"name": "c", "user": {"tokenFile": str(token_file)}}],
    }
    path.write_text(json.dumps(config))
    return path


@asynccontextmanager
async def connected(kubeconfig: Path, **options: Any) -> AsyncIterator[Kube]:
    client = Kube(Connection.open(str(kubeconfig)), PodDecoder(PREFIX, SIDECAR_NAME), instance="test", **options)
    try:
        yield client
    finally:
        await client.close()


class Copy:
    """A reflector that runs, and what it has told of."""

    def __init__(self, source: Kube, selector: str) -> None:
        self.changes: list[tuple[str, str]] = []
        self.reflector = Reflector(source, selector, self._note)

    def _note(self, change: Change) -> None:
        self.changes.append((change.kind.value, change.pod.name))

    @property
    def names(self) -> set[str]:
        return {name for _, name in self.reflector.pods}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Copy]:
        task = asyncio.create_task(self.reflector.run())
        try:
            await asyncio.wait_for(self.reflector.synced.wait(), 30)
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def reach(self, changes: int) -> None:
        while len(self.changes) < changes:  # noqa: ASYNC110 - to look now and then is enough for a test
            await asyncio.sleep(0.01)

    async def until(self, names: set[str], seconds: float = 30.0) -> float:
        """Return how long it took until there are just these pods."""
        started = time.monotonic()
        while self.names != names:
            assert time.monotonic() - started < seconds, (self.names ^ names, "are not right")
            await asyncio.sleep(0.01)
        return time.monotonic() - started


def pod(name: str, labels: str, **spec: Any) -> dict[str, Any]:
    """Return a pod as large as they are, with our sidecar."""
    sidecar = {
        "name": SIDECAR_NAME,
        "image": "registry.example/at-least-semaphore-pod-hook:1.0.0",
        "args": ["sidecar", "--queue-redis-address=redis:6379", f"default/{labels}", f"permit-{name}"],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "restartPolicy": "Always",
        "securityContext": {"runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}},
    }
    main = {
        "name": "main",
        "image": "registry.example/some/application:2026-01-02",
        "env": [{"name": f"SOME_VARIABLE_{number}", "value": "and its value" * 3} for number in range(20)],
        "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}},
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
    }
    notes = {"at-least-semaphore-pod": "true", "key": labels, "length": "3", "expiration": "60"}
    annotations = {PREFIX + key: value for key, value in notes.items()}
    metadata = {"name": name, "labels": {PREFIX + "set": labels, "app": "web"}, "annotations": annotations}
    gates = [{"name": PREFIX + "permit"}]
    spec = {"initContainers": [sidecar], "containers": [main], "schedulingGates": gates} | spec
    return {"metadata": metadata | {"labels": metadata["labels"]}, "spec": spec}


def selector(labels: str) -> str:
    return f"{PREFIX}set={labels}"


PODS = "/api/v1/namespaces/default/pods"


async def in_parallel(work: list[Callable[[], Awaitable[Any]]], width: int = 24) -> None:
    waiting = iter(work)

    async def worker() -> None:
        for one in waiting:
            await one()

    await asyncio.gather(*(worker() for _ in range(width)))


async def create(api: KubeApi, labels: str, names: list[str]) -> None:
    await in_parallel([lambda name=name: api.request("POST", PODS, pod(name, labels)) for name in names])  # type: ignore[misc]


async def delete(api: KubeApi, names: list[str]) -> None:
    await in_parallel([lambda name=name: api.request("DELETE", f"{PODS}/{name}") for name in names])  # type: ignore[misc]


def etcd(plane: ControlPlane, path: str, body: object) -> dict[str, Any]:
    request = urllib.request.Request(plane.etcd.url + path, json.dumps(body).encode())  # noqa: S310 - etcd of our own
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return dict(json.load(answer))


def forget_versions(plane: ControlPlane) -> None:
    """Take all older versions away from etcd, and from the API server's cache by a restart."""
    revision = etcd(plane, "/v3/maintenance/status", {})["header"]["revision"]
    etcd(plane, "/v3/kv/compaction", {"revision": revision, "physical": True})
    plane.restart_apiserver()


class Proxy:
    """A TCP proxy to the API server that can be cut (refused, reset) or frozen (open, and nothing comes through)."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._frozen: set[asyncio.StreamWriter] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None] | None] = set()
        self.cut = False

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self.sever()
            await asyncio.gather(*(task for task in self._tasks if task))

    def sever(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def passes(self, data: bytes) -> bool:
        """Say whether these bytes go on to the other side; all do."""
        return True

    def freeze(self) -> None:
        """Let nothing through on the connections that there are; new ones work."""
        self._frozen |= self._writers

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        writers = {writer}
        try:
            if not self.cut:
                there, back = await asyncio.open_connection("127.0.0.1", self._target)
                writers.add(back)
                self._writers |= writers
                await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
        except OSError:
            pass
        finally:
            self._writers -= writers
            for one in writers:
                one.transport.abort()
                with contextlib.suppress(OSError):
                    await one.wait_closed()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if writer not in self._frozen and self.passes(data):
                    writer.write(data)
                    await writer.drain()
        if writer not in self._frozen:
            writer.close()
