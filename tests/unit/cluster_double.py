"""As much of an API server as the controller needs, in memory: time can be virtual, and faults can be planned."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

from at_least_semaphore_pod_hook.controller.controller import Controller
from at_least_semaphore_pod_hook.controller.effects import Effects
from at_least_semaphore_pod_hook.controller.kube import Reference, Written
from at_least_semaphore_pod_hook.controller.meter import Figures
from at_least_semaphore_pod_hook.controller.pods import PodView
from at_least_semaphore_pod_hook.controller.reflector import Change, ChangeKind
from at_least_semaphore_pod_hook.controller.reports import Reports
from at_least_semaphore_pod_hook.errors import ApiUnavailableError, StoreUnavailableError
from at_least_semaphore_pod_hook.semaphore.model import Acquired, AcquireRequest, SemaphoreKey
from at_least_semaphore_pod_hook.semaphore.service import SemaphoreService
from at_least_semaphore_pod_hook.stores.memory import MemoryStore
from tests.unit.fakes import PREFIX, LocalLock, notes
from tests.unit.views import SIDECAR, pod_view
from tests.unit.virtual_time import now

GATE = PREFIX + "permit"
TOKEN = PREFIX + "fencing-token"
EPOCH = 1_767_323_045
REPLY_SECONDS = 0.004
WATCH_SECONDS = 0.001


class Meter:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.figures: dict[SemaphoreKey, Figures | None] = {}
        self.handed_over_seconds: list[float] = []
        self.reasons: list[str] = []
        self.grants = 0

    def show(self, semaphore: SemaphoreKey, figures: Figures | None) -> None:
        self.figures[semaphore] = figures

    def clear(self) -> None:
        self.figures.clear()

    def granted(self, semaphore: SemaphoreKey) -> None:
        self.grants += 1

    def denied(self, semaphore: SemaphoreKey) -> None:
        pass

    def reclaimed(self, semaphore: SemaphoreKey, reason: str) -> None:
        self.reasons.append(reason)

    def handed_over(self, semaphore: SemaphoreKey, seconds: float) -> None:
        self.handed_over_seconds.append(seconds)

    def gate_removed(self, seconds: float) -> None:
        pass

    def event_dropped(self) -> None:
        pass


class Slow(MemoryStore):
    """A store of which each of the next answers to an acquire is so many seconds late."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.late: list[float] = []

    async def acquire(self, request: AcquireRequest, timeout: float | None = None) -> Acquired:
        acquired = await super().acquire(request, timeout)
        seconds = self.late.pop(0) if self.late else 0.0
        await asyncio.sleep(min(seconds, seconds if timeout is None else timeout))
        if timeout is not None and seconds >= timeout:
            raise StoreUnavailableError(f"no answer within {timeout} s")
        return acquired


