"""The life of one pod on the stand-in node: containers started, watched, stopped in order, and reported."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devcluster import podspec, probes
from devcluster.kubeapi import KubeApi
from devcluster.status import ContainerRecord, pod_status, timestamp
from devcluster.volumes import Volumes
from devcluster.workload import Real, Simulated, Workload

Object = dict[str, Any]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """How pods are run: which containers are real processes, with what, and what is restarted.

    `substitutions` are replaced in the arguments and environment of real containers (a Service's address by a local
    one, say). `base_env` is their environment before the pod's own. `restart_seconds` is the pause before a restart.
    """

    directory: Path
    sidecar: str
    entrypoint: Sequence[str]
    base_env: Mapping[str, str]
    substitutions: Mapping[str, str] = field(default_factory=dict)
    restart_sidecars: bool = False
    restart_seconds: float = 1.0


@dataclass
class _Container:
    spec: Object
    record: ContainerRecord
    real: bool
    workload: Workload | None = None
    probing: asyncio.Task[None] | None = None
    passed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once its startup probe has passed for the first time."""


class PodRun:
    """Runs one pod from its binding to its end. `status_changed` is called with every new status.

    Main containers run beside native sidecars, which are started before and stopped after them. Startup and liveness
    probes by tcpSocket are honoured, others are not. Every method belongs to the event loop's thread.
    """

    def __init__(
        self,
        pod: Object,
        options: RunOptions,
        pod_ip: str,
        api: KubeApi,
        status_changed: Callable[[Object], None],
    ) -> None:
        self.pod = pod
        metadata, spec = pod["metadata"], pod["spec"]
        self.uid: str = metadata["uid"]
        self.name: str = metadata["name"]
        self.namespace: str = metadata["namespace"]
        self._options = options
        self._pod_ip = pod_ip
        self._api = api
        self._status_changed = status_changed
        self._policy: str = spec.get("restartPolicy", "Always")
        self._init = [self._container(one, init=True) for one in spec.get("initContainers") or []]
        self._main = [self._container(one, init=False) for one in spec["containers"]]
        self._started = time.time()
        self._initialized = False
        self._phase = "Pending"
        self._stopping = asyncio.Event()
        self._conditions: dict[str, Object] = {}
        self._kill_at = math.inf
        self._kill_timer: asyncio.TimerHandle | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def _container(self, spec: Object, *, init: bool) -> _Container:
        sidecar = init and podspec.is_native_sidecar(spec)
        record = ContainerRecord(self.uid, spec["name"], spec["image"], init=init, native_sidecar=sidecar)
        return _Container(spec, record, real=spec["name"] == self._options.sidecar)

    @property
    def sidecar_pid(self) -> int | None:
        """The process id of the pod's real container while it runs."""
        for container in [*self._init, *self._main]:
            if isinstance(container.workload, Real) and container.workload.pid is not None:
                return container.workload.pid
        return None

    @property
    def sidecar_log(self) -> Path:
        """Where the output of the pod's real container goes."""
        return self._directory / f"{self._options.sidecar}.log"

    @property
    def _directory(self) -> Path:
        return self._options.directory / f"{self.namespace}_{self.name}_{self.uid}"

    def stop(self, grace: float) -> None:
        """Begin to end the pod: SIGTERM now, SIGKILL in `grace` seconds; a later call can only shorten that."""
        self._arm(grace)
        self._stopping.set()
        for container in self._main:
            if container.probing is not None:
                container.probing.cancel()

    def signal_sidecar(self, number: int) -> bool:
        """Send a signal to the real container's process; False where none runs."""
        for container in [*self._init, *self._main]:
            if isinstance(container.workload, Real) and container.workload.pid is not None:
                container.workload.signal(number)
                return True
        return False

    async def run(self) -> None:
        """Run the pod until it has completed or was stopped; every process has ended when this returns."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if await self._initialize():
                for container in self._main:
                    self._launch(container)
                mains = [self._tasks[container.record.name] for container in self._main]
                # Not gathered: where the pod is stopped, nobody would ask that for its outcome.
                over = asyncio.wait(mains, return_when=asyncio.FIRST_EXCEPTION)
                await self._unless_stopped(asyncio.ensure_future(over))
            await self._end()
        finally:
            await self._abandon()

    async def _initialize(self) -> bool:
        """Run init containers in order; False where the pod was stopped or one failed for good."""
        self._publish()
        for container in self._init:
            task = self._launch(container)
            if container.record.native_sidecar:
                await self._startup(container)
                continue
            await self._unless_stopped(task)
            if self._stopping.is_set() or container.record.exit_code != 0:
                return False
        self._initialized = True
        return not self._stopping.is_set()

    async def _startup(self, container: _Container) -> None:
        """Wait until the startup probe of a native sidecar passes, where it has one."""
        if probes.read(container.spec, "startupProbe", 0):
            passed = asyncio.ensure_future(container.passed.wait())
            try:
                await self._unless_stopped(passed)
            finally:
                passed.cancel()

    async def _unless_stopped(self, work: asyncio.Future[Any]) -> None:
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()

    def _launch(self, container: _Container) -> asyncio.Task[None]:
        task = asyncio.create_task(self._supervise(container))
        self._tasks[container.record.name] = task
        return task

    async def _supervise(self, container: _Container) -> None:
        """Run a container, again and again where its policy says so, until it may end."""
        record = container.record
        while True:
            container.workload = self._workload(container)
            if self._kill_at <= time.monotonic():  # it was created while everything was being killed
                container.workload.signal(signal.SIGKILL)
            try:
                code = await container.workload.run(lambda: self._on_started(container))
            finally:
                if container.probing is not None:
                    container.probing.cancel()
            record.ended(code)
            if not self._restart_due(record, code):
                self._publish()
                return
            self._publish()
            if container.real and not self._options.restart_sidecars:
                await self._stopping.wait()  # the policy asks for a restart: the container never counts as completed
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._options.restart_seconds)
            if self._stopping.is_set():
                return
            record.restarts += 1

    def _restart_due(self, record: ContainerRecord, code: int) -> bool:
        if self._stopping.is_set():
            return False
        if record.native_sidecar:
            return True
        if record.init:
            return code != 0 and self._policy != "Never"
        return self._policy == "Always" or (self._policy == "OnFailure" and code != 0)

    def _workload(self, container: _Container) -> Workload:
        if container.real:
            return Real(lambda: self._prepare(container.spec), self.sidecar_log, self._directory)
        if container.record.init:
            return Simulated(None if container.record.native_sidecar else 0.0, 0, 0.0)
        number = podspec.annotation_number
        code = int(number(self.pod, podspec.EXIT_CODE) or 0)
        seconds = number(self.pod, podspec.RUN_SECONDS)
        if seconds is None and podspec.EXIT_CODE in (self.pod["metadata"].get("annotations") or {}):
            seconds = 0.0
        return Simulated(seconds, code, number(self.pod, podspec.STOP_SECONDS) or 0.0)

    async def _prepare(self, spec: Object) -> tuple[list[str], dict[str, str]]:
        """Return the command line and environment of a real container, its mounted volumes made and put in."""

        async def lookup(kind: str, name: str) -> Mapping[str, str]:
            answer = await self._api.request("GET", f"/api/v1/namespaces/{self.namespace}/{kind}/{name}")
            return dict(answer.get("data") or {})

        values = await podspec.environment(self.pod, spec, self._pod_ip, lookup)
        argv = podspec.command_line(spec, self._options.entrypoint, values)
        volumes = Volumes(self.pod, self._pod_ip, self._directory / "volumes", self._api)
        replaced = await volumes.make(spec, [*argv, *values.values()]) | dict(self._options.substitutions)

        def substituted(text: str) -> str:
            for old, new in replaced.items():
                text = text.replace(old, new)
            return text

        values = {name: substituted(value) for name, value in values.items()}
        return [substituted(part) for part in argv], {**self._options.base_env, **values}

    def _on_started(self, container: _Container) -> None:
        container.record.started()
        container.record.starting = probes.read(container.spec, "startupProbe", 0) is not None
        if not container.record.init:
            self._phase = "Running"
        self._publish()
        # A pod that is being stopped is not probed: as with a kubelet, only its own grace counts then.
        if not self._stopping.is_set():
            container.probing = asyncio.create_task(self._probe(container))

    async def _probe(self, container: _Container) -> None:
        """Probe a container as long as it runs, and stop it where it fails."""
        workload, grace = container.workload, podspec.grace_seconds(self.pod)
        startup = probes.read(container.spec, "startupProbe", grace)
        liveness = probes.read(container.spec, "livenessProbe", grace)
        failed = startup
        if startup is None or await probes.until_passed(startup):
            if startup is not None:
                container.record.starting = False
                container.passed.set()
                self._publish()
            if liveness is None:
                return
            await probes.until_failed(liveness)
            failed = liveness
        if workload is not None and failed is not None:
            workload.signal(signal.SIGTERM)
            await asyncio.sleep(failed.grace)
            workload.signal(signal.SIGKILL)

    async def _end(self) -> None:
        """Stop main containers, then native sidecars in reverse order, and publish the final phase."""
        if not self._stopping.is_set():  # it has completed by itself
            self.stop(podspec.grace_seconds(self.pod))
        await self._terminate(self._main + [one for one in self._init if not one.record.native_sidecar])
        for sidecar in reversed([one for one in self._init if one.record.native_sidecar]):
            await self._terminate([sidecar])
        ordinary = [one.record for one in self._main]
        ordinary += [one.record for one in self._init if not one.record.native_sidecar]
        self._phase = "Succeeded" if all(record.exit_code == 0 for record in ordinary) else "Failed"
        self._publish()

    async def _terminate(self, containers: Sequence[_Container]) -> None:
        tasks = [self._tasks[one.record.name] for one in containers if one.record.name in self._tasks]
        for container in containers:
            if container.workload is not None:
                container.workload.signal(signal.SIGTERM)
        if tasks:
            await asyncio.wait(tasks)

    def _arm(self, grace: float) -> None:
        at = time.monotonic() + grace
        if at < self._kill_at:
            self._kill_at = at
            if self._kill_timer is not None:
                self._kill_timer.cancel()
            self._kill_timer = asyncio.get_running_loop().call_later(grace, self._kill)

    def _kill(self) -> None:
        for container in [*self._init, *self._main]:
            if container.workload is not None:
                container.workload.signal(signal.SIGKILL)

    async def _abandon(self) -> None:
        """Leave nothing behind, whatever happened before."""
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._stopping.set()
        self._kill()
        for task in self._tasks.values():
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks.values(), return_exceptions=True):
            if isinstance(outcome, Exception):
                _LOG.error("pod %s/%s: a container could not be run: %s", self.namespace, self.name, outcome)

    def _publish(self) -> None:
        inits = [container.record for container in self._init]
        mains = [container.record for container in self._main]
        status = pod_status(
            self._phase, inits, mains, pod_ip=self._pod_ip, started=self._started, initialized=self._initialized
        )
        for condition in status["conditions"]:
            before = self._conditions.get(condition["type"])
            same = before is not None and before["status"] == condition["status"]
            condition["lastTransitionTime"] = (
                before["lastTransitionTime"] if before is not None and same else timestamp(time.time())
            )
            self._conditions[condition["type"]] = condition
        self._status_changed(status)
