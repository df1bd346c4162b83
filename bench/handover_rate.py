"""Gate mode under load: creation and service of many pods beside bare ones, and how much of the permits is used."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable

from cluster_client import JSON_PATCH, MERGE_PATCH, create_all, pod, waiting
from cluster_history import FINISHED, Object, Seen, active_seconds, seen, served
from cluster_scene import Scene, Stage
from devcluster.kubeapi import EventType, KubeApi
from devcluster.polling import until
from handover_report import Row, at_least, at_most

CONNECTIONS = 16
WARM_UP = 100
LENGTH = 1000
RATIO = 0.6
SERVED_SECONDS = 120.0
BARE_GATE = "example.com/hold"
# Events may follow the pod that they are about.
EVENTS_SECONDS = 1.0

PERMITS = 20
WAITERS = 200
WORK_SECONDS = 1.0
IN_USE = 95.0


def throughput(stage: Stage, pods: int, rounds: int) -> list[Row]:
    """Measure rounds of pods on a semaphore that has permits for all, in turns with as many bare ones."""
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    writes: list[int] = []
    with stage.scene("throughput") as scene:
        for number in range(rounds + 1):
            count = pods if number else WARM_UP
            for kind, taken in rates.items():
                rate, written = _round(scene, kind, f"{kind}-{number}", count)
                writes += written if kind == "ours" else []
                if number:
                    taken.append(rate)
                    print(f"round {number}/{rounds}  {kind}  {rate:.0f} pods/s", flush=True)
    bare, ours = (statistics.median(rates[kind]) for kind in ("bare", "ours"))
    return [
        at_least(
            f"throughput: {ours:.0f} of ours beside {bare:.0f} bare pods/s", rounds, ours / bare, RATIO, "of bare"
        ),
        at_most("writes for a pod that is served at once", len(writes), max(writes), 2, "", statistics.mean(writes)),
    ]


def _round(scene: Scene, kind: str, prefix: str, count: int) -> tuple[float, list[int]]:
    """Serve so many pods, and leave nothing behind.

    Returns:
        The pods per second from the first one's creation to the last one's gate gone, and the controller's writes for
        each pod.
    """
    names = [f"{prefix}-{number:04}" for number in range(count)]
    gates = [{"name": BARE_GATE}]
    made = [
        pod(name, waiting("rate", LENGTH)) if kind == "ours" else pod(name, schedulingGates=gates) for name in names
    ]

    async def run() -> float:
        async with KubeApi(scene.plane.kubeconfig) as api:

            async def ungate(created: Object) -> None:
                path = f"{scene.client.pods}/{created['metadata']['name']}"
                gate = {"op": "test", "path": "/spec/schedulingGates/0/name", "value": BARE_GATE}
                patch = [gate, {"op": "remove", "path": "/spec/schedulingGates/0"}]
                await api.request("PATCH", path, patch, JSON_PATCH)

            if kind == "ours":
                created = await create_all(api, scene.client.pods, made, CONNECTIONS)
            else:
                created = await create_all(api, scene.client.pods, made, CONNECTIONS, ungate)
            return min(one.sent for one in created)

    first = asyncio.run(run())
    last = max(
        scene.watcher.wait(lambda events: _all(events, names), SERVED_SECONDS, f"all of {prefix} are free").values()
    )
    time.sleep(EVENTS_SECONDS)
    counted = scene.stage.writes(scene.namespace)
    scene.client.remove_all()
    until(lambda: not scene.held("rate"), "all permits are back", SERVED_SECONDS)
    return count / (last - first), [counted[name] for name in names]


def _all(events: list[Seen], names: list[str]) -> dict[str, float] | None:
    """Return when each was served, once all were."""
    free = served(events) if len(events) >= len(names) else {}
    return {name: free[name].at for name in names} if all(name in free for name in names) else None


def utilization(stage: Stage) -> list[Row]:
    """Measure how much of the time permits are in use while pods of equal work wait for them.

    The stand-in here is a kubelet as quick as can be: a second after a pod is free it reports it finished.
    """
    with stage.scene("utilization") as scene:
        first = [f"first-{number:02}" for number in range(PERMITS)]
        names = [f"wait-{number:03}" for number in range(WAITERS)]
        asyncio.run(_work_off(scene, first, names))
        time.sleep(EVENTS_SECONDS)
        events = [event for event in scene.watcher.events if event.name in set(names)]
        counted = stage.writes(scene.namespace)
    writes = [counted[name] for name in names]
    at = [event.at for event in served(events).values()]
    # From the moment when all permits are the waiters' to the one when nobody waits any more.
    start, end = sorted(at)[PERMITS - 1], max(at)
    share = 100 * active_seconds(events, start, end) / (PERMITS * (end - start))
    worked = 100 * WAITERS * WORK_SECONDS / PERMITS / (max(event.at for event in events) - min(at))
    return [
        at_least(f"utilization: permits in use ({worked:.1f} % of the time at work)", WAITERS, share, IN_USE, "%"),
        at_most("writes for a pod that waited", WAITERS, max(writes), 3, "", statistics.mean(writes)),
    ]


class _Kubelet:
    """Finishes each pod of `names` so long after it was freed; at work while `run` is awaited."""

    def __init__(self, api: KubeApi, path: str, names: list[str]) -> None:
        self._api = api
        self._path = path
        self._left = set(names)
        self._tasks: set[asyncio.Task[None]] = set()
        self.free: set[str] = set()
        self.changed = asyncio.Event()

    async def run(self) -> None:
        """Watch for ever."""
        await self._api.follow(self._path, self._on_event, lambda: None)

    async def wait(self, probe: Callable[[], bool]) -> None:
        """Wait until the watch has shown what `probe` asks for."""
        while not probe():
            self.changed.clear()
            await self.changed.wait()

    def finish(self, name: str) -> None:
        """Report a pod finished."""
        task = asyncio.create_task(self._finish(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def all_finished(self) -> bool:
        """Say whether none is left."""
        return not self._left

    async def _finish(self, name: str) -> None:
        status = {"status": {"phase": "Succeeded"}}
        await self._api.request("PATCH", f"{self._path}/{name}/status", status, MERGE_PATCH)

    def _on_event(self, kind: EventType, shown: Object) -> None:
        event = seen(time.monotonic(), kind, shown)
        if event.active and event.name not in self.free:
            self.free.add(event.name)
            if event.name in self._left:
                asyncio.get_running_loop().call_later(WORK_SECONDS, self.finish, event.name)
        if event.phase in FINISHED:
            self._left.discard(event.name)
        self.changed.set()


async def _work_off(scene: Scene, first: list[str], names: list[str]) -> None:
    """Create pods that hold everything and pods that wait, and finish all of them, each after its work."""
    path = scene.client.pods
    async with KubeApi(scene.plane.kubeconfig) as api:
        kubelet = _Kubelet(api, path, names)
        watch = asyncio.create_task(kubelet.run())
        try:
            async with asyncio.timeout(SERVED_SECONDS):
                await create_all(api, path, [pod(name, waiting("busy", PERMITS)) for name in first], CONNECTIONS)
                await kubelet.wait(lambda: kubelet.free.issuperset(first))
                await create_all(api, path, [pod(name, waiting("busy", PERMITS)) for name in names], CONNECTIONS)
                await asyncio.sleep(EVENTS_SECONDS)
                for name in first:
                    kubelet.finish(name)
                await kubelet.wait(kubelet.all_finished)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
