"""Gate mode: pods that were created in a burst are served in that order, over a restart of the controller."""

from __future__ import annotations

from cluster_client import burst, pod, waiting
from cluster_history import Seen, inversions, served
from cluster_scene import Scene, Stage
from handover_report import Row, none_of

LENGTH = 3
BURST = 30
BEFORE_RESTART = 10
WORK = {"devcluster/run-seconds": "0.2"}
SERVED_SECONDS = 40.0


def measure(stage: Stage) -> list[Row]:
    """Return the rows of a burst over one connection, whose order is total, and of one over eight."""
    with stage.scene("order", sidecars="stub") as scene:
        return [_burst(scene, connections) for connections in (1, 8)]


def _burst(scene: Scene, connections: int) -> Row:
    """Create a burst behind pods that hold everything, remove these, and restart the controller on the way."""
    key = f"burst-{connections}"
    first = [scene.client.create(pod(f"first-{connections}-{n}", waiting(key, LENGTH))).name for n in range(LENGTH)]
    scene.watcher.wait(lambda events: set(first) <= set(served(events)), SERVED_SECONDS, "the first pods are free")
    made = [pod(f"{key}-{number:02}", waiting(key, LENGTH) | WORK) for number in range(BURST)]
    created = burst(scene.plane, scene.client.pods, made, connections)
    for name in first:
        scene.client.remove(name)

    def so_many(events: list[Seen], count: int) -> dict[str, float] | None:
        at = {name: event.at for name, event in served(events).items() if name.startswith(key)}
        return at if len(at) >= count else None

    scene.watcher.wait(lambda events: so_many(events, BEFORE_RESTART), SERVED_SECONDS, f"{BEFORE_RESTART} are served")
    scene.webhook.process.terminate()
    scene.webhook.start()
    at = scene.watcher.wait(lambda events: so_many(events, BURST), SERVED_SECONDS, f"all {BURST} are served")
    wrong = [f"{early} after {late}" for early, late in inversions(created, at)]
    return none_of(f"order: burst of {BURST} over {connections} connections, controller restarted", BURST, wrong)
