"""Deny mode: how soon after a release the next pod is created, by kind of the denied owner."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from cluster_client import Client, opted_in, pod
from cluster_history import Object, Seen
from cluster_scene import Scene, Stage
from devcluster.polling import until
from handover_report import Row, latencies

# Denied again and again, the controllers wait longer and longer: after so long for seconds, so that a pod that comes
# at once comes because its owner was woken.
BACKOFF_SECONDS = 8.0
SPACING_SECONDS = 0.15
CREATED_WITHIN_SECONDS = 30.0


class _Kind(NamedTuple):
    """A kind of owner: where it is created, its spec around a pod template, and the floor in seconds."""

    name: str
    path: str
    spec: Callable[[str, Object], Object]
    floor: float


def _replicated(name: str, template: Object) -> Object:
    return {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template}


def _stateful(name: str, template: Object) -> Object:
    return _replicated(name, template) | {"serviceName": name}


def _job(_name: str, template: Object) -> Object:
    return {"template": template}


KINDS = (
    _Kind("Deployment", "/apis/apps/v1/namespaces/{}/deployments", _replicated, 0.5),
    _Kind("StatefulSet", "/apis/apps/v1/namespaces/{}/statefulsets", _stateful, 1.5),
    _Kind("Job", "/apis/batch/v1/namespaces/{}/jobs", _job, 1.5),
)


def measure(stage: Stage, owners: int) -> list[Row]:
    """Return a row for each kind, over so many denied owners of each."""
    with stage.scene("wake") as scene:
        denied = [(kind, f"{kind.name.lower()}-{number}") for kind in KINDS for number in range(owners)]
        for kind, name in denied:
            scene.client.create(pod(f"holder-{name}", opted_in(name, 1)))
            _create_owner(scene.client, scene.namespace, kind, name)
        until(lambda: all(_is_denied(scene, name) for _, name in denied), "every owner was denied")
        time.sleep(BACKOFF_SECONDS)
        released: dict[str, float] = {}
        # In turns, so that what the machine does meanwhile meets all kinds alike.
        for _, name in sorted(denied, key=lambda one: int(one[1].rpartition("-")[2])):
            released[name] = time.monotonic()
            scene.client.remove(f"holder-{name}")
            time.sleep(SPACING_SECONDS)
        took = {name: _created_at(scene, name) - at for name, at in released.items()}
    woken = scene.webhook.log().count("owner woken")
    print(f"wake: {woken} owners were woken, {len(denied)} pods created", flush=True)
    return [
        latencies(
            f"wake: release to the next {kind.name}'s pod created",
            [took[n] for k, n in denied if k is kind],
            p99=kind.floor,
        )
        for kind in KINDS
    ]


def _create_owner(client: Client, namespace: str, kind: _Kind, name: str) -> None:
    made = pod("", opted_in(name, 1))
    spec = made["spec"] | ({} if kind.name == "Job" else {"restartPolicy": "Always"})
    metadata = {"labels": {"app": name}, "annotations": made["metadata"]["annotations"]}
    document = {"metadata": {"name": name}, "spec": kind.spec(name, {"metadata": metadata, "spec": spec})}
    client.send("POST", kind.path.format(namespace), document)


def _is_denied(scene: Scene, key: str) -> bool:
    return bool(scene.ledger.state(scene.namespace, key).denied)


def _created_at(scene: Scene, owner: str) -> float:
    def is_created(event: Seen) -> bool:
        return event.kind == "ADDED" and event.name.startswith(f"{owner}-")

    return scene.watcher.first(is_created, 0, CREATED_WITHIN_SECONDS, f"a pod of {owner}").at
