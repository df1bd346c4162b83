"""Gate mode with `release-on: exit`: never more pods active than permits, however pods are ended."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster_client import pod, waiting
from cluster_history import Object, most_active, now_active
from cluster_scene import Scene, Stage
from handover_report import Row, none_of

LENGTH = 3
WAITERS = 6
# The main container takes this long to end, well within the pod's grace, and the sidecar ends after it.
STOP_SECONDS = 1.0
GRACE_SECONDS = 30
AGAIN_SECONDS = 30.0
ROLLOUT_TIMEOUT = "60s"


def measure(stage: Stage) -> list[Row]:
    """Return a row for each way to end pods."""
    ways = {"delete": _delete, "evict": _evict, "rollout": _rollout, "drain": _drain, "evict-all": _evict_all}
    with stage.scene("exit", sidecars="real") as scene:
        return [_way(scene, name, way) for name, way in ways.items()]


def _way(scene: Scene, name: str, way: Callable[[Scene, str], None]) -> Row:
    started = time.monotonic()
    way(scene, name)
    prefix = f"{name}-"
    most = most_active(scene.watcher.events, prefix)
    took = time.monotonic() - started
    scene.client.send("DELETE", f"/apis/apps/v1/namespaces/{scene.namespace}/deployments", {})
    scene.client.remove_all(f"way={name}")
    wrong = [f"{most} active at once"] if most > LENGTH else []
    return none_of(f"exit: active pods within the length, {name} ({took:.0f} s)", most, wrong)


def _delete(scene: Scene, name: str) -> None:
    """Delete all active pods in the ordinary way, twice, while others wait."""
    _end_twice(scene, name, lambda one: scene.client.send("DELETE", f"{scene.client.pods}/{one}"))


def _evict(scene: Scene, name: str) -> None:
    """Evict all active pods, twice, while others wait."""
    _end_twice(scene, name, lambda one: _evict_one(scene, one))


def _end_twice(scene: Scene, name: str, end: Callable[[str], object]) -> None:
    for number in range(LENGTH + WAITERS):
        scene.client.create(_pod(name, f"{name}-{number}"))
    for _ in range(2):
        active = _wait_active(scene, name, set())
        for one in sorted(active):
            end(one)
        _wait_active(scene, name, active)


def _rollout(scene: Scene, name: str) -> None:
    """Change the template of a Deployment that has all permits."""
    _deploy(scene, name)
    before = _wait_active(scene, name, set())
    change = {"spec": {"template": {"metadata": {"annotations": {"example.com/changed": "yes"}}}}}
    path = f"/apis/apps/v1/namespaces/{scene.namespace}/deployments/{name}"
    scene.client.send("PATCH", path, change, "application/merge-patch+json")
    scene.plane.kubectl(
        "-n", scene.namespace, "rollout", "status", f"deployment/{name}", f"--timeout={ROLLOUT_TIMEOUT}"
    )
    _wait_active(scene, name, before)


def _drain(scene: Scene, name: str) -> None:
    """Drain the node; the stand-in scheduler binds the new pods to it all the same."""
    _deploy(scene, name)
    before = _wait_active(scene, name, set())
    drain = ("drain", scene.plane.node, "--force", "--delete-emptydir-data", "--ignore-daemonsets")
    try:
        scene.plane.kubectl(*drain, f"--pod-selector=way={name}", f"--timeout={ROLLOUT_TIMEOUT}")
        _wait_active(scene, name, before)
    finally:
        scene.plane.kubectl("uncordon", scene.plane.node)


def _evict_all(scene: Scene, name: str) -> None:
    """Evict every pod of two Deployments that share the permits, the waiting ones too."""
    _deploy(scene, name)
    _deploy(scene, f"{name}-b", way=name)
    before = _wait_active(scene, name, set())
    for item in scene.client.send("GET", f"{scene.client.pods}?labelSelector=way%3D{name}")["items"]:
        _evict_one(scene, item["metadata"]["name"])
    _wait_active(scene, name, before)


def _pod(way: str, name: str) -> Object:
    made = pod(name, _annotations(way), terminationGracePeriodSeconds=GRACE_SECONDS)
    made["metadata"]["labels"] = {"way": way}
    return made


def _annotations(way: str) -> dict[str, str]:
    return waiting(way, LENGTH, release_on="exit") | {"devcluster/stop-seconds": str(STOP_SECONDS)}


def _deploy(scene: Scene, name: str, way: str = "") -> None:
    labels = {"way": way or name, "app": name}
    template = _pod(way or name, "")
    template["metadata"] = {"labels": labels, "annotations": template["metadata"]["annotations"]}
    template["spec"]["restartPolicy"] = "Always"
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}
    spec = {"replicas": LENGTH, "selector": {"matchLabels": labels}, "strategy": strategy, "template": template}
    path = f"/apis/apps/v1/namespaces/{scene.namespace}/deployments"
    scene.client.send("POST", path, {"metadata": {"name": name}, "spec": spec})


def _evict_one(scene: Scene, name: str) -> Object:
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    return scene.client.send("POST", f"{scene.client.pods}/{name}/eviction", eviction)


def _wait_active(scene: Scene, name: str, before: set[str]) -> set[str]:
    """Wait until as many pods as there are permits are active, none of them among those `before`; return their names.

    Their sidecars have renewed by then, so that a pod's end is that of one that has run.
    """
    path = f"{scene.client.pods}?labelSelector=way%3D{name}"
    deadline = time.monotonic() + AGAIN_SECONDS
    scene.watcher.wait(
        lambda events: (
            len(now_active(events, f"{name}-") - before) == LENGTH and not now_active(events, f"{name}-") & before
        ),
        AGAIN_SECONDS,
        f"{LENGTH} other pods are active, {name}",
    )
    while True:
        items = scene.client.send("GET", path)["items"]
        running = {item["metadata"]["name"] for item in items if (item.get("status") or {}).get("phase") == "Running"}
        uids = {item["metadata"]["uid"] for item in items if item["metadata"]["name"] in running - before}
        if len(running) == LENGTH and uids <= scene.confirmed(name):
            return running
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name}: {len(running)} of {LENGTH} pods run")
        time.sleep(0.05)