class Cluster:
    """An API server's pods, a store, and the controllers that watch them; also the `Kube` of all of them."""

    def __init__(self) -> None:
        self.store = Slow(lambda: EPOCH + now())
        self.service = SemaphoreService(self.store, LocalLock())
        self.meter = Meter()
        self.documents: dict[str, dict[str, Any]] = {}
        self.let_in: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.touched: list[str] = []
        self.patches = 0
        self.slow_patches: list[float] = []
        self.without_permit: list[str] = []
        self.faults: list[str] = []
        self.most_active = 0
        self._controllers: dict[Controller, asyncio.Task[None]] = {}
        self._versions = 0
        self._announced = 0.0

    def start(self) -> Controller:
        """Start a controller, which sees all the pods that there are first."""
        reports = Reports(self)  # type: ignore[arg-type]
        effects = Effects(
            self,  # type: ignore[arg-type]
            self.store,
            self.service,
            prefix=PREFIX,
            wake_owners=True,
            meter=self.meter,
            reports=reports,
            clock=now,
        )
        controller = Controller(self.store, effects, self.meter, reports, clock=now, wall_clock=lambda: EPOCH + now())
        for name in self.documents:
            controller.observe(Change(ChangeKind.ADDED, self.view(name)))

        async def work() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(reports.run())
                tasks.create_task(controller.run())

        self._controllers[controller] = asyncio.create_task(work())
        return controller

    async def kill(self, controller: Controller) -> None:
        """End a controller in the middle of what it does."""
        task = self._controllers.pop(controller)
        task.cancel()
        await asyncio.wait([task])

    async def close(self) -> None:
        for controller in list(self._controllers):
            await self.kill(controller)

    def view(self, name: str) -> PodView:
        document = self.documents[name]
        view = document.get("view")
        if view is None:
            parts = {part: document[part] for part in ("metadata", "spec", "status")}
            uid = document["metadata"]["uid"]
            view = document["view"] = pod_view(name, uid=uid, version=document["version"], **copy.deepcopy(parts))
        assert isinstance(view, PodView)
        return view

    def create(
        self,
        name: str,
        *,
        length: int = 3,
        gated: bool = True,
        native: bool = True,
        confirmed: bool = True,
        **annotations: str,
    ) -> None:
        """Store a pod as our webhook has patched it."""
        arrived = str(int((EPOCH + now()) * 1_000_000))
        stamp = f"2026-01-02T03:{4 + int(5 + now()) // 60:02}:{int(5 + now()) % 60:02}Z"
        sidecar: dict[str, Any] = {"name": SIDECAR, "args": ["sidecar", "default/k", "$(POD_UID)"]}
        if not confirmed:
            sidecar["startupProbe"] = {"tcpSocket": {"port": 9779}}
        spec: dict[str, Any] = {"containers": [{"name": "main"}], "restartPolicy": "Never"}
        if native:
            spec["initContainers"] = [sidecar | {"restartPolicy": "Always"}]
        else:
            spec["containers"].append(sidecar)
        if gated:
            spec["schedulingGates"] = [{"name": GATE}]
        self.documents[name] = {
            "metadata": {
                "uid": f"uid-{name}-{self._versions}",
                "creationTimestamp": stamp,
                "annotations": notes(key="k", length=str(length), arrived=arrived, **annotations),
            },
            "spec": spec,
            "status": {"phase": "Pending"},
        }
        self._tell(ChangeKind.ADDED, name)

    def start_sidecar(self, name: str) -> None:
        """Have the sidecar of a pod run that is not confirmed, so that nothing else of it does."""
        runs = {"name": SIDECAR, "started": False, "state": {"running": {}}}
        self.documents[name]["status"] = {"phase": "Pending", "initContainerStatuses": [runs]}
        self._tell(ChangeKind.MODIFIED, name)

    def delete(self, name: str) -> None:
        view = self.view(name)
        del self.documents[name]
        self._announce(Change(ChangeKind.DELETED, view))

    def finish(self, name: str) -> None:
        self.documents[name]["status"]["phase"] = "Succeeded"
        self._tell(ChangeKind.MODIFIED, name)

    def end_main(self, name: str) -> None:
        """End the pod's work; its sidecar, an ordinary one, still runs."""
        runs = {"name": SIDECAR, "started": True, "state": {"running": {}}}
        over = {"name": "main", "state": {"terminated": {"exitCode": 0}}}
        self.documents[name]["status"] = {"phase": "Running", "containerStatuses": [over, runs]}
        self._tell(ChangeKind.MODIFIED, name)

    def active(self) -> list[str]:
        """Name the pods that were let in and have not finished."""
        return [name for name in self.documents if not self.view(name).gated and not self.view(name).finished]

    def token(self, name: str) -> int:
        return int(self.documents[name]["metadata"]["annotations"][TOKEN])

    def _tell(self, kind: ChangeKind, name: str) -> None:
        self._versions += 1
        self.documents[name] |= {"version": self._versions, "view": None}
        self.most_active = max(self.most_active, len(self.active()))
        self._announce(Change(kind, self.view(name)))

    def _announce(self, change: Change) -> None:
        # Never two at once: a watch tells things in order.
        self._announced = max(self._announced + 1e-6, now() + WATCH_SECONDS)
        for controller in self._controllers:
            asyncio.get_running_loop().call_at(self._announced, controller.observe, change)

    def _fault(self, name: str) -> None:
        if self.faults and self.faults[0] == name:
            self.faults.pop(0)
            raise ApiUnavailableError(f"fault {name}")

    async def patch_pod(self, namespace: str, name: str, json_patch: list[dict[str, Any]]) -> Written:
        await asyncio.sleep(self.slow_patches.pop(0) if self.slow_patches else REPLY_SECONDS / 2)
        self.patches += 1
        self._fault("before patch")
        document = self.documents.get(name)
        if document is None:
            return Written.MISSING
        metadata, spec = document["metadata"], document["spec"]
        for operation in json_patch:
            value, path = operation.get("value"), operation["path"]
            if operation["op"] == "test":
                actual = metadata["uid"] if path == "/metadata/uid" else (spec.get("schedulingGates") or [None])[0]
                if actual != value:
                    return Written.CONFLICT
            elif operation["op"] == "remove":
                del spec["schedulingGates"][0]
                self.let_in.append(name)
                if metadata["uid"] not in (await self.store.state(SemaphoreKey("default", "k"))).permits:
                    self.without_permit.append(name)
            else:
                metadata["annotations"][path.rpartition("/")[2].replace("~1", "/")] = value
        self._tell(ChangeKind.MODIFIED, name)
        self._fault("after patch")
        await asyncio.sleep(REPLY_SECONDS / 2)
        return Written.DONE

    async def get_pod(self, namespace: str, name: str) -> PodView | None:
        await asyncio.sleep(REPLY_SECONDS)
        return self.view(name) if name in self.documents else None

    async def list_pods(self, label_selector: str) -> tuple[list[PodView], str]:
        await asyncio.sleep(REPLY_SECONDS)
        return [self.view(name) for name in self.documents], str(self._versions)

    async def node_ready(self, name: str) -> bool:
        return True

    async def touch_owner(self, kind: str, namespace: str, name: str, annotation: str, value: str) -> Reference:
        self.touched.append(f"{kind}/{name}")
        return Reference("apps/v1", kind, namespace, name, f"uid-{name}")

    async def create_event(self, regarding: Reference, reason: str, note: str, **_: object) -> Written:
        await asyncio.sleep(REPLY_SECONDS)
        self.events.append((regarding.name, reason))
        return Written.DONE
