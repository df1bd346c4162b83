"""What the demo reads of the cluster, the store and the logs, and shows."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.admission.annotations import ARRIVED, GATE, annotation_prefix
from at_least_semaphore_pod_hook.admission.inject import UID_PERMIT
from at_least_semaphore_pod_hook.semaphore.model import Holder, SemaphoreKey, SemaphoreState
from at_least_semaphore_pod_hook.stores.redis.store import open_redis_store
from devcluster.console import Console
from devcluster.errors import DevClusterError
from devcluster.local import LocalCluster
from devcluster.podrunner import SIDECAR

Object = dict[str, Any]

BACK = "gave the permit back"
_PREFIX = annotation_prefix()


@dataclass(frozen=True)
class Pod:
    """A pod as the API server has it; `permit` is the name of its permit, `arrived` is 0 for one that did not wait."""

    name: str
    owner: str
    permit: str
    state: str
    gated: bool
    arrived: int


class View:
    """One namespace of a local cluster."""

    def __init__(self, cluster: LocalCluster, console: Console, namespace: str) -> None:
        self._cluster = cluster
        self._console = console
        self.namespace = namespace

    def pods(self, label: str) -> list[Pod]:
        """Return the pods that have a label, whose value names what they belong to."""
        items = self.request(f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={label.replace('/', '%2F')}")
        return sorted((_pod(item, label) for item in items["items"]), key=lambda pod: (pod.owner, pod.name))

    def semaphore(self, key: str) -> SemaphoreState:
        """Return a semaphore as the store has it."""

        async def read() -> SemaphoreState:
            store = open_redis_store(Address("127.0.0.1", self._cluster.store.port))
            try:
                return await store.state(SemaphoreKey(self.namespace, key))
            finally:
                await store.close()

        return asyncio.run(read())

    def holders(self, key: str) -> dict[str, Holder]:
        """Return who holds a permit, by the permits' names."""
        return {holder.permit: holder for holder in self.semaphore(key).holders}

    def show(self, key: str) -> None:
        """Print a semaphore."""
        state = self.semaphore(key)
        self._console.say(
            f"semaphore {self.namespace}/{key}: {state.length} permits, {state.held} held, {state.free} free"
        )
        self._console.table(
            ("PERMIT", "HOLDER", "LEASE"),
            [(one.permit, one.pod, f"{one.lease_ms / 1000:.0f} s") for one in state.holders],
        )
        self._console.line()

    def given_back(self, pod: str) -> float | None:
        """Return when a pod's sidecar gave its permit back, in seconds since the epoch; None where it has not."""
        try:
            log = self._cluster.runner.sidecar_log(self.namespace, pod)
        except DevClusterError:  # it has not been started yet
            return None
        return next(iter(_moments(log, BACK)), None)

    def logged(self, message: str, pod: str) -> list[float]:
        """Return when the webhook logged this of a pod, in seconds since the epoch."""
        return _moments(self._cluster.webhook.log(), rf"{message} .*\bpod={re.escape(pod)}(?= |$)")

    def request(self, path: str) -> Object:
        """Ask the API server."""
        return self._cluster.control_plane.request("GET", path)

    def kubectl(self, *arguments: str) -> None:
        """Run kubectl in the namespace."""
        self._cluster.control_plane.kubectl(f"--namespace={self.namespace}", *arguments)


def _pod(item: Object, label: str) -> Pod:
    metadata, spec = item["metadata"], item["spec"]
    permit = next((str(one["args"][-1]) for one in spec.get("initContainers", []) if one["name"] == SIDECAR), "")
    gated = any(gate["name"] == _PREFIX + GATE for gate in spec.get("schedulingGates", []))
    return Pod(
        metadata["name"],
        metadata["labels"][label],
        metadata["uid"] if permit == UID_PERMIT else permit,
        "ending" if "deletionTimestamp" in metadata else item["status"]["phase"].lower(),
        gated,
        int(metadata["annotations"].get(_PREFIX + ARRIVED, 0)),
    )


def _moments(log: str, message: str) -> list[float]:
    found = re.findall(rf"^(\S+Z) +\w+ +{message}", log, re.MULTILINE)
    return [datetime.fromisoformat(moment).timestamp() for moment in found]
