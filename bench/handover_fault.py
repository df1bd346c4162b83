"""Gate mode under faults: the store's messages get lost, the active controller is killed."""

from __future__ import annotations

import contextlib
import signal
import time

from cluster_client import pod, waiting
from cluster_history import served
from cluster_proxy import Swallowing
from cluster_scene import REAL, Scene, Stage, metric
from devcluster.podrunner import SIDECAR
from devcluster.polling import until
from devcluster.process import Process
from devcluster.stores import RedisServer
from devcluster.webhook import WebhookProcess
from handover_gate import Handed, Line, by_sigterm
from handover_report import Row, at_most

SILENT_KEYS = 8
# A look at everything comes every five seconds: the releases are spread over more than one such round.
SILENT_SPACING_SECONDS = 0.9
SILENT_FLOOR_SECONDS = 5.0
SILENT_WAIT_SECONDS = 20.0

KILL_FLOOR_SECONDS = 6.0
# How long after a holder's SIGTERM the controller dies: before, while and after it hears of the release.
KILL_DELAYS = (0.0, 0.004, 0.008)
BETWEEN_KILLS = 3


def silence(stage: Stage) -> list[Row]:
    """Measure from a sidecar's SIGTERM to the next gate gone where no message tells the controller of the release.

    The pods' sidecars are run by hand, since a kubelet's report of their end would tell the controller as well.
    """
    proxy: Swallowing | None = None
    with contextlib.ExitStack() as parts:

        def through(store: RedisServer) -> str:
            nonlocal proxy
            proxy = parts.enter_context(Swallowing(store.port))
            return proxy.address

        scene = parts.enter_context(stage.scene("silence", through=through))
        keys = [f"silent-{number}" for number in range(SILENT_KEYS)]
        processes = {key: _sidecar(scene, key, parts) for key in keys}
        time.sleep(1)
        released: dict[str, float] = {}
        for key, process in processes.items():
            released[key] = time.monotonic()
            process.signal(signal.SIGTERM)
            time.sleep(SILENT_SPACING_SECONDS)
        second = {f"{key}-b" for key in keys}
        scene.watcher.wait(
            lambda events: second <= set(served(events)), SILENT_WAIT_SECONDS, "all second pods are free"
        )
        free = served(scene.watcher.events)
        took = sorted(free[f"{key}-b"].at - at for key, at in released.items())
        swallowed = proxy.swallowed if proxy else 0
    print(f"silence: {swallowed} messages were swallowed, {took[0]:.2f} to {took[-1]:.2f} s", flush=True)
    case = "silence: SIGTERM to the next gate gone without messages"
    row = at_most(case, len(took), took[-1], SILENT_FLOOR_SECONDS, "s", took[len(took) // 2])
    return [row if swallowed else row._replace(case=f"{case}: none was swallowed", met=False)]


def _sidecar(scene: Scene, key: str, parts: contextlib.ExitStack) -> Process:
    """Create a pod that gets its permit and one that waits; return the sidecar of the first, which renews."""
    name = f"{key}-a"
    scene.client.create(pod(name, waiting(key, 1)))
    event = scene.watcher.wait(lambda events: served(events).get(name), SILENT_WAIT_SECONDS, f"{name} is free")
    scene.client.create(pod(f"{key}-b", waiting(key, 1)))
    running = {"state": {"running": {}}, "started": True, "ready": True, "restartCount": 0, "image": "", "imageID": ""}
    reported = {"containerStatuses": [running | {"name": "main"}]}
    scene.client.set_status(name, phase="Running", initContainerStatuses=[running | {"name": SIDECAR}], **reported)
    argv = [*REAL, "sidecar", f"--queue-redis-address={scene.store.address}", f"{scene.namespace}/{key}", event.uid]
    process = Process(f"sidecar of {name}", argv, scene.stage.scratch / "silence" / f"{name}.log")
    parts.enter_context(process)
    until(lambda: event.uid in scene.confirmed(key), f"the sidecar of {name} renews")
    return process


def failover(stage: Stage, kills: int) -> list[Row]:
    """Kill the active one of two controllers in the middle of a hand-over, again and again."""
    took: list[float] = []
    with contextlib.ExitStack() as parts:
        scene = parts.enter_context(stage.scene("failover", sidecars="real"))
        other = parts.enter_context(stage.webhook(scene.store.address, scene.store, registered=False))
        active, standby = scene.webhook, other
        stage.register(standby)
        line = Line(scene)
        line.fill()
        for number in range(kills):
            for _ in range(BETWEEN_KILLS):
                line.hand_over(by_sigterm(scene))
            took.append(_kill(scene, line, active, KILL_DELAYS[number % len(KILL_DELAYS)]))
            until(lambda lead=standby: metric(lead, "leading") == 1, "the other one leads")  # type: ignore[misc]
            print(f"kill {number + 1}/{kills}: the next gate was gone after {took[-1]:.2f} s", flush=True)
            active.start()
            active, standby = standby, active
            stage.register(standby)
        for _ in range(BETWEEN_KILLS):
            line.hand_over(by_sigterm(scene))
        rows = line.verdict("failover")
    worst = at_most("failover: SIGKILL to the next gate gone", len(took), max(took), KILL_FLOOR_SECONDS, "s")
    return [worst, *rows]


def _kill(scene: Scene, line: Line, active: WebhookProcess, delay: float) -> float:
    """Kill a controller so many seconds after a holder's SIGTERM; return how long the next gate took from there."""
    killed = 0.0

    def release(name: str) -> float:
        nonlocal killed
        by_sigterm(scene)(name)
        time.sleep(delay)
        active.process.kill()
        killed = time.monotonic()
        return killed

    handed: Handed = line.hand_over(release)
    if handed.seconds < 0:  # that one was through before: the next is whom nobody sees to
        handed = line.hand_over(by_sigterm(scene))
    return handed.seen.at - killed
