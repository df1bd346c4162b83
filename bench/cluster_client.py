"""What the bench asks of the API server: single requests over a kept connection, and many pods at once."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

from cluster_history import PREFIX, Created, Object
from devcluster.controlplane import ControlPlane
from devcluster.errors import DevClusterError
from devcluster.kubeapi import KubeApi

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
EXPIRATION = "600"
_TIMEOUT_SECONDS = 30.0
_BURST_SECONDS = 120.0


def opted_in(key: str, length: int, **more: str) -> dict[str, str]:
    """Return the annotations of a pod that takes part; `more` are named with _ in place of -."""
    values = {"at-least-semaphore-pod": "true", "key": key, "length": str(length), "expiration": EXPIRATION}
    values |= {name.replace("_", "-"): value for name, value in more.items()}
    return {PREFIX + name: value for name, value in values.items()}


def waiting(key: str, length: int, **more: str) -> dict[str, str]:
    """Return the annotations of a pod that waits behind a gate for its turn."""
    return opted_in(key, length, when_full="gate", **more)


def pod(name: str, annotations: dict[str, str] | None = None, **spec: object) -> Object:
    """Return a pod with one container, which runs once."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none"}]} | spec,
    }


class Client:
    """One connection to the API server as administrator, kept open; a context manager, of one thread."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        context = ssl.create_default_context(cafile=plane.ca_file)
        self._http = http.client.HTTPSConnection("127.0.0.1", plane.port, timeout=_TIMEOUT_SECONDS, context=context)
        self._authorization = f"Bearer {plane.token}"
        self.pods = f"/api/v1/namespaces/{namespace}/pods"

    def send(self, method: str, path: str, body: object = None, content_type: str = "application/json") -> Object:
        """Send a request and return its answer; DevClusterError for one of 400 or above."""
        headers = {"Authorization": self._authorization, "Content-Type": content_type}
        data = None if body is None else json.dumps(body).encode()
        try:
            self._http.request(method, path, data, headers)
        except (http.client.NotConnected, BrokenPipeError, ConnectionResetError):
            self._http.close()  # it was closed by the other end while idle
            self._http.request(method, path, data, headers)
        answer = self._http.getresponse()
        text = answer.read()
        if answer.status >= 400:
            raise DevClusterError(f"{method} {path}: {answer.status} {text.decode(errors='replace')[:500]}")
        return dict(json.loads(text))

    def create(self, made: Object) -> Created:
        """Create a pod."""
        sent = time.monotonic()
        answer = self.send("POST", self.pods, made)
        return Created(answer["metadata"]["name"], sent, time.monotonic())

    def remove(self, name: str) -> None:
        """Delete a pod by force: it is gone with the answer."""
        self.send("DELETE", f"{self.pods}/{name}", {"gracePeriodSeconds": 0})

    def remove_all(self, selector: str = "") -> None:
        """Delete all pods by force."""
        query = urlencode({"labelSelector": selector})
        self.send("DELETE", f"{self.pods}?{query}", {"gracePeriodSeconds": 0})

    def set_status(self, name: str, **status: object) -> None:
        """Write a pod's status, as its kubelet does."""
        self.send("PATCH", f"{self.pods}/{name}/status", {"status": status}, MERGE_PATCH)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._http.close()


async def _nothing(_pod: Object) -> None:
    pass


async def create_all(
    api: KubeApi,
    path: str,
    made: Iterable[Object],
    connections: int,
    then: Callable[[Object], Awaitable[None]] = _nothing,
) -> list[Created]:
    """Create pods in their order with so many requests under way; `then` is awaited with each answer.

    TimeoutError after two minutes.
    """
    left = iter(made)
    done: list[Created] = []

    async def work() -> None:
        for one in left:
            sent = time.monotonic()
            answer = await api.request("POST", path, one)
            done.append(Created(answer["metadata"]["name"], sent, time.monotonic()))
            await then(answer)

    async with asyncio.timeout(_BURST_SECONDS), asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(work())
    return done


def burst(plane: ControlPlane, path: str, made: Iterable[Object], connections: int) -> list[Created]:
    """Create pods as `create_all` does, from outside of an event loop."""

    async def run() -> list[Created]:
        async with KubeApi(plane.kubeconfig) as api:
            return await create_all(api, path, made, connections)

    return asyncio.run(run())
